"""What the dashboard shows of a `logit_amplification` result."""

from typing import Any

import streamlit as st

from diffing.core.result import Result
from diffing.display.numbers import number
from diffing.methods.logit_amplification.section import (
    label,
    phrase_table,
    prompt_label,
    source_table,
    telling_texts,
    token_table,
)
from diffing.ui.blocks import draw
from diffing.ui.figures import figure
from diffing.ui.paged_table import paged_table
from diffing.ui.parts import one_of_many, part
from diffing.ui.text import plain, quote

_IN_A_ROW = 4


def view(result: Result) -> None:
    """Draw the result."""
    part(
        "part",
        {
            "Texts": lambda: _texts(result),
            "Phrases": lambda: _phrases(result),
            "Tokens": lambda: _tokens(result),
            "Coherence": lambda: _coherence(result),
            "Every text": lambda: _every_text(result),
        },
        "Findings",
    )


def _texts(result: Result) -> None:
    rows = result.table("texts").to_pylist()
    places = dict.fromkeys((r["prompt_number"], r["sample"]) for r in telling_texts(result))
    names = {_name(rows, place): place for place in places}
    place = names[one_of_many("Prompt, the most telling first", list(names), "prompt")]
    st.caption("Phrases over-represented against the base's texts are marked.")
    mine = [r for r in rows if (r["prompt_number"], r["sample"]) == place and r["source"] != "null"]
    for start in range(0, len(mine), _IN_A_ROW):
        shown = mine[start : start + _IN_A_ROW]
        for column, row in zip(st.columns(len(shown)), shown, strict=True):
            with column:
                _text(row)


def _name(rows: list[dict[str, Any]], place: tuple[int, int]) -> str:
    row = next(r for r in rows if (r["prompt_number"], r["sample"]) == place)
    return f"{prompt_label(row)} · {row['prompt_number'] + 1}.{row['sample'] + 1}"


def _text(row: dict[str, Any]) -> None:
    st.markdown(f"**{plain(label(row))}**")
    quote(row["text"], zip(row["starts"], row["ends"], strict=True))
    st.caption(f"log p − log q {number(row['log_ratio'])} nats/token · −log q {number(row['base_nll'])}")


def _phrases(result: Result) -> None:
    main = result.manifest["facts"]["main_alpha"]
    figure(
        result, "phrases", f"Phrases most over-represented at α = {main:g} against the base's texts",
        "Dots of z by phrase, one colour per α.",
    )  # fmt: skip
    draw(result, phrase_table(result), "amplified-phrases")
    st.markdown(
        "Every phrase that was tested, in every comparison; `null` is the base again with other random numbers."
    )
    paged_table(result, "phrases", "amplified_phrases", picks=("against", "source", "alpha"))


def _tokens(result: Result) -> None:
    draw(result, token_table(result), "amplified-tokens")
    st.markdown("Tokens that differ in case or leading space alone, taken together, in every comparison.")
    paged_table(result, "tokens", "amplified_merged", hidden=("token_ids",), picks=("against", "source", "alpha"))


def _coherence(result: Result) -> None:
    draw(result, source_table(result), "amplified-sources")
    figure(result, "coherence", "Texts by α, with 95 % intervals over prompts", "Lines over the base and each α.")


def _every_text(result: Result) -> None:
    hidden = ("starts", "ends", "values")
    paged_table(result, "texts", "amplified_texts", hidden=hidden, picks=("source", "alpha", "kind"))
