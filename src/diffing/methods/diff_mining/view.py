"""What the dashboard shows of a `diff_mining` result."""

import streamlit as st

from diffing.core.result import Result
from diffing.methods.diff_mining.section import example_list, positions, section, topic_examples, topics
from diffing.ui.blocks import draw
from diffing.ui.figures import figure
from diffing.ui.paged_table import paged_table
from diffing.ui.parts import examples, one_of, one_of_many, part


def view(result: Result) -> None:
    """Draw the result."""
    part(
        "part",
        {
            "Tokens": lambda: _tokens(result),
            "Positions": lambda: _positions(result),
            "Topics": lambda: _topics(result),
            "Examples": lambda: _examples(result),
            "Every token": lambda: _every_token(result),
        },
        "Findings",
    )


def _tokens(result: Result) -> None:
    draw(result, section(result).blocks[0], "mining-what")
    for name, caption in (
        ("tokens", "The most frequent merged tokens of each dataset, with 95 % intervals over documents."),
        ("largest_smallest", "A token near the line falls as often as it rises."),
    ):
        with st.expander(caption, expanded=name == "tokens"):
            figure(result, name, caption, caption)
    st.markdown(
        "**occurrence**: share of positions at which a token is among the K largest D; **z**: how far that is above "
        "the null runs; **mean**: mean D; **asymmetry**: largest minus smallest."
    )
    paged_table(result, "orderings", "mining_orderings", picks=("ordering", "dataset", "kind"))


def _positions(result: Result) -> None:
    st.markdown("Which merged tokens rise at which input positions; no positions are left out.")
    datasets = list(dict.fromkeys(result.table("positions")["dataset"].to_pylist()))
    if not datasets:
        st.info("This result holds no positions.")
        return
    for i, block in enumerate(positions(result, one_of_many("Dataset", datasets, "dataset"))):
        draw(result, block, f"mining-positions-{i}")
    paged_table(result, "positions", "mining_positions", hidden=("bucket",), picks=("dataset", "positions"))


def _topics(result: Result) -> None:
    st.markdown("Merged tokens that rise at the same positions, and where in the text each topic is strongest.")
    for i, block in enumerate(topics(result)):
        draw(result, block, f"mining-topics-{i}")
    rows = result.table("topic_examples").to_pylist()
    if not rows:
        st.info("Nothing rises in this result, or no topics were asked for.")
        return
    numbers = sorted({r["unit"] + 1 for r in rows})
    chosen = int(one_of_many("Topic", [str(n) for n in numbers], "topic"))
    found = topic_examples([r for r in rows if r["unit"] + 1 == chosen])
    examples(found.items, found.maximum, found.unit, "mining_topic")
    with st.expander("Every topic's tokens"):
        paged_table(result, "topics", "mining_topics", picks=("topic",))


def _examples(result: Result) -> None:
    st.markdown("Documents by the position at which the mean of the K largest D is largest.")
    rows = result.table("examples").to_pylist()
    if not rows:
        st.info("Nothing rises in this result.")
        return
    dataset = one_of("Dataset", list(dict.fromkeys(r["dataset"] for r in rows)), "dataset")
    found = example_list([r for r in rows if r["dataset"] == dataset])
    examples(found.items, found.maximum, found.unit, "mining_examples")


def _every_token(result: Result) -> None:
    st.markdown("Every vocabulary token, or every group of merged tokens that is among the K largest somewhere.")
    table = one_of("Table", ["merged_tokens", "token_scores"], "tokens_of")
    paged_table(result, table, f"mining_{table}", picks=("dataset",) if table == "merged_tokens" else ())
