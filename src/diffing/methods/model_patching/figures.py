"""Figures of `model_patching`: how the choice follows the states through depth, and where texts part."""

from typing import Any

from diffing.core.result import Result
from diffing.display.colours import SERIES
from diffing.methods.model_patching.results import ALL, DIRECTIONS

_EFFECTS = (("upstream", "upstream states"), ("late", "late stack"), ("interaction", "interaction"))
_MOST_TICKS = 8
_LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}


def figures(result: Result) -> dict[str, Any]:
    """`curve`, `interaction` and `positions`, from the tables; none where no texts part."""
    if not result.table("layers").num_rows:
        return {"positions": _positions(result)} if _has_divergence(result) else {}
    return {"curve": _curve(result), "interaction": _interaction(result), "positions": _positions(result)}


def _has_divergence(result: Result) -> bool:
    return any(p is not None for p in result.table("prompts")["position"].to_pylist())


def rows_of_set(result: Result, table: str, dataset: str = ALL) -> list[dict[str, Any]]:
    """Rows of a table by depth, of one dataset or of all together."""
    return sorted((r for r in result.table(table).to_pylist() if r["dataset"] == dataset), key=lambda r: r["layer"])


def _curve(result: Result) -> Any:
    import plotly.graph_objects as go

    rows = rows_of_set(result, "layers")
    figure = go.Figure()
    for direction, colour in zip(DIRECTIONS, SERIES, strict=False):
        mine = [r for r in rows if r["direction"] == direction]
        _band_and_line(figure, mine, ("recovery", "low", "high"), colour, direction)
    figure.add_hline(y=0.5, line={"color": "#888888", "dash": "dot", "width": 1})
    figure.update_layout(yaxis_title="share of the donor's choice", legend=_LEGEND)
    return _depth_axis(figure, rows)


def _interaction(result: Result) -> Any:
    import plotly.graph_objects as go

    rows = rows_of_set(result, "factorial")
    figure = go.Figure()
    for (name, label), colour in zip(_EFFECTS, SERIES, strict=False):
        _band_and_line(figure, rows, (name, f"{name}_low", f"{name}_high"), colour, label)
    figure.add_hline(y=0, line={"color": "#888888", "width": 1})
    figure.update_layout(yaxis_title="logits", legend=_LEGEND)
    return _depth_axis(figure, rows)


def _band_and_line(
    figure: Any, rows: list[dict[str, Any]], columns: tuple[str, str, str], colour: str, name: str
) -> None:
    value, low, high = columns
    rows = [r for r in rows if r[value] is not None]
    x = [r["layer"] for r in rows]
    below = [r[value] if r[low] is None else r[low] for r in rows]
    above = [r[value] if r[high] is None else r[high] for r in rows]
    figure.add_scatter(
        x=x + x[::-1], y=above + below[::-1], fill="toself", fillcolor=colour, opacity=0.15, mode="none",
        hoverinfo="skip", showlegend=False, legendgroup=name,
    )  # fmt: skip
    hover = [f"{r['point']}: {r[value]:.3g}<br>{r['n_prompts']} prompts" for r in rows]
    figure.add_scatter(
        x=x, y=[r[value] for r in rows], mode="lines+markers", line={"color": colour}, marker={"size": 5}, name=name,
        legendgroup=name, text=hover, hovertemplate="%{text}",
    )  # fmt: skip


def _depth_axis(figure: Any, rows: list[dict[str, Any]]) -> Any:
    """Blocks by number, the points before and after them by name; of many blocks not all, lest labels overlap."""
    names = {r["layer"]: r["point"] for r in rows}
    n_blocks = max(names) - 1
    step = -(-n_blocks // _MOST_TICKS)
    if step > 1:
        ticks = {-1: "emb.", **{p: str(p) for p in range(step, n_blocks - 1, step)}, n_blocks + 1: "head"}
    else:
        ticks = {-1: "emb.", **{p: str(p) for p in range(n_blocks)}, n_blocks: "norm", n_blocks + 1: "head"}
    figure.update_xaxes(title_text="states of the donor up to layer", tickvals=list(ticks), tickangle=0)
    return figure.update_xaxes(ticktext=list(ticks.values()), zeroline=False)


def _positions(result: Result) -> Any:
    import plotly.graph_objects as go

    rows = result.table("prompts").to_pylist()
    known = [r["position"] for r in rows if r["position"] is not None]
    labels = [*map(str, range(max(known) + 1)), "never"]
    figure = go.Figure()
    for i, name in enumerate(dict.fromkeys(r["dataset"] for r in rows)):
        mine = ["never" if r["position"] is None else str(r["position"]) for r in rows if r["dataset"] == name]
        figure.add_bar(
            x=labels, y=[mine.count(v) for v in labels], name=name, marker={"color": SERIES[i % len(SERIES)]}
        )
    figure.update_layout(
        xaxis_title="tokens that both wrote before they part", yaxis_title="prompts", barmode="stack", legend=_LEGEND
    )
    step = max(1, len(labels) // _MOST_TICKS)
    ticks = [*range(0, len(labels) - 1 - step // 2, step), len(labels) - 1]
    return figure.update_xaxes(type="category", tickvals=ticks, ticktext=[labels[t] for t in ticks], tickangle=0)
