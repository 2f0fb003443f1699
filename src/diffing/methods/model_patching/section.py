"""What the report, the dashboard and the terminal show of a `model_patching` result."""

from typing import Any

from diffing.core.blocks import Block, Figure, Heading, Heatmap, HeatmapList, HeatToken, Paragraph, Section, Table
from diffing.core.result import Result
from diffing.display.numbers import number
from diffing.methods.model_patching.figures import rows_of_set
from diffing.methods.model_patching.results import ALL, BASE_INTO_FINETUNED

_TITLE = "Patching at the first divergence"
_SHOWN_PROMPTS = 8
_SHOWN_TOKENS = 12
_HEADLINE_TOKENS = 8
_HEADLINE_PROMPTS = 5
_TAIL = 90
_SIDES = {"base": "base", "ft": "finetuned"}


def section(result: Result) -> Section:
    """The method's section of the report."""
    return Section(_TITLE, (*overview(result), *depth(result), *choices(result), *_texts(result)))


def headline(result: Result) -> Section:
    """What the terminal prints: how often texts part, where the choice is made, what is chosen."""
    if not has_patches(result):
        return Section(_TITLE, (Paragraph(_NOTHING), dataset_table(result)))
    tables = (dataset_table(result), factorial_table(result), token_table(result, _HEADLINE_TOKENS))
    return Section(_TITLE, (*tables, _prompt_table(result, _HEADLINE_PROMPTS)))


_NOTHING = "Both models wrote the same text after every prompt, or chose tokens that only one of them knows."


def has_patches(result: Result) -> bool:
    """Whether there was a divergence to patch."""
    return result.table("layers").num_rows > 0


def overview(result: Result) -> list[Block]:
    """How often and where texts part."""
    blocks: list[Block] = [
        Heading("Where the texts part"),
        Paragraph(
            "Both models continue the same prompts, always with the likeliest token. Where their texts first differ, "
            "the difference is the finetuned model's logit of its token minus that of the base's token, in the "
            "finetuned model, less the same in the base."
        ),
        dataset_table(result),
    ]
    if any(r["n_diverged"] for r in result.table("datasets").to_pylist()):
        blocks.append(
            Figure(
                "positions", "Prompts by the number of tokens that both models wrote before their texts part",
                "Bars: number of prompts by position of the first differing token, and those that never differ.",
            )
        )  # fmt: skip
    return blocks if has_patches(result) else [*blocks, Paragraph(_NOTHING)]


def dataset_table(result: Result) -> Table:
    """One line a dataset."""
    rows = tuple(
        (
            r["dataset"], r["n_prompts"], interval(r, "share", "share"), interval(r, "mean_position", "position"),
            r["n_near_ties"], interval(r, "effect", "effect"), interval(r, "half_layer", "half"),
        )
        for r in result.table("datasets").to_pylist()
    )  # fmt: skip
    columns = (
        "dataset",
        "prompts",
        "diverge [95 %]",
        "tokens before",
        "near ties",
        "difference (logits)",
        "half by layer",
    )
    return Table(
        columns, rows,
        "Half by layer: up to which layer the states must be the other model's for half of the difference to follow "
        "them (−1: the embedding).",
    )  # fmt: skip


def interval(row: dict[str, Any], value: str, bounds: str) -> str | None:
    """`mean [low, high]`, None where it is not known."""
    if row[value] is None:
        return None
    low, high = row[f"{bounds}_low"], row[f"{bounds}_high"]
    return number(row[value]) + ("" if low is None else f" [{number(low)}, {number(high)}]")


def depth(result: Result) -> list[Block]:
    """The layer curve and the factorial."""
    if not has_patches(result):
        return []
    return [
        Heading("Where in depth the choice is made"),
        Paragraph(
            "All states up to a layer, at every token read so far, are replaced by the other model's, and the rest of "
            "the model goes on from there. At 0 the receiving model keeps its choice, at 1 the donor's has come over. "
            "The gap between the two directions is the interaction, divided by the difference."
        ),
        Figure(
            "curve", "Share of the donor's choice that follows its states, by layer, with 95 % bands over prompts",
            "Two lines over layers from the embedding to the head, rising from about 0 to 1, one for each direction.",
        ),
        Heading("Upstream states and late stack", 3),
        factorial_table(result),
        Figure(
            "interaction", "Main effects of upstream states and late stack, and their interaction, by layer",
            "Three lines over layers in logits: the upstream effect rises, the late effect falls, the interaction "
            "is what both do beyond their sum.",
        ),
    ]  # fmt: skip


def factorial_table(result: Result, dataset: str = ALL) -> Table:
    """The 2 × 2 at the headline's layer, main effects, interaction."""
    layer = result.manifest["facts"]["layer"]
    row = next((r for r in rows_of_set(result, "factorial", dataset) if r["layer"] == layer), None)
    if row is None:
        return Table(("upstream states", "base's late stack", "finetuned late stack"), ())
    return Table(
        ("upstream states", "base's late stack", "finetuned late stack"),
        (("base's", row["base_base"], row["base_ft"]), ("finetuned", row["ft_base"], row["ft_ft"])),
        f"Mean logit difference of the two tokens after layer {layer}, {row['n_prompts']} prompts. "
        f"Upstream {interval(row, 'upstream', 'upstream')}, late {interval(row, 'late', 'late')}, interaction "
        f"{interval(row, 'interaction', 'interaction')}; share upstream {interval(row, 'upstream_share', 'share')}.",
    )


def curve_table(result: Result, dataset: str) -> Table:
    """Recovery in both directions, a line for each point."""
    rows = rows_of_set(result, "layers", dataset)
    halves = [[r for r in rows if (r["direction"] == BASE_INTO_FINETUNED) == is_base] for is_base in (True, False)]
    lines = tuple((b["point"], _recovery(b), _recovery(f)) for b, f in zip(*halves, strict=True))
    return Table(("states up to", "base into finetuned [95 %]", "finetuned into base [95 %]"), lines)


def _recovery(row: dict[str, Any]) -> str | None:
    return interval({"recovery": row["recovery"], "r_low": row["low"], "r_high": row["high"]}, "recovery", "r")


def choices(result: Result) -> list[Block]:
    """What the models choose where they part."""
    if not result.table("divergence_tokens").num_rows:
        return []
    return [Heading("What they choose there"), token_table(result, _SHOWN_TOKENS)]


def token_table(result: Result, n: int) -> Table:
    """Tokens that either model chooses more often than the other, side by side."""
    rows = result.table("divergence_tokens").to_pylist()
    more = [r for r in rows if r["n_ft"] > r["n_base"]][:n]
    less = [r for r in reversed(rows) if r["n_ft"] < r["n_base"]][:n]
    lines = tuple(
        (*_counts(more[i] if i < len(more) else None), *_counts(less[i] if i < len(less) else None))
        for i in range(max(len(more), len(less)))
    )
    columns = ("finetuned chooses", "it", "base ", "base chooses", "it ", "finetuned ")
    return Table(
        columns, lines, "Prompts in which a model chose the token where the texts part.", (columns[0], columns[3])
    )


def _counts(row: dict[str, Any] | None) -> tuple[str | int | None, ...]:
    if row is None:
        return ("", None, None)
    own, other = max(row["n_ft"], row["n_base"]), min(row["n_ft"], row["n_base"])
    return (row["token"], own, other)


def ranked_prompts(result: Result) -> list[dict[str, Any]]:
    """Prompts by the size of the difference; those that never part, or were not patched, at the end."""
    return sorted(result.table("prompts").to_pylist(), key=lambda r: -(r["effect"] or 0.0))


def _texts(result: Result) -> list[Block]:
    if not has_patches(result):
        return []
    rows = [r for r in ranked_prompts(result) if r["is_compared"]][:_SHOWN_PROMPTS]
    top = max(0.0, *(r["effect"] for r in rows))
    items = tuple(_heatmap(r, top) for r in rows)
    return [
        Heading("Largest differences"),
        Paragraph(
            "What both had read, and how each goes on. The tokens at which they part are coloured by the difference."
        ),
        HeatmapList(items, top, "logits"),
    ]


def _heatmap(row: dict[str, Any], top: float) -> Heatmap:
    """The end of a prompt and both texts, with the tokens at which they part."""
    read = row["prompt"] + row["base_text"][: row["base_start"]]
    pieces = [HeatToken("…" + read[-_TAIL:], None)]
    for side, name in _SIDES.items():
        text, start, end = row[f"{side}_text"], row[f"{side}_start"], row[f"{side}_end"]
        margin = f"margin {number(row[f'margin_{side}'])} logits"
        hover = (repr(row[f"{side}_token"]), f"difference {number(row['effect'])} logits", margin)
        pieces += [
            HeatToken(f"\n— {name}: ", None),
            HeatToken(text[start:end], max(0.0, row["effect"]), hover),
            HeatToken(text[end:], None),
        ]
    title = f"{row['dataset']}, document {row['document']}, {number(row['effect'])} logits"
    return Heatmap(title, tuple(p for p in pieces if p.text), top, "logits")


def _prompt_table(result: Result, n: int) -> Table:
    lines = []
    for r in [r for r in ranked_prompts(result) if r["is_compared"]][:n]:
        read = r["prompt"] + r["base_text"][: r["base_start"]]
        base, ft = r["base_text"][r["base_start"] :], r["ft_text"][r["ft_start"] :]
        lines.append((r["dataset"], r["effect"], *(" ".join(t.split()) for t in ("…" + read[-_TAIL:], base, ft))))
    return Table(
        ("dataset", "difference", "after", "base goes on", "finetuned goes on"),
        tuple(lines), "Texts from the token at which they part, by the size of the difference in logits.",
    )  # fmt: skip
