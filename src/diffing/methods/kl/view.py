"""What the dashboard shows of a `kl` result."""

import streamlit as st

from diffing.core.result import Result
from diffing.methods.kl.section import heatmap, numbers
from diffing.ui.blocks import draw
from diffing.ui.paged_table import paged_table
from diffing.ui.parts import examples, one_of, part

_RANKINGS = {"largest KL at one token": "peak", "largest mean KL": "mean"}


def view(result: Result) -> None:
    """Draw the result."""
    part(
        "part",
        {
            "Numbers": lambda: _numbers(result),
            "Tokens": lambda: _tokens(result),
            "Examples": lambda: _examples(result),
            "Every token": lambda: _every_token(result),
        },
        "Findings",
    )


def _numbers(result: Result) -> None:
    for i, block in enumerate(numbers(result)):
        draw(result, block, f"numbers-{i}")


def _tokens(result: Result) -> None:
    st.markdown(
        "**risen_fallen**: at each position the tokens whose probability rose, and fell, most; `share` of positions at "
        "which a token is among them, `kl_share` its part of the mean KL.  \n"
        "**token_scores**: all tokens of the vocabulary by their part in the mean KL."
    )
    table = one_of("Table", ["risen_fallen", "token_scores"], "tokens_of")
    picks = ("dataset", "direction") if table == "risen_fallen" else ()
    paged_table(result, table, f"kl_{table}", picks=picks)


def _examples(result: Result) -> None:
    rows = result.table("examples").to_pylist()
    if not rows:
        st.info("This result holds no examples.")
        return
    left, right = st.columns(2)
    with left:
        dataset = one_of("Dataset", list(dict.fromkeys(r["dataset"] for r in rows)), "dataset")
    with right:
        ranking = _RANKINGS[one_of("Ranked by", list(_RANKINGS), "ranking")]
    mine = [r for r in rows if (r["dataset"], r["ranking"]) == (dataset, ranking)]
    top = max((v for r in mine for v in r["kl"]), default=0.0)
    examples([heatmap(r, top) for r in sorted(mine, key=lambda r: r["rank"])], top, "nats", "kl_examples")


def _every_token(result: Result) -> None:
    st.markdown("Every input token that was read; quantities speak of the prediction made at it, in nats.")
    paged_table(result, "tokens", "kl_tokens", picks=("dataset", "role"))
