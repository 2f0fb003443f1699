"""What the report, the dashboard and the terminal show of a `pca` result."""

from typing import Any

from diffing.core.blocks import Block, Figure, Heading, HeatmapList, Paragraph, Section, Table
from diffing.core.result import Result
from diffing.display.windows import window_heatmap
from diffing.methods.pca.figures import at_main_slot

_TITLE = "Principal components of the difference"
_SHOWN_COMPONENTS = 3
_SHOWN_EXAMPLES = 3
_SHOWN_DOCUMENTS = 5
_SHOWN_TOKENS = 20
_HEADLINE_COMPONENTS = 4
_HEADLINE_TOKENS = 12
_READ = 6
ENERGY = "times the mean energy"
SCORE = "norm"


def section(result: Result) -> Section:
    """The method's section of the report."""
    blocks = (*spectra(result), *_components(result), *_tokens(result), *_documents(result), *_ends(result))
    return Section(_TITLE, blocks)


def headline(result: Result) -> Section:
    """What the terminal prints: how many directions, how large, and what they say."""
    rows = main_components(result)
    shown = [r for r in rows if r["component"] <= _HEADLINE_COMPONENTS]
    return Section(_TITLE, (space_table(result), component_table(shown), readout_table(shown), _token_line(result)))


def main_components(result: Result) -> list[dict[str, Any]]:
    """Listed components of the headline's layer and target."""
    target = result.manifest["facts"]["main"]["target"]
    return [r for r in at_main_slot(result, "components") if r["target"] == target]


def spectra(result: Result) -> list[Block]:
    """How many directions there are, beside chance."""
    main = result.manifest["facts"]["main"]
    return [
        Paragraph(
            "δ is the finetuned model's activation minus the base model's at the same token. Centred components are "
            "those of its covariance; uncentred ones keep the mean shift. Chance is the 95th percentile of spectra "
            "whose coordinates were shuffled over documents, each by itself; a component is above it when its "
            "eigenvalue exceeds the one of the same rank."
        ),
        Heading("How many directions"),
        space_table(result),
        Figure(
            "spectrum",
            f"Share of variance by component at layer {main['layer']} ({main['site']}), beside chance; both axes "
            "logarithmic",
            "Lines of the share of variance over components, falling, with the dotted spectrum that chance gives.",
        ),
    ]


def space_table(result: Result) -> Table:
    """One line per decomposition."""
    rows = result.table("spaces").to_pylist()
    spectrum = {
        (r["layer"], r["site"], r["target"], r["centring"]): r
        for r in result.table("spectrum").to_pylist()
        if r["component"] == 1
    }
    lines = tuple(
        (
            r["layer"], r["site"], f"{r['centring']} {r['target']}", r["n_tokens"], r["n_above_null"],
            r["share_above_null"], spectrum[r["layer"], r["site"], r["target"], r["centring"]]["share"],
            r["participation_ratio"], r["mean_share"],
        )
        for r in rows
    )  # fmt: skip
    columns = (
        "layer", "site", "of", "tokens", "above chance", "their share", "share of the first", "participation ratio",
        "mean shift",
    )  # fmt: skip
    caption = (
        "Components above chance and their share of the variance; (Σλ)²/Σλ², the number of equal components that would "
        "be as concentrated; ‖mean‖² / mean of squares."
    )
    return Table(columns, lines, caption)


def component_table(rows: list[dict[str, Any]]) -> Table:
    """Size of components, and what they have to do with chance, the mean shift and single coordinates."""
    lines = tuple(
        (
            _name(r), r["share"], r["cumulative"], "yes" if r["is_above_null"] else "no", r["cosine_with_mean"],
            r["n_coordinates"], r["n_tokens_carrying"],
        )
        for r in rows
    )  # fmt: skip
    columns = ("component", "share", "so far", "above chance", "cosine with mean", "coordinates", "tokens")
    caption = (
        "Share of variance and its running sum; how many coordinates of the residual stream make it (1/Σv⁴), and how "
        "many tokens carry it ((Σs²)²/Σs⁴): a component of one coordinate or of a few tokens is an outlier, and says "
        "little of the text."
    )
    return Table(columns, lines, caption)


def readout_table(rows: list[dict[str, Any]], n_read: int = _READ) -> Table:
    """Tokens read from both ends of components."""
    lines = tuple((_name(r), joined(r["positive"][:n_read]), joined(r["negative"][:n_read])) for r in rows)
    caption = "The likeliest tokens that final norm and head read from each end."
    return Table(("component", "tokens of +", "tokens of −"), lines, caption)


def _name(row: dict[str, Any]) -> str:
    return f"{row['centring']} {row['component']}"


def joined(tokens: list[str]) -> str:
    """Tokens side by side, quoted as Python would."""
    return "  ".join(repr(t)[1:-1].strip() or repr(t) for t in tokens)


def _components(result: Result) -> list[Block]:
    return [
        Heading("What they say"),
        component_table(main_components(result)),
        *([readout_table(read)] if (read := [r for r in main_components(result) if r["positive"]]) else []),
        Figure(
            "scores",
            "Mean score by dataset in units of √λ, with 95 % intervals over documents",
            "Dots of the mean score of each component, one colour per dataset, with error bars.",
        ),
    ]


def _tokens(result: Result) -> list[Block]:
    rows = result.table("token_scores").slice(0, _SHOWN_TOKENS).to_pylist()
    cells = tuple((r["token"], r["score"], r["stderr"]) for r in rows if r["score"] > 0)
    return [
        Heading("At which tokens"),
        Paragraph(
            "Energy is the squared length of δ within the uncentred components above chance, divided by its mean over "
            "tokens. Tokens are ranked by how far above the average it is when they are read; what rests on a few "
            "occurrences is shrunk toward 0."
        ),
        Table(("token", "excess", "standard error"), cells, "Excess of the energy.", ("token",)),
    ]


def _token_line(result: Result) -> Table:
    rows = [r for r in result.table("token_scores").slice(0, _HEADLINE_TOKENS).to_pylist() if r["score"] > 0]
    shown = "  ".join(repr(r["token"])[1:-1] for r in rows) or "none"
    return Table(("tokens with most energy above the average",), ((shown,),), "")


def _documents(result: Result) -> list[Block]:
    rows = [r for r in result.table("examples").to_pylist() if r["kind"] == "subspace" and r["rank"] < _SHOWN_DOCUMENTS]
    if not rows:
        return []
    blocks: list[Block] = [Heading("Where in the text"), Paragraph("Choose a token to read its value.")]
    for dataset in dict.fromkeys(r["dataset"] for r in rows):
        blocks.append(Heading(f"{dataset}: most energy at one token", 3))
        blocks.append(example_list([r for r in rows if r["dataset"] == dataset], ENERGY))
    return blocks


def _ends(result: Result) -> list[Block]:
    components = {r["unit"]: r for r in main_components(result) if r["component"] <= _SHOWN_COMPONENTS}
    rows = [r for r in result.table("examples").to_pylist() if r["kind"] != "subspace" and r["rank"] < _SHOWN_EXAMPLES]
    blocks: list[Block] = []
    for unit, component in components.items():
        for end, sign in (("positive", "+"), ("negative", "−")):
            mine = [r for r in rows if (r["unit"], r["kind"]) == (unit, end)]
            if mine:
                blocks.append(Heading(f"{component['centring']} component {component['component']}, {sign} end", 3))
                blocks.append(example_list(mine, SCORE))
    return [Heading("At the ends of the components"), *blocks] if blocks else []


def example_list(rows: list[dict[str, Any]], unit: str) -> HeatmapList:
    """Examples of one ranking under one legend."""
    top = max((r["score"] for r in rows), default=0.0)
    items = tuple(window_heatmap(r, top, unit, f"{r['dataset']} {r['sequence']}, {r['score']:.3g}") for r in rows)
    return HeatmapList(items, top, unit)
