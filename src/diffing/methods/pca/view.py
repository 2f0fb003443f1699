"""What the dashboard shows of a `pca` result."""

from typing import Any

import streamlit as st

from diffing.core.blocks import Table
from diffing.core.result import Result
from diffing.display.numbers import number
from diffing.methods.pca.section import (
    ENERGY,
    SCORE,
    component_table,
    example_list,
    main_components,
    readout_table,
    spectra,
)
from diffing.ui.blocks import draw
from diffing.ui.figures import figure
from diffing.ui.paged_table import paged_table
from diffing.ui.parts import examples, one_of, one_of_many, part

_ENDS = {"+ end": "positive", "− end": "negative"}


def view(result: Result) -> None:
    """Draw the result."""
    part(
        "part",
        {
            "Spectrum": lambda: _spectrum(result),
            "Components": lambda: _components(result),
            "Tokens": lambda: _tokens(result),
            "Documents": lambda: _documents(result),
            "Every component": lambda: _every_component(result),
            "Vectors": lambda: _vectors(result),
        },
        "Findings",
    )


def _spectrum(result: Result) -> None:
    rows = main_components(result)
    for i, block in enumerate([*spectra(result), component_table(rows), readout_table(rows)]):
        draw(result, block, f"spectrum-{i}")


def _components(result: Result) -> None:
    st.markdown("What a direction says through the final norm and head, and where it is used.")
    rows = {_name(r): r for r in result.table("components").to_pylist()}
    if not rows:
        st.info("Nothing varies in this result, so that it has no components.")
        return
    row = rows[one_of_many("Component", list(rows), "component")]
    chance = "above" if row["is_above_null"] else "not above"
    st.markdown(
        f"{number(100 * row['share'])} % of the variance (up to here {number(100 * row['cumulative'])} %), "
        f"{chance} chance; cosine with the mean shift {number(row['cosine_with_mean'])}."
    )
    _readouts(result, row)
    _datasets(result, row)
    kind = _ENDS[one_of("Examples at the", list(_ENDS), "end")]
    ends = [r for r in result.table("examples").to_pylist() if (r["kind"], r["unit"]) == (kind, row["unit"])]
    _examples(ends, SCORE, "pca_ends")
    with st.expander("Mean scores of all components by dataset"):
        figure(result, "scores", "Mean score by dataset in units of √λ, with 95 % intervals", "Mean scores by dataset.")


def _name(row: dict[str, Any]) -> str:
    return f"{row['centring']} {row['target']} {row['component']} · layer {row['layer']} {row['site']}"


def _readouts(result: Result, row: dict[str, Any]) -> None:
    mine = [r for r in result.table("readouts").to_pylist() if (r["of"], r["unit"]) == ("component", row["unit"])]
    if not mine:
        return
    ends = [[(r["token"], r["probability"]) for r in mine if r["end"] == end] for end in _ENDS.values()]
    cells = tuple((*plus, *minus) for plus, minus in zip(*ends, strict=True))
    columns = ("read from +", "probability", "read from −", "probability ")
    draw(result, Table(columns, cells, "", ("read from +", "read from −")), "pca-readouts")


def _datasets(result: Result, row: dict[str, Any]) -> None:
    cells = tuple(
        (r["dataset"], r["n_tokens"], r["mean"], r["low"], r["high"], r["mean_square"] ** 0.5, r["frequency"])
        for r in result.table("datasets").to_pylist()
        if r["unit"] == row["unit"]
    )
    columns = ("dataset", "tokens", "mean score", "low", "high", "root mean square", "share beyond 2√λ")
    draw(result, Table(columns, cells, "Scores of tokens by dataset; low and high bound the mean at 95 %."), "pca-sets")


def _tokens(result: Result) -> None:
    st.markdown(
        "Tokens of the text by how far above the average the energy of δ is, within the uncentred components above "
        "chance, when they are read; what rests on a few occurrences is shrunk toward 0."
    )
    paged_table(result, "token_scores", "pca_scores")


def _documents(result: Result) -> None:
    st.markdown("Documents by the largest energy of δ at one token, within the uncentred components above chance.")
    rows = [r for r in result.table("examples").to_pylist() if r["kind"] == "subspace"]
    if not rows:
        st.info("No component exceeds chance, so that no document stands out.")
        return
    dataset = one_of("Dataset", list(dict.fromkeys(r["dataset"] for r in rows)), "dataset")
    _examples([r for r in rows if r["dataset"] == dataset], ENERGY, "pca_documents")


def _examples(rows: list[dict[str, Any]], unit: str, key: str) -> None:
    if not rows:
        st.info("No token lies on this side.")
        return
    found = example_list(sorted(rows, key=lambda r: r["rank"]), unit)
    examples(found.items, found.maximum, found.unit, key)


def _every_component(result: Result) -> None:
    st.markdown("Every component of every decomposition, beside its null.")
    paged_table(result, "spectrum", "pca_spectrum", picks=("target", "centring", "layer"))


def _vectors(result: Result) -> None:
    st.markdown("Components whose vectors were saved; steer along them on the Steer page.")
    paged_table(result, "components", "pca_vectors", hidden=("tensor", "unit"), picks=("target", "centring", "layer"))
