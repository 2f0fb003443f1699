"""Pages of a dictionary result: scatter with selection, table, one latent, quality, causes, training."""

from collections.abc import Callable
from typing import Any

import pyarrow.compute as pc
import streamlit as st

from diffing.core.blocks import Heading, Paragraph
from diffing.core.result import Result
from diffing.display.latents import section as shown
from diffing.display.numbers import number
from diffing.display.windows import window_heatmap
from diffing.ui.blocks import draw
from diffing.ui.figures import plotly, selectable
from diffing.ui.html_tables import table
from diffing.ui.paged_table import paged_table
from diffing.ui.parts import examples, one_of, part
from diffing.ui.text import paragraph, plain

_MOST_SELECTED = 50
_HIDDEN = ("is_dead", "norm_base_raw", "norm_ft_raw", "beta_ft_error")


def draw_latents(result: Result) -> None:
    """Draw the result, part by part."""
    if result.manifest["facts"].get("is_zero"):
        nothing = shown.section(result, "", "").blocks[1]
        notes = [Heading("Notes"), *(Paragraph(note) for note in result.manifest["notes"])]
        empty = {"Latents": lambda: _blocks(result, [nothing], "nothing"), "Notes": lambda: _blocks(result, notes, "n")}
        part("part", empty, "Findings")
        return
    parts: dict[str, Callable[[], None]] = {
        "Latents": lambda: _latents(result),
        "One latent": lambda: _one_latent(result),
        "Quality": lambda: _blocks(result, [*shown.quality(result), *shown.training(result)], "quality"),
    }
    if result.table("causal").num_rows:
        parts["Causes"] = lambda: _blocks(result, shown.causes(result), "causes")
    if result.table("coactivation").num_rows:
        parts["Together"] = lambda: _together(result)
    part("part", parts, "Findings")


def _blocks(result: Result, blocks: list[Any], key: str) -> None:
    for i, block in enumerate(blocks):
        draw(result, block, f"{key}-{i}")


def _latents(result: Result) -> None:
    if "latents" in result.figure_names():
        st.caption("Select points, by a click, a box or a lasso, to list these latents.")
        data, block = result.figure_data("latents"), shown.scatter(result)
        selected = {_number(c) for c in selectable(data, f"{result.method}-latents", block.alt)}
        paragraph(block.caption, "d-muted")
        if selected:
            _selected(result, selected)
    st.markdown("All latents, the most telling first; filter and sort, then look one up under *One latent*.")
    paged_table(result, "latents", "latent_rows", hidden=_HIDDEN, picks=("tag", "verdict"))


def _number(customdata: Any) -> int:
    """The latent of a selected point; one number, or a list of one."""
    return int(customdata[0] if isinstance(customdata, list) else customdata)


def _selected(result: Result, latents: set[int]) -> None:
    rows = [r for r in result.table("latents").to_pylist() if r["latent"] in latents]
    st.markdown(f"**{len(rows)} selected**")
    table(shown.latent_rows_table(result, rows[:_MOST_SELECTED]))


def _one_latent(result: Result) -> None:
    rows = result.table("latents").to_pylist()
    by_number = {str(r["latent"]): r for r in rows}
    left, _ = st.columns([1, 3])
    order = list(by_number)
    with left:
        chosen = st.selectbox("Latent", order, key="latent", bind="query-params", help="The most telling ones first.")
    row = by_number.get(chosen or order[0], rows[0])
    _facts(row)
    _groups(result, row["latent"])
    _readout(result, row["latent"])
    _examples(result, row)


def _facts(row: dict[str, Any]) -> None:
    cells = {
        "tag": row["tag"] if not row["verdict"] else f"{row['tag']}, {row['verdict']}",
        "active at": f"{row['frequency']:.3%} of tokens",
        "largest": number(row["maximum"]),
        "share of energy": f"{row['energy_share']:.2%}",
    }
    if row["relative_norm"] is not None:
        cells |= {
            "relative norm": number(row["relative_norm"]),
            "decoder norms": f"base {number(row['norm_base'])}, finetuned {number(row['norm_ft'])}",
        }
    for name, title in (
        ("nu_error", "ν errors"),
        ("nu_reconstruction", "ν reconstructions"),
        ("nu_activation", "ν activations"),
    ):
        if row[name] is not None:
            cells[title] = number(row[name])
    if row["other_seed_cosine"] is not None:
        back = "comes back" if row["comes_back"] else "does not come back"
        cells["with another seed"] = f"{back}, cosine {number(row['other_seed_cosine'])}"
    lines = "  ·  ".join(f"**{plain(k)}** {plain(str(v))}" for k, v in cells.items())
    st.markdown(lines)


def _groups(result: Result, latent: int) -> None:
    import plotly.graph_objects as go

    from diffing.display.colours import SERIES

    table = result.table("latent_groups").filter(pc.field("latent") == latent)
    columns = st.columns(2)
    for column, (kind, title) in zip(columns, (("dataset", "dataset"), ("position", "input position")), strict=True):
        rows = table.filter(pc.field("kind") == kind).to_pylist()
        if not rows:
            continue
        figure = go.Figure()
        figure.add_bar(x=[r["group"] for r in rows], y=[r["frequency"] for r in rows], marker={"color": SERIES[0]})
        figure.update_xaxes(title_text=title, type="category")
        figure.update_yaxes(title_text="share of tokens where active", rangemode="tozero")
        figure.update_layout(height=240)
        with column:
            plotly(figure.to_plotly_json(), f"groups_{kind}", f"Bars of how often the latent is active by {title}.")


def _readout(result: Result, latent: int) -> None:
    rows = result.table("latent_tokens").filter(pc.field("latent") == latent).to_pylist()
    for side in ("promoted", "suppressed"):
        tokens = [f"{r['token']!r} {r['probability']:.2g}" for r in rows if r["side"] == side]
        if tokens:
            paragraph(f"{side.capitalize()} by its row: {'   '.join(tokens)}")


def _examples(result: Result, row: dict[str, Any]) -> None:
    rows = result.table("examples").filter(pc.field("unit") == row["latent"]).to_pylist()
    if not rows:
        st.info("No examples were kept of this latent; diffing.method.max_example_latents keeps more.")
        return
    names = {"top": "strongest", "q4": "above ¾ of the maximum", "q3": "½ to ¾", "q2": "¼ to ½", "q1": "below ¼"}
    there = [k for k in names if any(r["kind"] == k for r in rows)]
    kind = one_of("Examples", [names[k] for k in there], "quantile")
    mine = [r for r in rows if names[r["kind"]] == kind]
    maps = [window_heatmap(r, row["maximum"], shown.UNIT, shown.example_title(r)) for r in mine]
    examples(maps, row["maximum"], shown.UNIT, "latent_examples")


def _together(result: Result) -> None:
    st.markdown("Telling latents that are active at the same tokens; lift: how much more often than if independent.")
    paged_table(result, "coactivation", "latent_pairs")
