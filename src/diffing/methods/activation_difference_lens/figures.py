"""Figures of `activation_difference_lens`: sizes by place, coherence by scale, causal effects beside controls."""

from typing import Any

from diffing.core.result import Result
from diffing.display.colours import SERIES
from diffing.methods.activation_difference_lens.words import (
    Row,
    direction_name,
    place_label,
    place_of,
    places_in_order,
)

_GREY = "#888888"
_PANEL = 280
_MOST_PANELS = 8
CHANGES = {
    "toward_base": ("component made the base's", {"symbol": "diamond", "size": 10, "color": SERIES[1]}),
    "random": ("the same along random directions", {"symbol": "circle-open", "size": 8, "color": SERIES[0]}),
    "random_matched": ("random directions, equal size", {"symbol": "x-thin-open", "size": 8, "color": _GREY}),
}


def figures(result: Result) -> dict[str, Any]:
    """`norms`, `scales` and `causal`, from the tables; those without rows are left out."""
    drawn = {"norms": ("positions", _norms), "scales": ("scales", _scales), "causal": ("causal", _causal)}
    return {name: draw(rows) for name, (table, draw) in drawn.items() if (rows := result.table(table).to_pylist())}


def _panels(titles: list[str]) -> Any:
    from plotly.subplots import make_subplots

    n = len(titles)
    figure = make_subplots(rows=n, cols=1, subplot_titles=titles, vertical_spacing=0.36 / n)
    legend = {"orientation": "h", "y": 1 + 0.14 / n, "yanchor": "bottom"}
    return figure.update_layout(height=_PANEL * n + 100, legend=legend).update_xaxes(zeroline=False)


def _by_layer(rows: list[Row]) -> dict[int, list[Row]]:
    layers = list(dict.fromkeys(r["layer"] for r in rows))[:_MOST_PANELS]
    return {layer: [r for r in rows if r["layer"] == layer] for layer in layers}


def _norms(rows: list[Row]) -> Any:
    by_layer = _by_layer(rows)
    figure = _panels([f"layer {layer}" for layer in by_layer])
    datasets = list(dict.fromkeys(r["dataset"] for r in rows))
    for panel, mine in enumerate(by_layer.values(), 1):
        order = places_in_order(mine)
        for i, name in enumerate(datasets):
            here = [r for r in mine if r["dataset"] == name and r["mean_norm_finetuned"] > 0]
            x = [order.index((r["kind"], r["position"])) + 0.2 * (i - (len(datasets) - 1) / 2) for r in here]
            _sizes(figure, here, x, panel, name, SERIES[i % len(SERIES)])
            _chances(figure, here, x, panel, i == 0)
        figure.update_yaxes(title_text="‖δ̄‖ / mean ‖f‖", rangemode="tozero", row=panel, col=1)
        ticks = {"tickvals": list(range(len(order))), "ticktext": [place_label(*p) for p in order]}
        figure.update_xaxes(**ticks, title_text="place", row=panel, col=1)
    return figure


def _sizes(figure: Any, rows: list[Row], x: list[float], panel: int, name: str, colour: str) -> None:
    error = [(r["stderr"] or 0.0) / r["mean_norm_finetuned"] for r in rows]
    hover = [f"{r['token']!r}, {r['n_documents']} documents, explained {r['explained'] or 0:.2f}" for r in rows]
    figure.add_scatter(
        x=x, y=[r["relative"] for r in rows], mode="markers", marker={"size": 9, "color": colour}, name=name,
        error_y={"type": "data", "array": error, "thickness": 1.5, "width": 3}, text=hover, legendgroup=name,
        showlegend=panel == 1, row=panel, col=1,
    )  # fmt: skip


def _chances(figure: Any, rows: list[Row], x: list[float], panel: int, is_first: bool) -> None:
    figure.add_scatter(
        x=x, y=[r["chance"] / r["mean_norm_finetuned"] for r in rows], mode="markers", name="random signs",
        marker={"size": 12, "symbol": "line-ew-open", "color": _GREY}, legendgroup="chance",
        showlegend=panel == 1 and is_first, row=panel, col=1,
    )  # fmt: skip


def _scales(rows: list[Row]) -> Any:
    by_layer = _by_layer(rows)
    figure = _panels([f"layer {layer}" for layer in by_layer])
    datasets = list(dict.fromkeys(r["dataset"] for r in rows))
    for panel, mine in enumerate(by_layer.values(), 1):
        scales = sorted({r["scale"] for r in mine})
        random = {r["scale"]: r["random_coherence"] for r in mine}
        curves = [
            (name, [r for r in mine if (r["dataset"], r["of"]) == (name, "delta")], {"color": SERIES[i % len(SERIES)]})
            for i, name in enumerate(datasets)
        ]
        curves.append(("base's means", [r for r in mine if r["of"] == "base"], {"color": _GREY}))
        for name, chosen, line in curves:
            if chosen:
                values = [_mean([r["coherence"] for r in chosen if r["scale"] == s]) for s in scales]
                _curve(figure, scales, values, panel, name, line)
        dotted = {"color": _GREY, "dash": "dot"}
        _curve(figure, scales, [random[s] for s in scales], panel, "random directions", dotted)
        figure.update_yaxes(title_text="coherence", row=panel, col=1)
        figure.update_xaxes(title_text="scale", type="log", tickvals=scales, row=panel, col=1)
    return figure


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _curve(figure: Any, x: list[float], y: list[float], panel: int, name: str, line: dict[str, str]) -> None:
    figure.add_scatter(
        x=x, y=y, mode="lines+markers", line=line, name=name, legendgroup=name, showlegend=panel == 1, row=panel, col=1,
    )  # fmt: skip


def _causal(rows: list[Row]) -> Any:
    directions = list(dict.fromkeys(place_of(r) for r in rows))[:_MOST_PANELS]
    by_direction = [[r for r in rows if place_of(r) == d] for d in directions]
    figure = _panels([direction_name(mine[0]) for mine in by_direction])
    for panel, mine in enumerate(by_direction, 1):
        texts = list(dict.fromkeys(r["text"] for r in mine))
        for i, (change, (name, marker)) in enumerate(CHANGES.items()):
            here = [r for r in mine if r["change"] == change]
            known = [(r["effect"] if r["low"] is None else r["low"], r["high"] or r["effect"]) for r in here]
            error = {
                "type": "data", "symmetric": False, "thickness": 1.2, "width": 2, "color": marker["color"],
                "array": [h - r["effect"] for (_, h), r in zip(known, here, strict=True)],
                "arrayminus": [r["effect"] - low for (low, _), r in zip(known, here, strict=True)],
            }  # fmt: skip
            figure.add_scatter(
                x=[texts.index(r["text"]) + 0.2 * (i - 1) + 0.03 * r["number"] for r in here],
                y=[r["effect"] for r in here], error_y=error, mode="markers", marker=marker, name=name,
                legendgroup=change, showlegend=panel == 1, row=panel, col=1,
            )  # fmt: skip
        figure.add_hline(y=0, line={"color": _GREY, "width": 1}, row=panel, col=1)
        figure.update_xaxes(tickvals=list(range(len(texts))), ticktext=texts, row=panel, col=1)
        figure.update_yaxes(title_text="Δloss (nats/token)", row=panel, col=1)
    return figure
