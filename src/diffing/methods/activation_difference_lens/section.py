"""What the report, the dashboard and the terminal show of an `activation_difference_lens` result."""

from diffing.core.blocks import Block, Figure, Heading, Paragraph, Section, Table
from diffing.core.result import Result
from diffing.display.numbers import number
from diffing.display.token_marks import visible
from diffing.methods.activation_difference_lens.words import (
    Row,
    direction_name,
    mean_effect,
    place_label,
    place_of,
)

Places = set[tuple[str, str, int]]
_TITLE = "Activation difference lens"
_SHOWN_TOKENS = 20
_HEADLINE_TOKENS = 12
_HEADLINE_TEXTS = 2
_READ = 8
_READ_EACH_END = 5
_SHOWN_TEXTS = 4
_FIGURES = {
    "norms": (
        "Length of the mean difference over the mean norm of the finetuned stream, with standard error; dashes: what "
        "it would be if each document's difference had a random sign. Places count from the start, and back from the "
        "reply: R−1 is the token before it",
        "Dots of the relative mean difference by place, one colour per dataset, with error bars and chance.",
    ),
    "scales": (
        "Coherence of what is said, by scale: mean over places; dotted: random directions of the same length",
        "Curves of coherence over the scale for mean differences, the base's means and random directions.",
    ),
    "causal": (
        "Change of the finetuned model's loss when its stream's component along a mean difference is made the base's, "
        "and the controls, with 95 % intervals over documents",
        "Points of the loss change by dataset for the mean difference and for random directions.",
    ),
}


def section(result: Result) -> Section:
    """The method's section of the report."""
    return Section(_TITLE, (*sizes(result), *said(result), *ranking(result), *steered(result), *caused(result)))


def headline(result: Result) -> Section:
    """What the terminal prints: sizes, what is said before and at the start of texts, and steered texts."""
    texts = _chosen_texts(result)
    ranked = {place_of(r)[1:] for r in result.table("positions").to_pylist() if r["is_ranked"]}
    blocks = [
        patchscope_table(result, main_layer(result), only=ranked),
        readout_table(result, lens_layer(result), only=ranked),
        _token_line(result),
        *(text_table(mine[:_HEADLINE_TEXTS]) for mine in list(texts.values())[:1]),
        causal_table(result),
    ]
    shown = tuple(b for b in blocks if b is not None and b.rows)
    return Section(_TITLE, shown or (Paragraph("All mean differences are zero."),))


def main_layer(result: Result) -> int:
    """The layer of the report."""
    return result.manifest["facts"]["main_layer"]


def lens_layer(result: Result) -> int:
    """The layer whose logit lens the report shows: the deepest, whose stream the final norm and head are made for."""
    return max(result.manifest["facts"]["lens_layers"])


def figure_block(result: Result, name: str) -> list[Block]:
    """A figure where the result has it."""
    tables = {"norms": "positions", "scales": "scales", "causal": "causal"}
    return [Figure(name, *_FIGURES[name])] if result.table(tables[name]).num_rows else []


def sizes(result: Result) -> list[Block]:
    """How large the mean differences are."""
    return [
        Paragraph(
            "δ̄ is the mean over documents of the finetuned model's activation minus the base model's, at one place: a "
            "position from the start of the text, or a token before a chat's first reply."
        ),
        Heading("How large the mean differences are"),
        *figure_block(result, "norms"),
        position_table(result, main_layer(result)),
    ]


def position_table(result: Result, layer: int) -> Table:
    """Places of a layer."""
    rows = [r for r in result.table("positions").to_pylist() if r["layer"] == layer]
    lines = tuple(
        (
            r["dataset"], place_label(r["kind"], r["position"]), r["token"], r["token_share"], r["n_documents"],
            r["norm"], r["stderr"], r["explained"], r["relative"],
        )
        for r in rows
    )  # fmt: skip
    columns = (
        "dataset", "place", "commonest token", "its share", "documents", "‖δ̄‖", "standard error", "explained share",
        "‖δ̄‖ / ‖f‖",
    )  # fmt: skip
    caption = f"Layer {layer}. Explained share: ‖δ̄‖² over the mean of ‖δ‖²; by chance one over the number of documents."
    return Table(columns, lines, caption, ("commonest token",))


def said(result: Result) -> list[Block]:
    """What the mean differences say."""
    layer = main_layer(result)
    blocks: list[Block] = [Heading("What they say")]
    patchscope = patchscope_table(result, layer)
    if patchscope is not None:
        blocks += [
            Paragraph(
                "Patchscope: δ̄, scaled, stands in place of the last token of prompts that repeat words, and the model "
                "says what comes next. Shown are tokens that are likely in every prompt, first those that are "
                "likelier by the largest factor than for random directions."
            ),
            patchscope,
            *figure_block(result, "scales"),
        ]
    lens = readout_table(result, lens_layer(result))
    if lens is not None:
        blocks += [Paragraph("Logit lens: δ̄ and −δ̄ through the final norm and head."), lens]
    return blocks if len(blocks) > 1 else []


def _rows_of(result: Result, table: str, layer: int, of: str, only: Places | None) -> list[Row]:
    """Rows of a table at a layer; only at some places, unless none is named."""
    rows = [r for r in result.table(table).to_pylist() if (r["layer"], r["of"]) == (layer, of)]
    return [r for r in rows if only is None or place_of(r)[1:] in only]


def patchscope_table(result: Result, layer: int, of: str = "delta", only: Places | None = None) -> Table | None:
    """One line per place: scale and tokens."""
    rows = _rows_of(result, "patchscope", layer, of, only)
    if not rows:
        return None
    lines = []
    for place in dict.fromkeys(place_of(r) for r in rows):
        mine = [r for r in rows if place_of(r) == place]
        shared = [r for r in mine if r["is_shared"]]
        likely = sorted(shared, key=lambda r: -r["probability"] / (r["random"] + 1e-3))[:_READ]
        lines.append((place[1], place_label(*place[2:]), mine[0]["scale"], joined(likely) or "–"))
    columns = ("dataset", "place", "scale", "tokens")
    return Table(columns, tuple(lines), f"Patchscope at layer {layer}.")


def readout_table(result: Result, layer: int, of: str = "delta", only: Places | None = None) -> Table | None:
    """One line per place: tokens of both ends."""
    rows = _rows_of(result, "readouts", layer, of, only)
    if not rows:
        return None
    lines = []
    for place in dict.fromkeys(place_of(r) for r in rows):
        ends = [
            [r for r in rows if (place_of(r), r["end"]) == (place, end)][:_READ_EACH_END]
            for end in ("positive", "negative")
        ]
        lines.append((place[1], place_label(*place[2:]), *(joined(end) for end in ends)))
    return Table(("dataset", "place", "tokens of +", "tokens of −"), tuple(lines), f"Logit lens at layer {layer}.")


def joined(rows: list[Row]) -> str:
    """Tokens side by side, spaces at their start left out where something follows."""
    return " · ".join(visible(r["token"].strip(" ") or r["token"]) for r in rows)


def ranking(result: Result) -> list[Block]:
    """What the ranking of tokens means."""
    if not any(score > 0 for score in result.table("token_scores").slice(0, 1)["score"].to_pylist()):
        return []
    return [
        Heading("Which tokens they say most"),
        Paragraph(
            "Tokens are ranked by how many nats likelier the mean differences make them than the base's means and "
            "random directions do, mean over places. The null is the same for half the difference between two halves "
            "of the documents in the base alone; a token not above it says nothing. Above it: "
            f"{_above(result, _SHOWN_TOKENS)}."
        ),
    ]


def _above(result: Result, n: int) -> str:
    rows = result.table("token_scores").slice(0, 10 * n).to_pylist()
    return joined([r for r in rows if r["score"] > max(0.0, r["null_score"] or 0.0)][:n]) or "none"


def _token_line(result: Result) -> Table:
    return Table(("tokens said most, above the null",), ((_above(result, _HEADLINE_TOKENS),),), "")


def steered(result: Result) -> list[Block]:
    """Steered texts beside others."""
    rows = result.table("strengths").to_pylist()
    if not rows:
        return []
    blocks: list[Block] = [
        Heading("What they steer to"),
        Paragraph(
            "A multiple of δ̄'s direction is added at every token. The strength, in units of the stream's mean norm, is "
            "the largest up to which texts stay as likely under the base and as little repetitive as the tamest 95 % "
            "of unsteered texts; prompt and random numbers are the same on both sides."
        ),
        strength_table(rows),
    ]
    for name, mine in _chosen_texts(result).items():
        blocks += [Heading(f"{name}, strength {mine[0]['strength']:g}", 3), *_text_lines(mine)]
    return blocks


def strength_table(rows: list[Row]) -> Table:
    """Coherence by strength."""
    lines = tuple(
        (
            direction_name(r), r["strength"], r["perplexity"], r["perplexity_limit"], r["repetition"],
            r["repetition_limit"], "chosen" if r["is_chosen"] else "yes" if r["is_within"] else "no",
        )
        for r in rows
    )  # fmt: skip
    columns = ("direction", "strength", "perplexity", "limit", "repetition", "limit ", "coherent")
    return Table(columns, lines, "Medians over texts; repetition: share of trigrams that stood in the text before.")


def _chosen_texts(result: Result) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in result.table("texts").to_pylist():
        if row["is_chosen"]:
            found.setdefault(direction_name(row), []).append(row)
    return found


def _text_lines(rows: list[Row]) -> list[Block]:
    lines: list[Block] = []
    for row in rows[:_SHOWN_TEXTS]:
        prompt = repr(row["prompt"]) if row["prompt"] else "(empty prompt)"
        lines += [
            Paragraph(f"{prompt} unsteered: {flat(row['unsteered'])}"),
            Paragraph(f"steered: {flat(row['steered'])}"),
        ]
    return lines


def text_table(rows: list[Row]) -> Table:
    """Texts side by side."""
    lines = tuple((r["prompt"], flat(r["unsteered"]), flat(r["steered"])) for r in rows)
    return Table(("prompt", "unsteered", "steered"), lines, "")


def flat(text: str) -> str:
    """A text on one line."""
    return " ".join(text.replace("\n", " ⏎ ").split())


def caused(result: Result) -> list[Block]:
    """What replacing their component does to the loss."""
    table = causal_table(result)
    if table is None:
        return []
    return [
        Heading("What they cause"),
        Paragraph(
            "At every token the finetuned stream's component along δ̄ is made the base's. Where the loss changes by "
            "more than for random directions of equal size, the finetuned model uses that component."
        ),
        *figure_block(result, "causal"),
        table,
    ]


def causal_table(result: Result) -> Table | None:
    """Effect of each direction on each text, beside its controls."""
    rows = result.table("causal").to_pylist()
    lines = tuple(
        (
            direction_name(r), r["text"], r["n_tokens"], _interval(r), mean_effect(rows, r, "random"),
            mean_effect(rows, r, "random_matched"), r["kl"],
        )
        for r in rows
        if r["change"] == "toward_base"
    )  # fmt: skip
    columns = ("direction", "text", "tokens", "Δloss [95 %]", "random", "random, equal size", "KL")
    return Table(columns, lines, "Nats per token; the controls are means over random directions.") if lines else None


def _interval(row: Row) -> str:
    bounds = "" if row["low"] is None else f" [{number(row['low'])}, {number(row['high'])}]"
    return f"{number(row['effect'])}{bounds}"
