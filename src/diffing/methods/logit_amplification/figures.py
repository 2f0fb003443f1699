"""Figures of `logit_amplification`: the phrases that stand out, and what α does to the texts."""

from typing import Any

from diffing.core.result import Result
from diffing.display.colours import SERIES

_GREY = "#888888"
_SHOWN = 20
_PANELS = (
    ("log_ratio", "log p − log q (nats/token)", "change: finetuned model against base"),
    ("base_nll", "−log q (nats/token)", "how unlikely the base finds the text"),
    ("repetition", "share repeated", "repetition"),
    ("capitals", "share of letters", "capitals"),
)


def figures(result: Result) -> dict[str, Any]:
    """`phrases` and `coherence`, from the tables."""
    return {"phrases": _phrases(result), "coherence": _coherence(result)}


def top_phrases(result: Result, n: int) -> list[dict[str, Any]]:
    """Phrases over-represented at the main α against the base, without those that are part of a longer one."""
    main = result.manifest["facts"]["main_alpha"]
    rows = [r for r in result.table("phrases").to_pylist() if (r["alpha"], r["against"]) == (main, "base")]
    return [r for r in sorted(rows, key=lambda r: r["rank"]) if r["is_over"] and r["part_of"] is None][:n]


def _phrases(result: Result) -> Any:
    import plotly.graph_objects as go

    shown = [r["phrase"] for r in top_phrases(result, _SHOWN)]
    rows = [r for r in result.table("phrases").to_pylist() if r["against"] == "base" and r["phrase"] in set(shown)]
    figure = go.Figure()
    alphas = sorted({r["alpha"] for r in rows if r["alpha"] is not None})
    for alpha, colour in zip(alphas, _colours(len(alphas)), strict=True):
        mine = {r["phrase"]: r for r in rows if r["alpha"] == alpha}
        _dots(figure, mine, shown, f"α = {alpha:g}", {"color": colour, "size": 9})
    null = {r["phrase"]: r for r in rows if r["source"] == "null"}
    if null:
        marker = {"color": _GREY, "size": 9, "symbol": "diamond-open"}
        _dots(figure, null, shown, "null: the base again", marker)
    if not shown:
        figure.add_scatter(x=[], y=[], mode="markers", showlegend=False)
        figure.add_annotation(text="no phrase is over-represented", showarrow=False, x=0.5, y=0.5, xref="paper",
                              yref="paper")  # fmt: skip
    figure.update_layout(
        height=170 + 24 * max(len(shown), 3), xaxis={"title": "z against the base's texts", "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "automargin": True, "dtick": 1, "categoryorder": "array",
               "categoryarray": shown},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )  # fmt: skip
    return figure


def _dots(figure: Any, rows: dict[str, dict[str, Any]], shown: list[str], name: str, marker: dict[str, Any]) -> None:
    there = [p for p in shown if p in rows]
    hover = [f"{rows[p]['n_texts']} texts, {rows[p]['n_against']} of the base" for p in there]
    figure.add_scatter(
        x=[rows[p]["z"] for p in there], y=there, mode="markers", marker=marker, name=name, text=hover,
        hovertemplate="%{y}: z %{x:.3g} (%{text})",
    )  # fmt: skip


def _colours(n: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(n)]


def _coherence(result: Result) -> Any:
    from plotly.subplots import make_subplots

    rows = result.table("sources").to_pylist()
    figure = make_subplots(rows=len(_PANELS), cols=1, subplot_titles=[t for _, _, t in _PANELS], vertical_spacing=0.09)
    kinds = list(dict.fromkeys(r["kind"] for r in rows))
    labels = ["base", *(f"α = {r['alpha']:g}" for r in rows if r["alpha"] is not None and r["kind"] == kinds[0])]
    for panel, (column, title, _) in enumerate(_PANELS, 1):
        for kind, colour in zip(kinds, SERIES, strict=False):
            mine = [r for r in rows if r["kind"] == kind and r["source"] != "null"]
            _curve(figure, panel, labels, mine, column, _NAMES[kind], colour)
        figure.update_yaxes(title_text=title, row=panel, col=1)
        figure.update_xaxes(type="category", row=panel, col=1)
    return figure.update_layout(height=260 * len(_PANELS), legend={"orientation": "h", "y": 1.04, "yanchor": "bottom"})


_NAMES = {"all": "all prompts", "raw": "raw prompts", "chat": "chat prompts"}


def _curve(
    figure: Any, panel: int, labels: list[str], rows: list[dict[str, Any]], column: str, name: str, colour: str
) -> None:
    known = [(label, r) for label, r in zip(labels, rows, strict=True) if r[column] is not None]
    bars = {}
    if f"{column}_low" in rows[0]:
        ends = [[abs((r[f"{column}_{e}"] or r[column]) - r[column]) for _, r in known] for e in ("high", "low")]
        bars = {"error_y": {"type": "data", "symmetric": False, "array": ends[0], "arrayminus": ends[1], "width": 3,
                            "thickness": 1.2}}  # fmt: skip
    figure.add_scatter(
        x=[label for label, _ in known], y=[r[column] for _, r in known], mode="lines+markers", name=name,
        line={"color": colour}, legendgroup=name, showlegend=panel == 1, row=panel, col=1,
        hovertemplate="%{x}: %{y:.3g}", **bars,
    )  # fmt: skip
