"""What the dashboard shows of a `weight_spectrum` result."""

from typing import Any

import streamlit as st

from diffing.core.blocks import Table
from diffing.core.result import Result
from diffing.display.numbers import number
from diffing.methods.weight_spectrum.figures import short_name
from diffing.methods.weight_spectrum.section import directions, left_out, where
from diffing.ui.blocks import draw
from diffing.ui.paged_table import paged_table
from diffing.ui.parts import one_of_many, part

_ENDS = ("positive", "negative")


def view(result: Result) -> None:
    """Draw the result."""
    part(
        "part",
        {
            "Map": lambda: _blocks(result, "map"),
            "Spectra": lambda: _blocks(result, "spectra"),
            "One matrix": lambda: _matrix(result),
            "Tokens": lambda: _tokens(result),
            "Every weight": lambda: _every_weight(result),
            "Vectors": lambda: _vectors(result),
        },
        "Findings",
    )


def _blocks(result: Result, name: str) -> None:
    for i, block in enumerate(where(result) if name == "map" else directions(result)):
        draw(result, block, f"{name}-{i}")


def _matrix(result: Result) -> None:
    st.markdown("Singular values of one matrix beside chance, and what its output vectors say.")
    weights = {short_name(w): w for w in result.table("weights").to_pylist() if w["largest"]}
    if not weights:
        st.info("No matrix changed in this result.")
        return
    row = weights[one_of_many("Matrix", list(weights), "matrix")]
    st.markdown(
        f"‖ΔW‖ {number(row['norm'])}, relative {number(row['relative'])}; stable rank {number(row['stable_rank'])} "
        f"(random {number(row['null_stable_rank'])}), effective rank {number(row['effective_rank'])} "
        f"(random {number(row['null_effective_rank'])})."
    )
    values = [r for r in result.table("spectrum").to_pylist() if r["unit"] == row["unit"]]
    cells = tuple(
        (r["index"], r["singular_value"], r["share"], r["null_share"], r["cumulative"], r["base_out"], r["base_in"])
        for r in values
    )
    columns = ("", "σ", "share of ‖ΔW‖²", "if random", "so far", "base, output", "base, input")
    caption = "Base: how long the base's own matrix is along the vectors, a random direction being 1."
    draw(result, Table(columns, cells, caption), "matrix-values")
    _readouts(result, row)


def _readouts(result: Result, row: dict[str, Any]) -> None:
    mine = [r for r in result.table("readouts").to_pylist() if r["unit"] == row["unit"]]
    for index in sorted({r["index"] for r in mine}):
        ends = [[(r["token"], r["probability"]) for r in mine if (r["index"], r["end"]) == (index, e)] for e in _ENDS]
        cells = tuple((*plus, *minus) for plus, minus in zip(*ends, strict=True))
        columns = ("read from +", "probability", "read from −", "probability ")
        draw(result, Table(columns, cells, f"Vector {index}.", ("read from +", "read from −")), f"matrix-read-{index}")


def _tokens(result: Result) -> None:
    st.markdown(
        "Tokens by the log of their mean probability over both ends of all output vectors, weighted by singular "
        "values, beside random directions; `null_score` is what these reach, 95th percentile."
    )
    if "token_scores" not in result.tables():
        st.info("No vector was read as tokens.")
        return
    paged_table(result, "token_scores", "weight_spectrum_scores")


def _every_weight(result: Result) -> None:
    st.markdown("Every weight that is compared.")
    paged_table(result, "weights", "weight_spectrum_weights", hidden=("unit", "column"), picks=("part", "kind"))
    for i, block in enumerate(left_out(result)):
        draw(result, block, f"left-out-{i}")


def _vectors(result: Result) -> None:
    st.markdown("Output vectors that were saved; steer along them on the Steer page.")
    paged_table(result, "vectors", "weight_spectrum_vectors", hidden=("tensor", "unit"), picks=("module", "layer"))
