"""What the report, the dashboard and the terminal show of a `logit_amplification` result."""

from typing import Any

from diffing.core.blocks import Block, Figure, Heading, Heatmap, HeatmapList, HeatToken, Paragraph, Section, Table
from diffing.core.result import Result
from diffing.display.numbers import number
from diffing.methods.logit_amplification.figures import top_phrases

_TITLE = "Amplified texts"
_SHOWN_PROMPTS = 4
_SHOWN_MARKED = 8
_SHOWN_PHRASES = 15
_SHOWN_TOKENS = 20
_HEADLINE_PHRASES = 12
_HEADLINE_TEXTS = 3
_HEADLINE_CHARACTERS = 160


def section(result: Result) -> Section:
    """The method's section of the report."""
    return Section(_TITLE, (*_said(result), *_texts(result), *_tokens(result), *_coherence(result)))


def headline(result: Result) -> Section:
    """What the terminal prints: each α, the phrases that stand out, and a few texts."""
    phrases = "; ".join(r["phrase"] for r in top_phrases(result, _HEADLINE_PHRASES)) or "none"
    main = result.manifest["facts"]["main_alpha"]
    chosen = [r for r in telling_texts(result) if r["alpha"] == main][:_HEADLINE_TEXTS]
    lines = tuple((r["prompt"] or "(empty)", _short(r["text"]), r["log_ratio"]) for r in chosen)
    return Section(
        _TITLE,
        (
            source_table(result),
            Table((f"phrases over-represented at α = {main:g}",), ((phrases,),), ""),
            Table(("prompt", f"text at α = {main:g}", "log p − log q"), lines, "The most telling texts."),
        ),
    )


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _HEADLINE_CHARACTERS else f"{flat[:_HEADLINE_CHARACTERS]}…"


def label(row: dict[str, Any]) -> str:
    """Who wrote a text."""
    names = {"base": "base", "null": "base again (null)"}
    return names.get(row["source"], "") or f"α = {row['alpha']:g}{' (finetuned)' if row['alpha'] == 0 else ''}"


def telling_texts(result: Result) -> list[dict[str, Any]]:
    """Amplified texts, those first that the finetuned model finds likelier than the base by most per token."""
    rows = [r for r in result.table("texts").to_pylist() if r["alpha"] is not None]
    return sorted(rows, key=lambda r: (-r["log_ratio"], r["prompt_number"], r["sample"]))


def source_table(result: Result) -> Table:
    """One line per source, all prompts together."""
    rows = [r for r in result.table("sources").to_pylist() if r["kind"] == "all"]
    lines = tuple(
        (
            label(r), r["n_texts"], r["n_over_base"], r["n_over_unamplified"], r["log_ratio"], r["base_perplexity"],
            r["repetition"], r["distinct"], r["capitals"], r["ended"],
        )
        for r in rows
    )  # fmt: skip
    columns = (
        "texts of", "texts", "phrases over base", "over unamplified", "log p − log q", "perplexity", "repetition",
        "distinct", "capitals", "ended",
    )  # fmt: skip
    caption = (
        "Phrases over-represented against the base's texts and against those at α = 0; nats per token; perplexity "
        "under the base; share of runs of three tokens that stood in the text before; shares of distinct texts, of "
        "letters in capitals, and of texts that came to an end. The base again, with other random numbers, is the null."
    )
    return Table(columns, lines, caption)


def _said(result: Result) -> list[Block]:
    main = result.manifest["facts"]["main_alpha"]
    return [
        Paragraph(
            "Both models write in lock-step, from log p + α (log p − log q): p is the finetuned model's distribution, "
            "q the base's. α = 0 is the finetuned model; the larger α, the more of what finetuning changed. The "
            "prompts say almost nothing, so that what comes up was not asked for. Texts of one prompt share their "
            "random numbers."
        ),
        Heading("What amplified texts say more often"),
        source_table(result),
        phrase_table(result),
        Figure(
            "phrases",
            f"Phrases most over-represented at α = {main:g} against the base's texts, and their z at every α",
            "Dots of z by phrase, one colour per α; hollow diamonds for phrases that the base's second texts hold too.",
        ),
    ]  # fmt: skip


def phrase_table(result: Result) -> Table:
    """Over-represented phrases of the main α."""
    rows = top_phrases(result, _SHOWN_PHRASES)
    lines = tuple((r["phrase"], r["share"], r["share_against"], r["z"]) for r in rows)
    caption = (
        "Phrases over-represented at a false discovery rate of 5 %; those that are part of a longer one in as many "
        "texts are left out."
    )
    return Table(("phrase", "share of texts", "of the base's", "z"), lines, caption)


def _texts(result: Result) -> list[Block]:
    main = result.manifest["facts"]["main_alpha"]
    best = [r for r in telling_texts(result) if r["alpha"] == main and r["log_ratio"] > 0]
    marked = [r for r in best if r["values"]][:_SHOWN_MARKED]
    blocks: list[Block] = [
        Heading("Texts"),
        Paragraph(
            f"Those at α = {main:g} that the finetuned model finds likelier than the base by most per token. "
            "Over-represented phrases are coloured."
        ),
    ]
    if marked:
        blocks.append(text_maps(marked, top_z(marked)))
    for row in best[:_SHOWN_PROMPTS]:
        blocks += [Heading(prompt_label(row), 3), *_side_by_side(result, row, main)]
    return blocks


def _side_by_side(result: Result, row: dict[str, Any], main: float) -> list[Block]:
    """The texts that share a text's prompt and random numbers: of the base, the finetuned model and the main α."""
    mine = [
        r for r in result.table("texts").to_pylist()
        if (r["prompt_number"], r["sample"]) == (row["prompt_number"], row["sample"])
        and (r["source"] == "base" or r["alpha"] in (0.0, main))
    ]  # fmt: skip
    return [Paragraph(f"{label(r)}: {_flat(r['text'])}") for r in mine]


def _flat(text: str) -> str:
    return " ".join(text.replace("\n", " ↵ ").split())


def prompt_label(row: dict[str, Any]) -> str:
    """A prompt as people read it."""
    return f"{row['kind']}: {row['prompt'] or '(the empty prompt)'}"


def top_z(rows: list[dict[str, Any]]) -> float:
    """The largest z of a marked phrase."""
    return max((v for r in rows for v in r["values"]), default=0.0)


def text_maps(rows: list[dict[str, Any]], maximum: float) -> HeatmapList:
    """Texts with over-represented phrases coloured."""
    return HeatmapList(tuple(_map(r, maximum) for r in rows), maximum, "z")


def _map(row: dict[str, Any], maximum: float) -> Heatmap:
    cells, at, text = [], 0, row["text"]
    for start, end, value, phrase in zip(row["starts"], row["ends"], row["values"], row["phrases"], strict=True):
        cells += [HeatToken(text[at:start], None, ("no over-represented phrase",))] if start > at else []
        cells.append(HeatToken(text[start:end], value, (repr(phrase), f"z {number(value)}")))
        at = end
    cells += [HeatToken(text[at:], None, ("no over-represented phrase",))] if at < len(text) else []
    return Heatmap(f"{prompt_label(row)} · {number(row['log_ratio'])} nats/token", tuple(cells), maximum, "z")


def _tokens(result: Result) -> list[Block]:
    return [
        Heading("Tokens"),
        Paragraph("Vocabulary tokens that differ in case or leading space alone are taken together."),
        token_table(result),
    ]


def token_table(result: Result) -> Table:
    """The first merged tokens of the main α against the base."""
    main = result.manifest["facts"]["main_alpha"]
    rows = [r for r in result.table("tokens").to_pylist() if (r["alpha"], r["against"]) == (main, "base")]
    shown = [r for r in sorted(rows, key=lambda r: r["rank"]) if r["is_over"]][:_SHOWN_TOKENS]
    cells = tuple((r["key"], r["share"], r["share_against"], r["z"]) for r in shown)
    caption = f"Tokens over-represented at α = {main:g} at a false discovery rate of 5 %."
    return Table(("token", "share of texts", "of the base's", "z"), cells, caption, ("token",))


def _coherence(result: Result) -> list[Block]:
    return [
        Heading("Where amplification breaks the text"),
        Paragraph(
            "As α grows, texts say more of the change. Where they become less likely without saying more of it, or "
            "repeat themselves, they are breaking."
        ),
        Figure(
            "coherence",
            "Texts by α, with 95 % intervals over prompts",
            "Lines over the base and each α: log p − log q, −log q, repetition, share of capitals, by kind of prompt.",
        ),
    ]
