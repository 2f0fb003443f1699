"""What the report, the dashboard and the terminal show of a `kl` result."""

from typing import Any

from diffing.core.blocks import Block, Figure, Heading, Heatmap, HeatmapList, HeatToken, Paragraph, Section, Table
from diffing.core.result import Result

_SHOWN_EXAMPLES = 8
_SHOWN_TOKENS = 15
_HEADLINE_TOKENS = 8


def section(result: Result) -> Section:
    """The method's section of the report."""
    return Section("Per-token KL divergence", (*numbers(result), *_tokens(result), *_examples(result)))


def headline(result: Result) -> Section:
    """What the terminal prints: numbers per dataset, tokens and positions that moved most."""
    return Section(
        "Per-token KL divergence",
        (_dataset_table(result), _risen_table(result, _HEADLINE_TOKENS), _position_lines(result), *_peak_table(result)),
    )


def _dataset_table(result: Result) -> Table:
    rows = result.table("datasets").to_pylist()
    by_key = {(r["dataset"], r["metric"]): r for r in rows}
    datasets = list(dict.fromkeys(r["dataset"] for r in rows))
    lines = []
    for name in datasets:
        kl, nll, agree = (by_key.get((name, m)) for m in ("kl", "delta_nll", "top1_agree"))
        assert kl is not None
        assert agree is not None
        lines.append(
            (
                name, kl["n_sequences"], kl["n_tokens"], interval(kl), kl["median"], kl["p99"],
                interval(nll) if nll else None, interval(agree), kl["null"],
            )
        )  # fmt: skip
    columns = (
        "dataset",
        "documents",
        "tokens",
        "mean KL [95 %]",
        "median",
        "p99",
        "ΔNLL [95 %]",
        "top-1 agree",
        "noise",
    )
    return Table(
        columns, tuple(lines), "Nats per token; noise: mean KL of the base model against itself in another batch shape."
    )


def interval(row: dict[str, Any]) -> str:
    """`mean [low, high]` to three significant digits."""
    bounds = "" if row["low"] is None else f" [{_digits(row['low'])}, {_digits(row['high'])}]"
    return f"{_digits(row['mean'])}{bounds}"


def _digits(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def numbers(result: Result) -> list[Block]:
    """How much changed, and where: by dataset, position and role."""
    roles = [r for r in result.table("roles").to_pylist() if r["role"] != "text"]
    blocks: list[Block] = [
        Heading("How much changed, and where"),
        Paragraph(
            "KL(finetuned ‖ base) of the next-token distributions at every input token. ΔNLL is negative where "
            "finetuning made the actual next token likelier."
        ),
        _dataset_table(result),
        Figure(
            "distribution",
            "Share of tokens by KL",
            "Histogram of per-token KL on a logarithmic axis, one line per dataset.",
        ),
        Figure(
            "positions", "Mean KL by position", "Mean KL at each input position with a 95 % band, one line per dataset."
        ),
    ]
    if roles:
        rows = tuple(
            (
                r["dataset"],
                r["role"],
                "template" if r["is_template"] else "content",
                r["n_tokens"],
                interval({"mean": r["mean_kl"], **r}),
            )
            for r in roles
        )
        blocks.append(
            Table(
                ("dataset", "role", "tokens are", "tokens", "mean KL [95 %]"), rows, "By chat role of the input token."
            )
        )
    return blocks


def _tokens(result: Result) -> list[Block]:
    blocks: list[Block] = [
        Heading("Which tokens moved"),
        Paragraph(
            "At each position the tokens whose probability rose, and fell, most. Share: positions at which the token "
            "was among them; mean change: of its probability there; part of KL: how much of the mean KL it carries."
        ),
    ]
    rows = result.table("risen_fallen").to_pylist()
    for dataset in dict.fromkeys(r["dataset"] for r in rows):
        for direction in ("risen", "fallen"):
            chosen = [r for r in rows if r["dataset"] == dataset and r["direction"] == direction][:_SHOWN_TOKENS]
            cells = tuple((r["token"], r["share"], r["mean_change"], r["kl_share"]) for r in chosen)
            columns = ("token", "share of positions", "mean change", "part of KL")
            blocks.append(Table(columns, cells, f"{direction} on {dataset}", ("token",)))
    return blocks


def _risen_table(result: Result, n: int) -> Table:
    rows = result.table("risen_fallen").to_pylist()
    lines = []
    for dataset in dict.fromkeys(r["dataset"] for r in rows):
        cells = [
            "  ".join(
                repr(r["token"])[1:-1]
                for r in rows
                if r["dataset"] == dataset and r["direction"] == d and r["rank"] < n
            )
            for d in ("risen", "fallen")
        ]
        lines.append((dataset, *cells))
    return Table(
        ("dataset", "tokens that rose", "tokens that fell"), tuple(lines), "Tokens whose probability moved most."
    )


def _position_lines(result: Result) -> Table:
    rows = result.table("positions").to_pylist()
    lines = []
    for dataset in dict.fromkeys(r["dataset"] for r in rows):
        mine = [r for r in rows if r["dataset"] == dataset and r["n_sequences"] >= 5] or [
            r for r in rows if r["dataset"] == dataset
        ]
        best = sorted(mine, key=lambda r: -r["mean_kl"])[:5]
        lines.append((dataset, ", ".join(f"{r['position']} ({r['mean_kl']:.2g})" for r in best)))
    return Table(("dataset", "positions with the largest mean KL (nats)"), tuple(lines), "")


def _peak_table(result: Result) -> list[Block]:
    rows = sorted(
        (r for r in result.table("examples").to_pylist() if r["ranking"] == "peak"), key=lambda r: -r["score"]
    )[:5]
    lines = []
    for r in rows:
        at = r["peak"] - r["start"]
        before = "".join(r["tokens"][max(0, at - 10) : at + 1])
        lines.append(
            (
                r["dataset"],
                r["score"],
                "…" + before.replace("\n", "⏎"),
                repr(r["top_base"][at])[1:-1],
                repr(r["top_ft"][at])[1:-1],
            )
        )
    return [
        Table(
            ("dataset", "KL", "after reading", "base says", "finetuned says"), tuple(lines), "Where they differ most."
        )
    ]


def _examples(result: Result) -> list[Block]:
    rows = [r for r in result.table("examples").to_pylist() if r["rank"] < _SHOWN_EXAMPLES]
    blocks: list[Block] = [
        Heading("Where in the text"),
        Paragraph(
            "Each token is coloured by the KL of the prediction made at it. "
            "Choose a token to read both models' predictions."
        ),
    ]
    for ranking, title in (("peak", "largest KL at one token"), ("mean", "largest mean KL")):
        for dataset in dict.fromkeys(r["dataset"] for r in rows):
            mine = [r for r in rows if r["ranking"] == ranking and r["dataset"] == dataset]
            top = max((v for r in mine for v in r["kl"]), default=0.0)
            blocks.append(Heading(f"{dataset}: {title}", 3))
            blocks.append(HeatmapList(tuple(heatmap(r, top) for r in mine), top, "nats"))
    return blocks


def heatmap(row: dict[str, Any], maximum: float) -> Heatmap:
    """An example of the table, coloured by KL."""
    tokens = zip(
        row["tokens"], row["token_ids"], row["kl"], row["delta_nll"], row["top_base"], row["top_ft"], strict=True
    )
    cells = [
        HeatToken(
            text, kl,
            (
                f"{text!r} (id {token_id})", f"KL {kl:.4g} nats",
                *([f"ΔNLL of the next token {nll:+.3g}"] if nll is not None else []),
                f"base predicts {base!r}", f"finetuned predicts {ft!r}",
            ),
        )
        for text, token_id, kl, nll, base, ft in tokens
    ]  # fmt: skip
    return Heatmap(f"document {row['sequence']}, {row['score']:.3g} nats", tuple(cells), maximum, "nats")
