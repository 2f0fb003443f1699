"""Figures of `weight_amplification`: the effect over the factor, the map of the parts, the texts over the factor."""

from typing import Any

from diffing.core.amplification import KINDS, THIRDS
from diffing.core.result import Result
from diffing.display.colours import SERIES
from diffing.methods.weight_amplification.plan import WHOLE

_SCALE = "Viridis"
_LEGEND = {"orientation": "h", "y": 1.08, "yanchor": "bottom"}
_TITLES = {"log_prob_base": "under the base", "log_prob_ft": "under the finetuned model"}


def figures(result: Result) -> dict[str, Any]:
    """`effect`, `texts`, and `map` where there are parts, from the tables."""
    made = {"effect": _effect(result), "texts": _texts(result)}
    return {**made, "map": _map(result)} if has_map(result) else made


def has_map(result: Result) -> bool:
    """Whether parts of the change were tried."""
    return any(part != WHOLE for part in result.table("settings")["part"].to_pylist())


def _effect(result: Result) -> Any:
    from plotly.subplots import make_subplots

    rows = [r for r in result.table("effects").to_pylist() if r["part"] == WHOLE and r["mean"] is not None]
    titles = ["mean KL from the base, logarithmic", "mean ΔNLL of the actual text"]
    figure = make_subplots(rows=2, cols=1, subplot_titles=titles, vertical_spacing=0.14)
    for i, name in enumerate(dict.fromkeys(r["dataset"] for r in rows)):
        for panel, metric in enumerate(("kl", "delta_nll"), 1):
            mine = [r for r in rows if (r["dataset"], r["metric"]) == (name, metric)]
            mine = [r if metric != "kl" or r["mean"] > 0 else {**r, "mean": None} for r in mine]
            _line(figure, mine, SERIES[i % len(SERIES)], name, panel)
    figure.update_yaxes(title_text="nats/token", type="log", exponentformat="power", row=1, col=1)
    figure.update_yaxes(title_text="nats/token", row=2, col=1)
    figure.update_xaxes(title_text="factor", row=2, col=1)
    return figure.update_layout(height=620, legend=_LEGEND)


def _line(figure: Any, rows: list[dict[str, Any]], colour: str, name: str, panel: int) -> None:
    """A line with error bars, broken where a mean is unknown or cannot stand on a logarithmic axis."""
    ends = [[_distance(r["mean"], r[k]) for r in rows] for k in ("low", "high")]
    figure.add_scatter(
        x=[r["factor"] for r in rows], y=[r["mean"] for r in rows], mode="lines+markers", line={"color": colour},
        marker={"size": 6}, name=name, legendgroup=name, showlegend=panel == 1, row=panel, col=1,
        error_y={"type": "data", "symmetric": False, "array": ends[1], "arrayminus": ends[0], "thickness": 1.2},
        hovertemplate="×%{x}: %{y:.3g}",
    )  # fmt: skip


def _distance(mean: float | None, bound: float | None) -> float:
    return 0.0 if mean is None or bound is None else abs(bound - mean)


def _texts(result: Result) -> Any:
    from plotly.subplots import make_subplots

    rows = [r for r in result.table("text_measures").to_pylist() if r["part"] == WHOLE]
    titles = ["mean log-probability of the texts", "share repeated, share of capitals"]
    figure = make_subplots(rows=2, cols=1, subplot_titles=titles, vertical_spacing=0.14)
    for i, (measure, title) in enumerate(_TITLES.items()):
        _line(figure, _of(rows, measure, "all"), SERIES[i], title, 1)
    _line(figure, _of(rows, "repetition", "all"), SERIES[2], "repeated trigrams", 2)
    for i, kind in enumerate(("raw", "chat")):
        _line(figure, _of(rows, "capitals", kind), SERIES[3 + i], f"capitals, {kind}", 2)
    figure.update_traces(showlegend=True)
    figure.update_yaxes(title_text="nats/token", row=1, col=1)
    figure.update_yaxes(title_text="share", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title_text="factor", row=2, col=1)
    return figure.update_layout(height=620, legend=_LEGEND)


def _of(rows: list[dict[str, Any]], measure: str, kind: str) -> list[dict[str, Any]]:
    return sorted((r for r in rows if (r["measure"], r["kind"]) == (measure, kind)), key=lambda r: r["factor"])


def _map(result: Result) -> Any:
    from plotly.subplots import make_subplots

    rows = [r for r in result.table("effects").to_pylist() if r["part"] != WHOLE and r["metric"] == "kl"]
    names = list(dict.fromkeys(r["dataset"] for r in rows))
    present = {r["part"] for r in rows}
    kinds = [k for k in KINDS if any(f"{t} {k}" in present for t in THIRDS)]
    thirds = [t for t in THIRDS if any(f"{t} {k}" in present for k in kinds)]
    figure = make_subplots(rows=len(names), cols=1, subplot_titles=names, vertical_spacing=0.3 / max(len(names), 1))
    top = max((r["relative"] for r in rows if r["relative"] is not None), default=1.0)
    for i, name in enumerate(names, 1):
        found = {r["part"]: r["relative"] for r in rows if r["dataset"] == name}
        z = [[found.get(f"{t} {k}") for t in thirds] for k in kinds]
        figure.add_heatmap(
            x=list(thirds), y=kinds, z=z, coloraxis="coloraxis", texttemplate="%{z:.2g}", row=i, col=1,
            hovertemplate="%{y}, %{x} third: %{z:.3g} of the whole change's KL<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    bar = {"title": "KL / KL of all", "thickness": 12}
    axis = {"colorscale": _SCALE, "cmin": 0, "cmax": top or 1.0, "colorbar": bar}
    return figure.update_layout(height=90 + 60 * len(names) * (len(kinds) + 1), coloraxis=axis)
