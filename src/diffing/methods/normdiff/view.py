"""What the dashboard shows of a `normdiff` result."""

import streamlit as st

from diffing.core.result import Result
from diffing.methods.normdiff.section import RANKINGS, coloured, example_slot, heatmap, numbers, where
from diffing.ui.blocks import draw
from diffing.ui.paged_table import paged_table
from diffing.ui.parts import examples, one_of, part


def view(result: Result) -> None:
    """Draw the result."""
    part(
        "part",
        {
            "Layers": lambda: _layers(result),
            "Tokens": lambda: _tokens(result),
            "Examples": lambda: _examples(result),
            "Every token": lambda: _every_token(result),
            "Vectors": lambda: _vectors(result),
        },
        "Findings",
    )


def _layers(result: Result) -> None:
    for i, block in enumerate([*where(result), *numbers(result)]):
        draw(result, block, f"layers-{i}")


def _tokens(result: Result) -> None:
    layer, site = example_slot(result)
    st.markdown(
        f"Tokens of the text by how far above the average the state moves when they are read, at layer {layer} "
        f"({site}); what rests on a few occurrences is shrunk toward 0."
    )
    paged_table(result, "token_scores", "norm_scores")


def _examples(result: Result) -> None:
    rows = result.table("examples").to_pylist()
    if not rows:
        st.info("This result holds no examples.")
        return
    titles = {title: (metric, ranking, unit) for metric, ranking, title, unit in RANKINGS}
    dataset = one_of("Dataset", list(dict.fromkeys(r["dataset"] for r in rows)), "dataset")
    metric, ranking, unit = titles[one_of("Ranked by", list(titles), "ranking")]
    mine = [r for r in rows if (r["dataset"], r["metric"], r["ranking"]) == (dataset, metric, ranking)]
    top = max((v for r in mine for v in coloured(r, metric) if v is not None), default=0.0)
    ranked = sorted(mine, key=lambda r: r["rank"])
    examples([heatmap(r, metric, top, unit) for r in ranked], top, unit, "norm_examples")


def _every_token(result: Result) -> None:
    st.markdown("Every token that was read, at every layer.")
    paged_table(result, "tokens", "norm_tokens", picks=("dataset", "layer"))


def _vectors(result: Result) -> None:
    st.markdown("Mean differences that were saved; steer along them on the Steer page.")
    paged_table(result, "vectors", "norm_vectors", hidden=("key",), picks=("dataset", "kind", "layer"))
