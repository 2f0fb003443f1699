"""Figures of a dictionary: its training, its latents, and what they cause."""

from typing import Any

import numpy as np

from diffing.core.result import Result
from diffing.display.colours import SERIES

TAG_COLOURS = {
    "ft_only": SERIES[1], "stronger_in_ft": SERIES[5], "shared": SERIES[0], "stronger_in_base": SERIES[4],
    "base_only": SERIES[2], "difference": SERIES[0],
}  # fmt: skip
_BINS = 50
_MOST_POINTS = 20_000


def figures(result: Result) -> dict[str, Any]:
    """`training`, `latents`, `norms` (of a pair), `frequency` and `causal`, where there is something to draw."""
    latents = result.table("latents").to_pylist()
    live = [r for r in latents if not r["is_dead"]]
    drawn: dict[str, Any] = {}
    if result.table("training").num_rows:
        drawn["training"] = _training(result.table("training").to_pylist())
    if live:
        is_pair = live[0]["relative_norm"] is not None
        drawn["latents"] = scatter(live) if is_pair else _energies(live)
        if is_pair:
            drawn["norms"] = _norms(live)
        drawn["frequency"] = _frequency(live)
    if result.table("causal").num_rows:
        drawn["causal"] = _causal(result.table("causal").to_pylist())
    return drawn


def _training(rows: list[dict[str, Any]]) -> Any:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, (name, title) in enumerate((("fve", "FVE"), ("l0", "L0"), ("n_dead", "dead latents")), 1):
        for i, seed in enumerate(dict.fromkeys(r["seed"] for r in rows)):
            mine = [r for r in rows if r["seed"] == seed]
            figure.add_scatter(
                x=[r["n_tokens"] for r in mine], y=[r[name] for r in mine], mode="lines", name=f"seed {seed}",
                line={"color": SERIES[i % len(SERIES)]}, legendgroup=str(seed), showlegend=row == 1, row=row, col=1,
            )  # fmt: skip
        figure.update_yaxes(title_text=title, row=row, col=1)
    figure.update_yaxes(range=[max(-0.2, min(r["fve"] for r in rows)), 1], row=1, col=1)
    figure.update_yaxes(rangemode="tozero", row=2, col=1)
    figure.update_yaxes(rangemode="tozero", row=3, col=1)
    figure.update_xaxes(title_text="tokens learned from", row=3, col=1)
    figure.update_layout(height=520, legend={"orientation": "h", "y": 1.08})
    return figure


def scatter(live: list[dict[str, Any]]) -> Any:
    """Relative norm × ν of the errors, one point per live latent, coloured by tag; points carry the latent's number."""
    import plotly.graph_objects as go

    known = [r for r in live if r["nu_error"] is not None][:_MOST_POINTS]
    figure = go.Figure()
    for tag in TAG_COLOURS:
        mine = [r for r in known if r["tag"] == tag]
        if not mine:
            continue
        figure.add_scatter(
            x=[r["relative_norm"] for r in mine], y=[float(np.clip(r["nu_error"], -0.5, 1.5)) for r in mine],
            mode="markers", name=tag, customdata=[r["latent"] for r in mine],
            marker={"color": TAG_COLOURS[tag], "size": 6, "opacity": 0.7},
            text=[_hover(r) for r in mine], hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    figure.add_hline(y=0.2, line={"color": "#888888", "dash": "dot", "width": 1})
    for x in (0.1, 0.4, 0.6, 0.9):
        figure.add_vline(x=x, line={"color": "#888888", "dash": "dot", "width": 1})
    figure.update_xaxes(title_text="relative norm (0 finetuned only, ½ shared, 1 base only)", range=[-0.03, 1.03])
    figure.update_yaxes(title_text="ν of the errors", range=[-0.6, 1.6])
    figure.update_layout(height=460, legend={"orientation": "h", "y": 1.12})
    return figure


def _hover(row: dict[str, Any]) -> str:
    nu = "unknown" if row["nu_reconstruction"] is None else f"{row['nu_reconstruction']:.3g}"
    return (
        f"latent {row['latent']}<br>relative norm {row['relative_norm']:.3g}<br>ν errors {row['nu_error']:.3g}, "
        f"reconstructions {nu}<br>active at {row['frequency']:.2%} of tokens"
    )


def _norms(live: list[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    counts, edges = np.histogram([r["relative_norm"] for r in live], bins=_BINS, range=(0, 1))
    figure = go.Figure()
    figure.add_bar(x=(edges[:-1] + edges[1:]) / 2, y=counts, marker={"color": SERIES[0]}, width=1 / _BINS)
    for x in (0.1, 0.4, 0.6, 0.9):
        figure.add_vline(x=x, line={"color": "#888888", "dash": "dot", "width": 1})
    figure.update_xaxes(title_text="relative norm (0 finetuned only, ½ shared, 1 base only)", range=[0, 1])
    figure.update_yaxes(title_text="live latents", type="log", dtick=1)
    figure.update_layout(height=320, bargap=0)
    return figure


def _energies(live: list[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    shown = live[:_MOST_POINTS]
    figure = go.Figure()
    figure.add_scatter(
        x=[r["frequency"] for r in shown], y=[r["energy_share"] for r in shown], mode="markers",
        customdata=[r["latent"] for r in shown], marker={"color": SERIES[0], "size": 6, "opacity": 0.6},
        text=[f"latent {r['latent']}<br>{r['promoted'][:60]}" for r in shown],
        hovertemplate="%{text}<br>active at %{x:.2%} of tokens<br>%{y:.2%} of the energy<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="share of tokens at which it is active", type="log")
    figure.update_yaxes(title_text="share of the difference's energy", type="log")
    figure.update_layout(height=440)
    return figure


def _frequency(live: list[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    frequency = np.array([r["frequency"] for r in live])
    low = float(np.floor(np.log10(frequency.min())))
    edges = np.linspace(low, 0, _BINS + 1)
    counts, _ = np.histogram(np.log10(frequency), bins=edges)
    figure = go.Figure()
    figure.add_scatter(
        x=10 ** ((edges[:-1] + edges[1:]) / 2), y=counts, mode="lines", line={"color": SERIES[0], "shape": "hvh"},
        fill="tozeroy", showlegend=False,
    )  # fmt: skip
    figure.update_xaxes(title_text="share of tokens at which a latent is active", type="log")
    figure.update_yaxes(title_text="live latents", rangemode="tozero")
    figure.update_layout(height=300)
    return figure


def _causal(rows: list[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    titles = {"ablate": "taken out of the finetuned model", "add": "put into the base"}
    figure = go.Figure()
    for i, (change, title) in enumerate(titles.items()):
        for kind, symbol in (("claimed", "diamond"), ("random", "circle-open")):
            mine = [r for r in rows if (r["change"], r["latents"]) == (change, kind)]
            figure.add_scatter(
                x=[r["dataset"] for r in mine], y=[max(r["kl"], 1e-9) for r in mine], mode="markers",
                marker={"color": SERIES[i], "symbol": symbol, "size": 12 if kind == "claimed" else 8},
                name=f"{kind} latents {title}", offsetgroup=change,
            )  # fmt: skip
    figure.update_yaxes(title_text="KL from the unchanged model, nats", type="log")
    figure.update_layout(height=360, legend={"orientation": "h", "y": 1.3}, scattermode="group")
    return figure
