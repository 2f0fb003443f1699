"""What the report, the dashboard and the terminal show of a `normdiff` result."""

from typing import Any

from diffing.core.blocks import Block, Figure, Heading, Heatmap, HeatmapList, HeatToken, Paragraph, Section, Table
from diffing.core.result import Result
from diffing.methods.normdiff.figures import main_site

_TITLE = "Activation differences"
_SHOWN_EXAMPLES = 6
_SHOWN_TOKENS = 20
_HEADLINE_TOKENS = 12
RANKINGS = (
    ("relative", "peak", "largest relative difference at one token", "share of the norm"),
    ("relative", "mean", "largest mean relative difference", "share of the norm"),
    ("norm_diff", "peak", "largest ‖δ‖ at one token", "norm"),
    ("cosine", "peak", "largest cosine distance at one token", "distance"),
)


def section(result: Result) -> Section:
    """The method's section of the report."""
    return Section(_TITLE, (*where(result), *numbers(result), *_tokens(result), *_examples(result)))


def headline(result: Result) -> Section:
    """What the terminal prints: where the change sits, at which tokens, in which places."""
    return Section(_TITLE, (_layer_table(result), _dataset_table(result), _token_line(result), _peak_table(result)))


def example_slot(result: Result) -> tuple[int, str]:
    """Layer and site of examples, token ranking and headline."""
    layer, _, site = result.manifest["facts"]["example_slot"].partition("/")
    return int(layer.removeprefix("layer_")), site


def where(result: Result) -> list[Block]:
    """In which layers and at which positions."""
    layer, site = example_slot(result)
    return [
        Paragraph(
            "δ is the finetuned model's activation minus the base model's at the same token. Relative: ‖δ‖ over the "
            "mean of the two norms; noise is what the base model differs from itself by when read in other batches."
        ),
        Heading("In which layers"),
        Figure(
            "layers",
            "Mean relative difference by layer, with 95 % bands",
            "Lines of the mean relative activation difference over the layers, one per dataset, with the noise floor.",
        ),
        Figure(
            "layer_dataset",
            "Mean relative difference by layer and dataset",
            "Heat map of the mean relative activation difference, layers by datasets.",
        ),
        Heading("At which positions"),
        Figure(
            "layer_position",
            "Mean relative difference by layer and input position; no position left out, colours end at the 98th "
            "percentile",
            "Heat map of the mean relative activation difference, layers by input positions, one panel per dataset.",
        ),
        Heading(f"Numbers at layer {layer} ({site})"),
    ]


def numbers(result: Result) -> list[Block]:
    """Numbers at the example layer: by dataset, role and template token."""
    layer, site = example_slot(result)
    blocks: list[Block] = [
        _dataset_table(result),
        Figure(
            "distribution",
            f"Share of tokens by relative difference at layer {layer}",
            "Histogram of the relative activation difference of tokens on a logarithmic axis, one line per dataset.",
        ),
    ]
    roles = [
        r for r in result.table("roles").to_pylist() if (r["layer"], r["site"]) == (layer, site) and r["role"] != "text"
    ]
    if roles:
        cells = tuple(
            (r["dataset"], r["role"], "template" if r["is_template"] else "content", r["n_tokens"], _interval(r))
            for r in roles
        )
        columns = ("dataset", "role", "tokens are", "tokens", "relative [95 %]")
        blocks.append(Table(columns, cells, "By chat role of the token."))
    written = [r for r in result.table("template_tokens").to_pylist() if (r["layer"], r["site"]) == (layer, site)]
    if written:
        cells = tuple((r["dataset"], r["token"], r["n_tokens"], r["mean_relative"], r["mean_cosine"]) for r in written)
        columns = ("dataset", "token", "tokens", "relative", "cosine distance")
        blocks.append(Table(columns, cells, "Tokens that the chat template wrote.", ("token",)))
    return blocks


def _interval(row: dict[str, Any], value: str = "mean_relative") -> str:
    """`mean [low, high]` to three significant digits."""
    bounds = "" if row["low"] is None else f" [{row['low']:.3g}, {row['high']:.3g}]"
    return f"{row[value]:.3g}{bounds}"


def _dataset_table(result: Result) -> Table:
    layer, site = example_slot(result)
    rows = [r for r in result.table("datasets").to_pylist() if (r["layer"], r["site"]) == (layer, site)]
    by_key = {(r["dataset"], r["metric"]): r for r in rows}
    lines = []
    for name in dict.fromkeys(r["dataset"] for r in rows):
        relative, gap, cosine, norm = (by_key.get((name, m)) for m in ("relative", "norm_diff", "cosine", "norm_base"))
        assert relative is not None
        assert gap is not None
        assert norm is not None
        lines.append(
            (
                name, relative["n_sequences"], relative["n_tokens"], _interval(relative, "mean"), relative["median"],
                relative["p99"], _interval(gap, "mean"), norm["mean"], _interval(cosine, "mean") if cosine else None,
                relative["null"],
            )
        )  # fmt: skip
    columns = (
        "dataset", "documents", "tokens", "relative [95 %]", "median", "p99", "‖δ‖ [95 %]", "‖base‖",
        "cosine distance [95 %]", "noise",
    )  # fmt: skip
    return Table(
        columns, tuple(lines), f"At layer {layer} ({site}); noise: relative difference of the base from itself."
    )


def _layer_table(result: Result) -> Table:
    site = main_site(result)
    rows = [r for r in result.table("datasets").to_pylist() if r["metric"] == "relative" and r["site"] == site]
    names, layers = list(dict.fromkeys(r["dataset"] for r in rows)), sorted({r["layer"] for r in rows})
    step = max(1, -(-len(layers) // 12))
    shown = sorted({*layers[::step], layers[-1]})
    found = {(r["layer"], r["dataset"]): r for r in rows}
    lines = tuple(
        (layer, *(found[layer, n]["mean"] if (layer, n) in found else None for n in names), _noise(found, layer, names))
        for layer in shown
    )
    return Table(("layer", *names, "noise"), lines, f"Mean relative difference ‖δ‖ / norm by layer ({site}).")


def _noise(found: dict[tuple[int, str], dict[str, Any]], layer: int, names: list[str]) -> float | None:
    return next((found[layer, n]["null"] for n in names if (layer, n) in found), None)


def _token_line(result: Result) -> Table:
    rows = [r for r in result.table("token_scores").slice(0, _HEADLINE_TOKENS).to_pylist() if r["score"] > 0]
    shown = "  ".join(repr(r["token"])[1:-1] for r in rows) or "none"
    return Table(("tokens at which the state moves most above the average",), ((shown,),), "")


def _peak_table(result: Result) -> Table:
    rows = [r for r in result.table("examples").to_pylist() if (r["metric"], r["ranking"]) == ("relative", "peak")]
    lines = []
    for r in sorted(rows, key=lambda r: -r["score"])[:5]:
        at = r["peak"] - r["start"]
        before = "".join(r["tokens"][max(0, at - 10) : at + 1]).replace("\n", "⏎")
        lines.append((r["dataset"], r["score"], f"…{before}"))
    return Table(("dataset", "relative", "after reading"), tuple(lines), "Where the activations differ most.")


def _tokens(result: Result) -> list[Block]:
    rows = result.table("token_scores").to_pylist()
    cells = tuple((r["token"], r["score"], r["stderr"]) for r in rows[:_SHOWN_TOKENS] if r["score"] > 0)
    return [
        Heading("At which tokens"),
        Paragraph(
            "Tokens of the text by how far above the average the state moves when they are read; what rests on a few "
            "occurrences is shrunk toward 0."
        ),
        Table(("token", "excess", "standard error"), cells, "Excess of the relative difference.", ("token",)),
    ]


def _examples(result: Result) -> list[Block]:
    rows = [r for r in result.table("examples").to_pylist() if r["rank"] < _SHOWN_EXAMPLES]
    blocks: list[Block] = [
        Heading("Where in the text"),
        Paragraph("Choose a token to read its values."),
    ]
    for metric, ranking, title, unit in RANKINGS:
        for dataset in dict.fromkeys(r["dataset"] for r in rows):
            mine = [r for r in rows if (r["metric"], r["ranking"], r["dataset"]) == (metric, ranking, dataset)]
            if mine:
                top = max(v for r in mine for v in coloured(r, metric) if v is not None)
                blocks.append(Heading(f"{dataset}: {title}", 3))
                blocks.append(HeatmapList(tuple(heatmap(r, metric, top, unit) for r in mine), top, unit))
    return blocks


def coloured(row: dict[str, Any], metric: str) -> list[float | None]:
    """Values that colour an example; above its ranked score they are cut: an attention sink would drown the rest."""
    limit = row["score"] if row["ranking"] == "peak" else None
    return [v if v is None or limit is None else min(v, limit) for v in row[metric]]


def heatmap(row: dict[str, Any], metric: str, maximum: float, unit: str) -> Heatmap:
    """An example of the table, coloured by a metric."""
    columns = ("tokens", "token_ids", "relative", "norm_diff", "cosine", "norm_base", "norm_ft")
    cells = [
        HeatToken(text, colour, _hover(text, *values))
        for colour, (text, *values) in zip(
            coloured(row, metric), zip(*(row[c] for c in columns), strict=True), strict=True
        )
    ]
    return Heatmap(f"document {row['sequence']}, {row['score']:.3g}", tuple(cells), maximum, unit)


def _hover(
    text: str,
    token_id: int,
    relative: float | None,
    gap: float | None,
    cosine: float | None,
    norm_base: float | None,
    norm_ft: float | None,
) -> tuple[str, ...]:
    lines = [f"{text!r} (id {token_id})"]
    named = {
        "relative": relative, "‖δ‖": gap, "cosine distance": cosine, "‖base‖": norm_base, "‖finetuned‖": norm_ft,
    }  # fmt: skip
    return (*lines, *(f"{label} {value:.4g}" for label, value in named.items() if value is not None))
