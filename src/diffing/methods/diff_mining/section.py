"""What the report, the dashboard and the terminal show of a `diff_mining` result."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffing.core.blocks import Block, Figure, Heading, Heatmap, HeatmapList, HeatToken, Paragraph, Section, Table
from diffing.core.result import Result
from diffing.display.numbers import number
from diffing.display.windows import window_heatmap

_TITLE = "Diff mining"
_SHOWN_TOKENS = 20
_HEADLINE_TOKENS = 12
_SHOWN_EXAMPLES = 3
_TOPIC_TOKENS = 10
_SIDE_BY_SIDE = 15
_BUCKET_TOKENS = 8
STRENGTH = "nats"
_ORDERS = ("occurrence", "z", "mean", "asymmetry")
_TITLES = {"occurrence": "by occurrence among the K largest", "z": "by z against the null runs"}


def section(result: Result) -> Section:
    """The method's section of the report."""
    return Section(_TITLE, (*_tokens(result), *positions(result), *topics(result), *_examples(result)))


def headline(result: Result) -> Section:
    """What the terminal prints: the first merged tokens of every dataset, in the order that says most."""
    blocks = (_headline_table(result), _strength_table(result), *_topic_table(result))
    return Section(_TITLE, blocks)


def _orderings(result: Result) -> list[dict[str, Any]]:
    return [r for r in result.table("orderings").to_pylist() if r["kind"] == "merged" and r["rank"] < _SHOWN_TOKENS]


def _headline_table(result: Result) -> Table:
    rows = _orderings(result)
    lines = []
    for dataset in dict.fromkeys(r["dataset"] for r in rows):
        for ordering in ("z", "occurrence"):
            mine = [r for r in rows if (r["dataset"], r["ordering"]) == (dataset, ordering)][:_HEADLINE_TOKENS]
            if mine:
                lines.append((dataset, ordering, joined(r["token"] for r in mine)))
    columns = ("dataset", "order", "tokens that the finetuned model prefers")
    return Table(columns, tuple(lines), "Merged over case and leading spaces, first ones first.")


def joined(tokens: Any) -> str:
    """Tokens side by side, quoted as Python would."""
    return " · ".join(repr(t)[1:-1].strip() or repr(t) for t in tokens)


def _strength_table(result: Result) -> Table:
    lines = tuple(
        (r["dataset"], r["n_documents"], r["n_positions"], _interval(r["mean_strength"], r["low"], r["high"]))
        for r in result.table("datasets").to_pylist()
    )
    columns = ("dataset", "documents", "positions", "mean of the K largest D [95 %]")
    return Table(columns, lines, "Nats; how far the tokens that rise most rise.")


def _interval(value: float, low: float | None, high: float | None) -> str:
    return number(value) if low is None or high is None else f"{number(value)} [{number(low)}, {number(high)}]"


def _tokens(result: Result) -> list[Block]:
    options = result.manifest["config"]["diffing"]["method"]
    where = "the output" if options["layer"] is None else f"layer {options['layer']}, read by final norm and head,"
    rows = _orderings(result)
    blocks: list[Block] = [
        Paragraph(
            f"D = log((p + ε)/(q + ε)) at {where} for every token at every position; p finetuned, q base, ε = "
            f"{number(float(options['floor']))}. A token is counted where its D is above 0 and among the K = "
            f"{options['top_k']} largest, and where it is among the K smallest. Tokens that differ in case or leading "
            "spaces alone are one."
        ),
        _strength_table(result),
        Heading("Which tokens"),
        Figure(
            "tokens",
            "The most frequent merged tokens of each dataset: share of positions at which they are among the K "
            "largest, with 95 % intervals over documents",
            "Bars of the share of positions by token, one panel per dataset.",
        ),
    ]
    for dataset in dict.fromkeys(r["dataset"] for r in rows if r["dataset"] != "all"):
        for ordering in _TITLES:
            mine = [r for r in rows if (r["dataset"], r["ordering"]) == (dataset, ordering)]
            blocks += [_ordering_table(mine, dataset, ordering)] if mine else []
    blocks += _orders_table([r for r in rows if r["dataset"] == "all"])
    blocks.append(
        Figure(
            "largest_smallest",
            "Merged tokens on all datasets: a token near the line falls as often as it rises",
            "Scatter of the share of positions among the K largest over that among the K smallest.",
        )
    )
    return blocks


def _ordering_table(rows: Sequence[Mapping[str, Any]], dataset: str, ordering: str) -> Table:
    has_null = any(r["z"] is not None for r in rows)
    lines = tuple(
        (
            r["token"], r["largest"], r["largest_stderr"], r["smallest"], r["mean_difference"], r["positive"],
            *((r["null"], r["z"]) if has_null else ()),
        )
        for r in rows
    )  # fmt: skip
    columns = ("token", "among largest", "± s.e.", "among smallest", "mean D", "D > 0")
    columns = (*columns, "in null runs", "z") if has_null else columns
    return Table(columns, lines, f"{dataset}, {_TITLES[ordering]}.", ("token",))


def _orders_table(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The first tokens of each order side by side."""
    orders = [o for o in _ORDERS if any(r["ordering"] == o for r in rows)]
    columns = [[r["token"] for r in rows if r["ordering"] == o][:_SIDE_BY_SIDE] for o in orders]
    n = min(map(len, columns), default=0)
    lines = tuple((i + 1, *(c[i] for c in columns)) for i in range(n))
    names = tuple(f"by {o}" for o in orders)
    caption = (
        "All datasets: merged tokens by the share of positions among the K largest, by z against the null runs where "
        "there are some, by mean D, and by asymmetry, which is largest minus smallest and has no null."
    )
    return [Table(("rank", *names), lines, caption, names)] if lines else []


def positions(result: Result, dataset: str = "all") -> list[Block]:
    """Where in a text the tokens rise."""
    rows = [r for r in result.table("positions").to_pylist() if r["dataset"] == dataset and r["rank"] < _BUCKET_TOKENS]
    lines = []
    for bucket in dict.fromkeys(r["bucket"] for r in rows):
        mine = [r for r in rows if r["bucket"] == bucket]
        shown = " · ".join(f"{joined([r['token']])} {r['share']:.2f}" for r in mine if r["share"] > 0)
        lines.append((mine[0]["positions"], mine[0]["n_positions"], shown))
    return [
        Heading("At which positions"),
        Figure(
            "positions",
            "Share of positions at which the most frequent merged tokens are among the K largest, by input position",
            "Lines over buckets of input positions, one per token.",
        ),
        Table(("positions", "there are", "merged tokens and their share"), tuple(lines), "The first ones of each."),
    ]


def _topic_table(result: Result) -> list[Table]:
    rows = [r for r in result.table("topics").to_pylist() if r["rank"] < _TOPIC_TOKENS]
    lines = []
    for topic in dict.fromkeys(r["topic"] for r in rows):
        mine = [r for r in rows if r["topic"] == topic]
        lines.append((topic, mine[0]["share"], joined(r["token"] for r in mine)))
    caption = "Tokens that rise at the same positions (non-negative factorisation of sampled positions)."
    return [Table(("topic", "share of D", "tokens"), tuple(lines), caption)] if lines else []


def topics(result: Result) -> list[Block]:
    """What the positions divide into."""
    tables = _topic_table(result)
    return [Heading("Topics"), *tables] if tables else []


def topic_examples(rows: Sequence[Mapping[str, Any]]) -> HeatmapList:
    """Examples of one topic under one legend."""
    top = max((r["score"] for r in rows), default=0.0)
    items = tuple(window_heatmap(r, top, STRENGTH, f"{r['dataset']} {r['sequence']}, {r['score']:.3g}") for r in rows)
    return HeatmapList(items, top, STRENGTH)


def _examples(result: Result) -> list[Block]:
    rows = [r for r in result.table("examples").to_pylist() if r["rank"] < _SHOWN_EXAMPLES]
    if not rows:
        return []
    blocks: list[Block] = [
        Heading("Where in the text"),
        Paragraph(
            "Each token is coloured by the mean of the K largest D at it. Choose a token to read which rise most there."
        ),
    ]
    for dataset in dict.fromkeys(r["dataset"] for r in rows):
        blocks.append(Heading(dataset, 3))
        blocks.append(example_list([r for r in rows if r["dataset"] == dataset]))
    return blocks


def example_list(rows: Sequence[Mapping[str, Any]]) -> HeatmapList:
    """Examples of a dataset under one legend."""
    top = max((v for r in rows for v in r["values"]), default=0.0)
    return HeatmapList(tuple(_heatmap(r, top) for r in rows), top, STRENGTH)


def _heatmap(row: Mapping[str, Any], maximum: float) -> Heatmap:
    cells = zip(row["tokens"], row["token_ids"], row["values"], row["risen"], strict=True)
    tokens = tuple(
        HeatToken(
            text, value, (f"{text!r} (id {i})", f"{number(value)} nats", *([f"rise most: {risen}"] if risen else []))
        )
        for text, i, value, risen in cells
    )
    return Heatmap(f"document {row['sequence']}, {row['score']:.3g} nats", tokens, maximum, STRENGTH)
