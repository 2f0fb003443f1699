"""Figures of `pca`: spectra beside their nulls, and where in the data each component is used."""

from typing import Any

from diffing.core.result import Result
from diffing.display.colours import SERIES

_GREY = "#888888"
_TICKS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
_TITLES = {"centred": "centred: the covariance", "uncentred": "uncentred: the mean shift kept"}


def figures(result: Result) -> dict[str, Any]:
    """`spectrum` and `scores`, at the headline's layer, from the tables."""
    return {"spectrum": _spectrum(result), "scores": _scores(result)}


def at_main_slot(result: Result, table: str) -> list[dict[str, Any]]:
    """Rows of a table at the headline's layer and site."""
    main = result.manifest["facts"]["main"]
    rows = result.table(table).to_pylist()
    return [r for r in rows if (r["layer"], r["site"]) == (main["layer"], main["site"])]


def _panels(height: int, spacing: float) -> Any:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=1, subplot_titles=list(_TITLES.values()), vertical_spacing=spacing)
    return figure.update_layout(height=height, legend={"orientation": "h", "y": 1.08, "yanchor": "bottom"})


def _spectrum(result: Result) -> Any:
    rows = at_main_slot(result, "spectrum")
    figure = _panels(640, 0.17)
    for number, centring in enumerate(_TITLES, 1):
        for i, target in enumerate(dict.fromkeys(r["target"] for r in rows)):
            mine = [r for r in rows if (r["target"], r["centring"]) == (target, centring)]
            total = sum(r["eigenvalue"] for r in mine)
            _line(figure, mine, "eigenvalue", total, number, target, {"color": SERIES[i % len(SERIES)]})
            dotted = {"color": _GREY if i == 0 else SERIES[i % len(SERIES)], "dash": "dot"}
            _line(figure, mine, "null_p95", total, number, f"{target}, chance (95 %)", dotted)
        figure.update_yaxes(title_text="share of variance", type="log", exponentformat="power", row=number, col=1)
        figure.update_xaxes(title_text="component", type="log", tickvals=_TICKS, row=number, col=1)
    return figure


def _line(
    figure: Any, rows: list[dict[str, Any]], column: str, total: float, panel: int, name: str, line: dict[str, str]
) -> None:
    shown = [r for r in rows if r[column] > 0]
    figure.add_scatter(
        x=[r["component"] for r in shown], y=[r[column] / total for r in shown] if total > 0 else [],
        mode="lines+markers" if len(shown) < 30 else "lines", line=line, marker={"size": 4}, name=name,
        legendgroup=name, showlegend=panel == 1, row=panel, col=1, hovertemplate="component %{x}: %{y:.3g}",
    )  # fmt: skip


def _scores(result: Result) -> Any:
    target = result.manifest["facts"]["main"]["target"]
    values = {r["unit"]: r["eigenvalue"] for r in result.table("components").to_pylist()}
    rows = [r for r in at_main_slot(result, "datasets") if r["target"] == target]
    figure = _panels(560, 0.2)
    names = list(dict.fromkeys(r["dataset"] for r in rows))
    for panel, centring in enumerate(_TITLES, 1):
        for i, name in enumerate(names):
            mine = [r for r in rows if (r["centring"], r["dataset"]) == (centring, name)]
            shift = 0.16 * (i - (len(names) - 1) / 2)
            _points(figure, mine, values, panel, name, SERIES[i % len(SERIES)], shift)
        figure.update_yaxes(title_text="mean score / √λ", row=panel, col=1)
        figure.update_xaxes(title_text="component", tick0=1, dtick=1, row=panel, col=1)
    return figure


def _points(
    figure: Any, rows: list[dict[str, Any]], values: dict[int, float], panel: int, name: str, colour: str, shift: float
) -> None:
    scale = [values[r["unit"]] ** 0.5 for r in rows]
    ends = [[abs((r[k] if r[k] is not None else r["mean"]) - r["mean"]) for r in rows] for k in ("low", "high")]
    low, high = ([e / s for e, s in zip(end, scale, strict=True)] for end in ends)
    figure.add_scatter(
        x=[r["component"] + shift for r in rows], y=[r["mean"] / s for r, s in zip(rows, scale, strict=True)],
        error_y={"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 1.5, "width": 2},
        mode="markers", marker={"size": 7, "color": colour}, name=name, legendgroup=name, showlegend=panel == 1,
        row=panel, col=1, hovertemplate="%{y:.3g}", text=[f"{r['n_tokens']:,} tokens" for r in rows],
    )  # fmt: skip
