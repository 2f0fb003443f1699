"""Figures of `kl`: how KL is distributed, and how it runs over positions."""

from typing import Any

import numpy as np

from diffing.core.result import Result
from diffing.display.colours import SERIES

_BINS = 60


def figures(result: Result) -> dict[str, Any]:
    """`distribution` and `positions`, from the tables."""
    return {"distribution": _distribution(result), "positions": _positions(result)}


def _distribution(result: Result) -> Any:
    import plotly.graph_objects as go

    tokens = result.table("tokens").select(["dataset", "kl", "kept"]).to_pydict()
    dataset, kl = np.array(tokens["dataset"]), np.array(tokens["kl"])
    kept = np.array(tokens["kept"], dtype=bool)
    floor = 1e-7
    edges = np.linspace(np.log10(floor), max(np.log10(max(kl.max(initial=0), floor)), -3) + 0.1, _BINS)
    figure = go.Figure()
    highest = 0.0
    for name, colour in zip(dict.fromkeys(tokens["dataset"]), SERIES, strict=False):
        values = np.log10(np.maximum(kl[(dataset == name) & kept], floor))
        counts, _ = np.histogram(values, edges)
        x = 10 ** ((edges[:-1] + edges[1:]) / 2)
        share = counts / max(counts.sum(), 1)
        highest = max(highest, float(share.max()))
        figure.add_scatter(x=x, y=share, mode="lines", line={"color": colour, "shape": "hvh"}, name=str(name))
    if (null := _noise(result)) and null > floor:
        line = {"color": "#888888", "dash": "dot"}
        figure.add_scatter(x=[null, null], y=[0, highest], mode="lines", line=line, name="noise floor")
    figure.update_layout(xaxis_title="KL at a token (nats)", yaxis_title="share of tokens", xaxis_type="log")
    return figure


def _noise(result: Result) -> float | None:
    rows = result.table("datasets").to_pylist()
    value = next((r["null"] for r in rows if r["metric"] == "kl"), None)
    return value if value and value > 0 else None


def _positions(result: Result) -> Any:
    import plotly.graph_objects as go

    rows = result.table("positions").to_pylist()
    figure = go.Figure()
    for name, colour in zip(dict.fromkeys(r["dataset"] for r in rows), SERIES, strict=False):
        mine = [r for r in rows if r["dataset"] == name]
        x = [r["position"] for r in mine]
        low = [r["mean_kl"] if r["low"] is None else r["low"] for r in mine]
        high = [r["mean_kl"] if r["high"] is None else r["high"] for r in mine]
        figure.add_scatter(
            x=x + x[::-1], y=high + low[::-1], fill="toself", fillcolor=colour, opacity=0.15, mode="none",
            hoverinfo="skip", showlegend=False, legendgroup=name,
        )  # fmt: skip
        hover = [f"{r['n_sequences']} documents" for r in mine]
        figure.add_scatter(
            x=x,
            y=[r["mean_kl"] for r in mine],
            mode="lines",
            line={"color": colour},
            name=name,
            text=hover,
            legendgroup=name,
        )
    figure.update_layout(xaxis_title="input position", yaxis_title="mean KL (nats)")
    return figure
