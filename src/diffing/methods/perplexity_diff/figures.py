"""Figures of `perplexity_diff`: the advantage of each text, and how it runs over a text."""

from typing import Any

import numpy as np

from diffing.core.result import Result
from diffing.display.colours import SERIES

_DASH = {"finetuned": "solid", "base": "dot"}
_LABEL = {"finetuned": "finetuned's texts", "base": "base's texts"}


def figures(result: Result) -> dict[str, Any]:
    """`advantages` and `positions`, from the tables."""
    return {"advantages": _advantages(result), "positions": _positions(result)}


def _advantages(result: Result) -> Any:
    import plotly.graph_objects as go

    rows = result.table("texts").select(["source", "dataset", "advantage", "prefill"]).to_pylist()
    figure = go.Figure()
    for dataset, colour in zip(dict.fromkeys(r["dataset"] for r in rows), SERIES, strict=False):
        for source, dash in _DASH.items():
            mine = [r for r in rows if (r["dataset"], r["source"]) == (dataset, source)]
            mine.sort(key=lambda r: -r["advantage"])
            figure.add_scatter(
                x=[r["advantage"] for r in mine],
                y=(np.arange(len(mine)) + 1) / max(len(mine), 1),
                mode="lines",
                line={"color": colour, "dash": dash, "shape": "vh"},
                name=f"{dataset}: {_LABEL[source]}",
            )
    unit = result.manifest["facts"]["unit"]
    figure.update_layout(xaxis_title=f"advantage of the writer ({unit})", yaxis_title="share of texts at least there")
    return figure


def _positions(result: Result) -> Any:
    import plotly.graph_objects as go

    rows = result.table("positions").to_pylist()
    figure = go.Figure()
    for dataset, colour in zip(dict.fromkeys(r["dataset"] for r in rows), SERIES, strict=False):
        for source, dash in _DASH.items():
            mine = [r for r in rows if (r["dataset"], r["source"]) == (dataset, source)]
            x = [r["position"] + 1 for r in mine]
            group = f"{dataset} {source}"
            if source == "finetuned":
                low = [r["advantage"] if r["low"] is None else r["low"] for r in mine]
                high = [r["advantage"] if r["high"] is None else r["high"] for r in mine]
                figure.add_scatter(
                    x=x + x[::-1], y=high + low[::-1], fill="toself", fillcolor=colour, opacity=0.15, mode="none",
                    hoverinfo="skip", showlegend=False, legendgroup=group,
                )  # fmt: skip
            figure.add_scatter(
                x=x,
                y=[r["advantage"] for r in mine],
                mode="lines",
                line={"color": colour, "dash": dash},
                name=f"{dataset}: {_LABEL[source]}",
                text=[f"{r['n_texts']} texts" for r in mine],
                legendgroup=group,
            )
    figure.update_layout(xaxis_title="new token", yaxis_title="mean advantage of the writer (nats)")
    return figure
