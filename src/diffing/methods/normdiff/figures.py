"""Figures of `normdiff`: where in depth, position and data the activations moved."""

from typing import Any

import numpy as np

from diffing.core.result import Result
from diffing.display.colours import SERIES

_DASHES = {"residual": "solid", "attention": "dash", "mlp": "dot"}
_SCALE = "Viridis"
_BINS = 60
_MOST_LABELLED = 40
_MOST_TICKS = 8


def figures(result: Result) -> dict[str, Any]:
    """`layers`, `layer_position`, `layer_dataset` and `distribution`, from the tables."""
    return {
        "layers": _layers(result),
        "layer_position": _layer_position(result),
        "layer_dataset": _layer_dataset(result),
        "distribution": _distribution(result),
    }


def main_site(result: Result) -> str:
    """The site that heat maps show: the residual stream where it was read."""
    sites = set(result.table("datasets")["site"].to_pylist())
    return next(s for s in ("residual", "attention", "mlp") if s in sites)


def _layers(result: Result) -> Any:
    import plotly.graph_objects as go

    rows = [r for r in result.table("datasets").to_pylist() if r["metric"] == "relative"]
    figure = go.Figure()
    names = list(dict.fromkeys(r["dataset"] for r in rows))
    for i, name in enumerate(names):
        for site in dict.fromkeys(r["site"] for r in rows):
            mine = sorted((r for r in rows if (r["dataset"], r["site"]) == (name, site)), key=lambda r: r["layer"])
            _band_and_line(figure, mine, SERIES[i % len(SERIES)], name, site)
    noise = sorted(
        {(r["layer"], r["null"]) for r in rows if r["site"] == main_site(result) and r["null"]}, key=lambda p: p[0]
    )
    if noise:
        line = {"color": "#888888", "dash": "dot"}
        x, y = zip(*noise, strict=True)
        figure.add_scatter(x=x, y=y, mode="lines+markers", line=line, marker={"size": 4}, name="noise")
    figure.update_layout(
        xaxis_title="layer", yaxis_title="mean ‖δ‖ / mean norm", legend={"orientation": "h", "y": 1.12}
    )
    figure.update_yaxes(rangemode="tozero")
    layers = sorted({r["layer"] for r in rows})
    if len(layers) <= _MOST_TICKS:
        figure.update_xaxes(tickvals=layers)
    return figure


def _band_and_line(figure: Any, rows: list[dict[str, Any]], colour: str, name: str, site: str) -> None:
    x, mean = [r["layer"] for r in rows], [r["mean"] for r in rows]
    low = [r["mean"] if r["low"] is None else r["low"] for r in rows]
    high = [r["mean"] if r["high"] is None else r["high"] for r in rows]
    label = name if site == "residual" else f"{name}, {site}"
    if len(x) > 1:
        figure.add_scatter(
            x=x + x[::-1], y=high + low[::-1], fill="toself", fillcolor=colour, opacity=0.15, mode="none",
            hoverinfo="skip", showlegend=False, legendgroup=label,
        )  # fmt: skip
    figure.add_scatter(
        x=x, y=mean, mode="lines+markers", line={"color": colour, "dash": _DASHES[site]}, marker={"size": 6},
        name=label, legendgroup=label, text=[f"{r['n_tokens']:,} tokens" for r in rows],
        error_y=None if len(x) > 1 else {
            "type": "data", "array": [high[0] - mean[0]], "arrayminus": [mean[0] - low[0]], "color": colour,
        },
    )  # fmt: skip


def _layer_position(result: Result) -> Any:
    from plotly.subplots import make_subplots

    site = main_site(result)
    rows = [r for r in result.table("positions").to_pylist() if r["site"] == site]
    names = list(dict.fromkeys(r["dataset"] for r in rows))
    layers = sorted({r["layer"] for r in rows})
    values = np.array([r["mean_relative"] for r in rows])
    top = float(np.percentile(values, 98)) or 1.0
    figure = make_subplots(
        rows=len(names),
        cols=1,
        shared_xaxes=True,
        subplot_titles=names,
        vertical_spacing=0.12 / max(len(names), 1) + 0.03,
    )
    for i, name in enumerate(names, 1):
        mine = {(r["layer"], r["position"]): r["mean_relative"] for r in rows if r["dataset"] == name}
        positions = list(range(max(p for _, p in mine) + 1))
        z = [[mine.get((layer, p)) for p in positions] for layer in layers]
        figure.add_heatmap(
            x=positions, y=[str(n) for n in layers], z=z, coloraxis="coloraxis", row=i, col=1,
            hovertemplate="layer %{y}, position %{x}<br>mean relative difference %{z:.3g}<extra>" + name + "</extra>",
        )  # fmt: skip
        figure.update_yaxes(title_text="layer", type="category", nticks=10, row=i, col=1)
    figure.update_xaxes(title_text="input position", row=len(names), col=1)
    figure.update_layout(
        height=80 + 230 * len(names),
        coloraxis={"colorscale": _SCALE, "cmin": 0, "cmax": top, "colorbar": {"title": "‖δ‖ / norm", "thickness": 12}},
    )
    return figure


def _layer_dataset(result: Result) -> Any:
    import plotly.graph_objects as go

    site = main_site(result)
    rows = [r for r in result.table("datasets").to_pylist() if r["metric"] == "relative" and r["site"] == site]
    names, layers = list(dict.fromkeys(r["dataset"] for r in rows)), sorted({r["layer"] for r in rows})
    found = {(r["layer"], r["dataset"]): r["mean"] for r in rows}
    z = [[found.get((layer, name)) for name in names] for layer in layers]
    figure = go.Figure()
    labelled = len(layers) <= _MOST_LABELLED
    figure.add_heatmap(
        x=names, y=[str(n) for n in layers], z=z, colorscale=_SCALE, zmin=0, zmax=max(found.values()) or 1.0,
        colorbar={"title": "‖δ‖ / norm", "thickness": 12}, texttemplate="%{z:.2g}" if labelled else None,
        hovertemplate="layer %{y}, %{x}<br>mean relative difference %{z:.3g}<extra></extra>",
    )  # fmt: skip
    figure.update_yaxes(title_text="layer", type="category", nticks=len(layers) if labelled else 10)
    figure.update_layout(height=max(260, 120 + 18 * len(layers)))
    return figure


def _distribution(result: Result) -> Any:
    import plotly.graph_objects as go
    from pyarrow.compute import field

    name = result.manifest["facts"]["example_slot"]
    layer, _, site = name.partition("/")
    tokens = result.table("tokens")
    at_slot = (field("layer") == int(layer.removeprefix("layer_"))) & (field("site") == site)
    tokens = tokens.filter(at_slot & field("kept") & field("relative").is_valid())
    relative, dataset = tokens["relative"].to_numpy(), np.array(tokens["dataset"].to_pylist())
    positive = relative[relative > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1e-3, 1.0)
    edges = np.linspace(np.log10(low) - 0.01, np.log10(high) + 0.01, _BINS)
    figure = go.Figure()
    for i, label in enumerate(dict.fromkeys(dataset.tolist())):
        values = relative[dataset == label]
        counts, _ = np.histogram(np.log10(np.maximum(values, low)), edges)
        figure.add_scatter(
            x=10 ** ((edges[:-1] + edges[1:]) / 2), y=counts / max(counts.sum(), 1), mode="lines",
            line={"color": SERIES[i % len(SERIES)], "shape": "hvh"}, name=str(label),
        )  # fmt: skip
    figure.update_layout(
        xaxis_title=f"‖δ‖ / mean norm of a token, {name}", yaxis_title="share of tokens", xaxis_type="log",
        legend={"orientation": "h", "y": 1.12},
    )  # fmt: skip
    return figure
