"""Figures of `diff_mining`: the first tokens, what rises against what falls, and where in a text."""

from typing import Any

from diffing.core.result import Result
from diffing.display.colours import SERIES
from diffing.display.token_marks import visible

_MOST_PANELS = 4
_BARS = 12
_LINES = 6
_POINTS = 300
_NAMED = 10
_Z_95 = 1.96


def figures(result: Result) -> dict[str, Any]:
    """`tokens`, `largest_smallest` and `positions`, from the tables."""
    return {"tokens": _tokens(result), "largest_smallest": _scatter(result), "positions": _positions(result)}


def _name(token: str) -> str:
    return visible(token.lstrip(" ")) or visible(token)


def _tokens(result: Result) -> Any:
    from plotly.subplots import make_subplots

    datasets = [r["dataset"] for r in result.table("datasets").to_pylist()][:_MOST_PANELS]
    rows = [r for r in result.table("merged_tokens").to_pylist() if r["rank"] < _BARS]
    height = 60 + 300 * max(len(datasets), 1)
    figure = make_subplots(
        rows=max(len(datasets), 1), cols=1, subplot_titles=datasets, vertical_spacing=70 / height, shared_xaxes=False
    )
    for panel, dataset in enumerate(datasets, 1):
        mine = [r for r in rows if r["dataset"] == dataset][::-1]
        error = [_Z_95 * (r["largest_stderr"] or 0.0) for r in mine]
        figure.add_bar(
            y=[_name(r["token"]) for r in mine], x=[r["largest"] for r in mine], orientation="h",
            error_x={"type": "data", "array": error, "thickness": 1.5, "width": 3},
            marker={"color": SERIES[(panel - 1) % len(SERIES)]}, showlegend=False, row=panel, col=1,
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )  # fmt: skip
        if any(r["null"] is not None for r in mine):
            figure.add_scatter(
                y=[_name(r["token"]) for r in mine], x=[r["null"] for r in mine], mode="markers", name="null runs",
                marker={"color": "#888888", "symbol": "line-ns-open", "size": 12}, showlegend=panel == 1, row=panel,
                col=1, hovertemplate="%{y}, null: %{x:.3f}<extra></extra>",
            )  # fmt: skip
        figure.update_yaxes(type="category", dtick=1, row=panel, col=1)
        figure.update_xaxes(rangemode="tozero", row=panel, col=1)
    figure.update_xaxes(title_text="share of positions", row=max(len(datasets), 1), col=1)
    return figure.update_layout(height=height, bargap=0.35)


def _scatter(result: Result) -> Any:
    import plotly.graph_objects as go

    rows = [r for r in result.table("merged_tokens").to_pylist() if r["dataset"] == "all" and r["rank"] < _POINTS]
    top = 1.15 * max([r["smallest"] for r in rows], default=0.0)
    figure = go.Figure()
    figure.add_scatter(
        x=[0, top], y=[0, top], mode="lines", line={"color": "#888888", "dash": "dot"}, name="as often as it falls",
        hoverinfo="skip",
    )  # fmt: skip
    names = [_name(r["token"]) for r in rows]
    figure.add_scatter(
        x=[r["smallest"] for r in rows], y=[r["largest"] for r in rows], mode="markers+text", name="merged token",
        marker={"color": SERIES[0], "size": 6, "opacity": 0.6},
        text=[n if i < _NAMED else "" for i, n in enumerate(names)], textposition="middle right", customdata=names,
        hovertemplate="%{customdata}: among the largest at %{y:.3f}, the smallest at %{x:.3f}<extra></extra>",
    )  # fmt: skip
    return figure.update_layout(
        xaxis={"title": "share of positions among the K smallest", "rangemode": "tozero"},
        yaxis={"title": "share among the K largest", "rangemode": "tozero"},
        height=520,
    )


def _positions(result: Result) -> Any:
    import plotly.graph_objects as go

    rows = [r for r in result.table("positions").to_pylist() if r["dataset"] == "all"]
    everywhere = {r["token"]: r["share_everywhere"] for r in rows}
    leading = sorted(everywhere, key=lambda t: -everywhere[t])[:_LINES]
    buckets = {r["bucket"]: r["positions"] for r in rows}
    figure = go.Figure()
    for token, colour in zip(leading, SERIES, strict=False):
        share = {r["bucket"]: r["share"] for r in rows if r["token"] == token}
        figure.add_scatter(
            x=[buckets[b] for b in sorted(buckets)], y=[share.get(b, 0.0) for b in sorted(buckets)],
            mode="lines+markers", line={"color": colour}, name=_name(token),
        )  # fmt: skip
    return figure.update_layout(
        xaxis={"title": "input position", "type": "category"}, yaxis_title="share among the K largest"
    )
