"""What the dashboard shows of an `activation_difference_lens` result."""

import streamlit as st

from diffing.analysis.text_diff import diff_spans
from diffing.core.blocks import Block
from diffing.core.result import Result
from diffing.display.numbers import number
from diffing.methods.activation_difference_lens.section import (
    caused,
    figure_block,
    patchscope_table,
    position_table,
    ranking,
    readout_table,
    sizes,
    strength_table,
)
from diffing.methods.activation_difference_lens.words import Row, direction_name
from diffing.ui.blocks import draw
from diffing.ui.paged_table import paged_table
from diffing.ui.parts import one_of, one_of_many, part
from diffing.ui.text import plain, quote

_OF = {"difference": "delta", "base": "base", "finetuned": "finetuned"}


def view(result: Result) -> None:
    """Draw the result."""
    part(
        "part",
        {
            "Patchscope": lambda: _patchscope(result),
            "Read-outs": lambda: _readouts(result),
            "Tokens": lambda: _tokens(result),
            "Steered texts": lambda: _texts(result),
            "Causal effect": lambda: _causal(result),
            "Norms": lambda: _norms(result),
        },
        "Findings",
    )


def _draw(result: Result, blocks: list[Block], key: str) -> None:
    for i, block in enumerate(blocks):
        draw(result, block, f"{key}-{i}")


def _layer(result: Result, of: str = "layers") -> int:
    layers = [str(layer) for layer in reversed(result.manifest["facts"][of])]
    return int(layers[0] if len(layers) == 1 else one_of_many("Layer", layers, "layer"))


def _patchscope(result: Result) -> None:
    st.markdown(
        "The mean stands, scaled, in place of the last token of prompts that repeat words; shown is what the model "
        "says next in every prompt."
    )
    if not result.table("patchscope").num_rows:
        st.info("This result holds no patchscope.")
        return
    layer, of = _layer(result), _OF[one_of("Mean of", list(_OF), "of")]
    table = patchscope_table(result, layer, of)
    if table is None:
        st.info("This mean is zero at every place, so that it says nothing.")
    _draw(result, [*([table] if table else []), *figure_block(result, "scales")], "patchscope")
    with st.expander("Every token, and every scale"):
        kept = one_of("Table", ["patchscope", "scales"], "table")
        paged_table(result, kept, f"adl_{kept}", picks=("of", "dataset", "kind", "layer"))


def _readouts(result: Result) -> None:
    st.markdown("The mean and its negative through the final norm and head.")
    if not result.table("readouts").num_rows:
        st.info("This result holds no read-outs through the final norm and head.")
        return
    layer, of = _layer(result, "lens_layers"), _OF[one_of("Mean of", list(_OF), "of")]
    table = readout_table(result, layer, of)
    if table is None:
        st.info("This mean is zero at every place, so that it says nothing.")
    else:
        draw(result, table, "readouts")
    with st.expander("Every token"):
        paged_table(result, "readouts", "adl_readouts", picks=("of", "end", "dataset", "layer"))


def _tokens(result: Result) -> None:
    _draw(result, ranking(result)[1:2], "tokens")
    paged_table(result, "token_scores", "adl_scores")


def _texts(result: Result) -> None:
    st.markdown("A multiple of a mean difference's direction is added at every token while a text is written.")
    rows = result.table("texts").to_pylist()
    if not rows:
        st.info("No text was steered: no mean difference is a direction, or steering is switched off.")
        return
    names = list(dict.fromkeys(direction_name(r) for r in rows))
    name = one_of_many("Direction", names, "direction")
    mine = [r for r in rows if direction_name(r) == name]
    strengths = {_strength(r): r["strength"] for r in mine}
    chosen = next((_strength(r) for r in mine if r["is_chosen"]), None)
    strength = strengths[one_of("Strength", list(strengths), "strength", default=chosen)]
    st.caption("Words that stand in one text alone are marked; prompt and random numbers are the same.")
    for row in (r for r in mine if r["strength"] == strength):
        _pair(row)
    with st.expander("Coherence by strength"):
        rows = [r for r in result.table("strengths").to_pylist() if direction_name(r) == name]
        draw(result, strength_table(rows), "strengths")


def _strength(row: Row) -> str:
    return f"{row['strength']:g}{' (chosen)' if row['is_chosen'] else ''}"


def _pair(row: Row) -> None:
    st.markdown(f"**{plain(row['prompt'] or '(empty prompt)')}**")
    marks = diff_spans(row["unsteered"], row["steered"])
    for column, title, key, spans in zip(
        st.columns(2), ("unsteered", "steered"), ("unsteered", "steered"), marks, strict=True
    ):
        with column:
            st.caption(title)
            quote(row[key], [(s.start, s.end) for s in spans])
    st.caption(f"perplexity {number(row['perplexity'])} · repetition {number(row['repetition'])}")


def _causal(result: Result) -> None:
    st.markdown(
        "What the finetuned model loses when the component of its stream along a mean difference is the base's."
    )
    blocks = caused(result)
    if not blocks:
        st.info("No causal effect was measured: no mean difference is a direction, or causal_tokens is 0.")
        return
    _draw(result, blocks[2:], "causal")
    with st.expander("Every control"):
        paged_table(result, "causal", "adl_causal", picks=("text", "change", "layer"))


def _norms(result: Result) -> None:
    _draw(
        result,
        [sizes(result)[0], *figure_block(result, "norms"), position_table(result, _layer(result, "lens_layers"))],
        "norms",
    )
    with st.expander("Every place"):
        paged_table(result, "positions", "adl_positions", hidden=("tensor",), picks=("dataset", "kind", "layer"))
