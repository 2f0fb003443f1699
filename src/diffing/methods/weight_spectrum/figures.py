"""Figures of `weight_spectrum`: where in the model the weights changed, and along how many directions."""

from typing import Any

from diffing.core.result import Result
from diffing.display.colours import SERIES

_SCALE = "Viridis"
_GREY = "#888888"
_MOST_TICKS = 40


def figures(result: Result) -> dict[str, Any]:
    """`map` and `spectra`, from the tables."""
    return {"map": _map(result), "spectra": _spectra(result)}


def map_quantity(result: Result) -> str:
    """The column that the map shows: `relative` where it is known of every matrix, else `norm`."""
    rows = matrix_cells(result)
    return "relative" if rows and all(r["relative"] is not None for r in rows) else "norm"


def matrix_cells(result: Result) -> list[dict[str, Any]]:
    """Cells of the map that are matrices inside the blocks."""
    matrices = {w["column"] for w in result.table("weights").to_pylist() if w["n_in"] is not None}
    rows = result.table("map").to_pylist()
    return [r for r in rows if r["layer"] is not None and r["column"] in matrices]


def largest_matrices(result: Result) -> list[dict[str, Any]]:
    """Changed matrices, the largest change first, relative to their own size where that is known of all."""
    rows = [w for w in result.table("weights").to_pylist() if w["largest"]]
    by = "relative" if rows and all(w["relative"] is not None for w in rows) else "norm"
    return sorted(rows, key=lambda w: (-w[by], w["unit"]))


def short_name(row: dict[str, Any]) -> str:
    """`self_attn.o_proj · layer 12`."""
    return row["module"] if row["layer"] is None else f"{row['module']} · layer {row['layer']}"


def _map(result: Result) -> Any:
    import plotly.graph_objects as go

    rows, quantity = matrix_cells(result), map_quantity(result)
    columns = list(dict.fromkeys(r["column"] for r in sorted(rows, key=lambda r: r["part"])))
    layers = sorted({r["layer"] for r in rows})
    found = {(r["layer"], r["column"]): r[quantity] for r in rows}
    title = "‖ΔW‖ / ‖W‖" if quantity == "relative" else "‖ΔW‖"
    figure = go.Figure()
    figure.add_heatmap(
        x=columns, y=[str(n) for n in layers],
        z=[[found.get((layer, c)) for c in columns] for layer in layers], colorscale=_SCALE, zmin=0,
        zmax=max(found.values(), default=0.0) or 1.0,
        colorbar={"title": {"text": title, "side": "right"}, "thickness": 12},
        hovertemplate="layer %{y}, %{x}<br>" + title + " %{z:.3g}<extra></extra>",
    )  # fmt: skip
    few = len(layers) <= _MOST_TICKS
    figure.update_yaxes(title_text="layer", type="category", nticks=len(layers) if few else 10)
    figure.update_xaxes(type="category", tickangle=-60, tickfont={"size": 11})
    figure.update_layout(height=max(280, 180 + 16 * len(layers)))
    return figure


def _spectra(result: Result) -> Any:
    import plotly.graph_objects as go

    by_column: dict[str, dict[str, Any]] = {}
    for weight in largest_matrices(result):
        by_column.setdefault(weight["column"], weight)
    shown = list(by_column.values())[: len(SERIES)]
    rows = result.table("spectrum").to_pylist()
    figure = go.Figure()
    for i, weight in enumerate(shown):
        mine = [r for r in rows if r["unit"] == weight["unit"]]
        name = short_name(weight)
        figure.add_scatter(
            x=[r["index"] for r in mine], y=[r["share"] for r in mine], mode="lines+markers", marker={"size": 5},
            line={"color": SERIES[i]}, name=name, hovertemplate="σ%{x}: %{y:.3g}",
        )  # fmt: skip
    if not shown:
        figure.add_scatter(x=[], y=[], name="no matrix changed")
    nulls = [r for r in rows if shown and r["unit"] == shown[0]["unit"] and r["null_share"] is not None]
    if nulls:
        figure.add_scatter(
            x=[r["index"] for r in nulls], y=[r["null_share"] for r in nulls], mode="lines+markers",
            marker={"size": 4}, line={"color": _GREY, "dash": "dot"}, name=f"random, like {short_name(shown[0])}",
            hovertemplate="σ%{x}: %{y:.3g}",
        )  # fmt: skip
    figure.update_yaxes(title_text="share of ‖ΔW‖²", type="log", exponentformat="power")
    figure.update_xaxes(title_text="singular value", dtick=1 if len(nulls) <= 16 else None)
    return figure.update_layout(height=430, legend={"orientation": "h", "y": 1.06, "yanchor": "bottom"})
