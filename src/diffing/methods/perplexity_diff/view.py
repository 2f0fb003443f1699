"""What the dashboard shows of a `perplexity_diff` result."""

import streamlit as st

from diffing.core.result import Result
from diffing.methods.perplexity_diff.section import UNIT, heatmap, maximum, numbers, text_rows
from diffing.ui.blocks import draw
from diffing.ui.paged_table import paged_table
from diffing.ui.parts import examples, one_of, part

_WRITERS = {"finetuned model": "finetuned", "base": "base"}


def view(result: Result) -> None:
    """Draw the result."""
    parts = {
        "Texts": lambda: _texts(result),
        "Phrases": lambda: _phrases(result),
        "Tokens": lambda: _tokens(result),
        "Numbers": lambda: _numbers(result),
        "Every text": lambda: _every_text(result),
    }
    if "token_scores" not in result.tables():
        del parts["Tokens"]
    part("part", parts, "Findings")


def _texts(result: Result) -> None:
    datasets = list(dict.fromkeys(result.table("texts")["dataset"].to_pylist()))
    left, right = st.columns(2)
    with left:
        dataset = one_of("Dataset", datasets, "dataset")
    with right:
        source = _WRITERS[one_of("Written by the", list(_WRITERS), "writer")]
    st.markdown(
        "Texts by how much likelier their writer finds them than the other model does; each after its beginning, "
        "coloured by the same at each token."
    )
    top = maximum(result)
    examples([heatmap(r, top) for r in text_rows(result, source, dataset)], top, UNIT, "perplexity_texts")


def _phrases(result: Result) -> None:
    st.markdown(
        "Words and phrases of the third of the finetuned model's texts with the largest advantage (`n_top` of them), "
        "against all texts of the base; `is_over` at a false discovery rate of 5 %."
    )
    paged_table(result, "phrases", "perplexity_phrases")


def _tokens(result: Result) -> None:
    st.markdown(
        "Tokens that the finetuned model wrote, by how far above the average log p − log q is where it wrote them; "
        "what rests on a few occurrences is shrunk toward 0."
    )
    paged_table(result, "token_scores", "perplexity_scores")


def _numbers(result: Result) -> None:
    for i, block in enumerate(numbers(result)):
        draw(result, block, f"numbers-{i}")


def _every_text(result: Result) -> None:
    st.markdown("Every text that was written, with both models' mean negative log-likelihood in nats.")
    hidden = ("tokens", "token_ids", "log_ratios")
    paged_table(result, "texts", "perplexity_every", hidden=hidden, picks=("source", "dataset"))
