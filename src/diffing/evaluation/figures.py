"""The figure of a leaderboard."""

import json
from typing import Any

from diffing.display.colours import SERIES
from diffing.evaluation.leaderboard import Leaderboard, over_seeds
from diffing.evaluation.summing import mean_score

_ROW = 0.72
_SYMBOLS = ("circle", "square", "triangle-up", "star", "cross", "pentagon", "x")


def figures(board: Leaderboard) -> dict[str, Any]:
    """`tokens`: average precision by method and organism; nothing where no method ranks tokens."""
    import plotly.graph_objects as go

    groups = [g for g in over_seeds(board.rows) if g[0].role == "organism"]
    scored = [(g, s) for g in groups if (s := mean_score(g, "tokens")).value is not None]
    if not scored:
        return {}
    methods = list(dict.fromkeys(g[0].method for g, _ in scored))[::-1]
    pairs = list(dict.fromkeys(g[0].pair for g, _ in scored))
    figure = go.Figure()
    for place, pair in enumerate(pairs):
        mine = [(g, s) for g, s in scored if g[0].pair == pair]
        y = [methods.index(g[0].method) + _ROW * (0.5 - (place + 0.5) / len(pairs)) for g, _ in mine]
        x = [s.value for _, s in mine]
        colour, symbol = SERIES[place % len(SERIES)], _SYMBOLS[place % len(_SYMBOLS)]
        above = [(s.high or s.value or 0) - (s.value or 0) for _, s in mine]
        below = [(s.value or 0) - (s.low or s.value or 0) for _, s in mine]
        figure.add_scatter(
            x=x, y=y, mode="markers", name=pair, legendgroup=pair,
            marker={"color": colour, "symbol": symbol, "size": 9},
            error_x={"type": "data", "array": above, "arrayminus": below, "thickness": 1, "width": 0},
            text=[g[0].method for g, _ in mine],
        )  # fmt: skip
        nulls = [mean_score(g, "tokens", of_null=True).value for g, _ in mine]
        figure.add_scatter(
            x=nulls, y=y, mode="markers", showlegend=False, legendgroup=pair, name=f"{pair}, on the null",
            marker={"color": colour, "symbol": "diamond-open", "size": 8},
        )  # fmt: skip
    ticks = {"tickvals": list(range(len(methods))), "ticktext": methods}
    height = 90 + 26 * len(methods) * max(2, len(pairs) // 2)
    figure.update_layout(
        xaxis_title="average precision for domain tokens", yaxis=ticks, xaxis_type="log", height=height
    )
    return {"tokens": json.loads(figure.to_json() or "{}")}
