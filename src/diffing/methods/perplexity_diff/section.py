"""What the report, the dashboard and the terminal show of a `perplexity_diff` result."""

from typing import Any

from diffing.core.blocks import Block, Figure, Heading, Heatmap, HeatmapList, HeatToken, Paragraph, Section, Table
from diffing.core.result import Result
from diffing.display.numbers import number

_TITLE = "Perplexity difference on written texts"
_SHOWN_TEXTS = 8
_SHOWN_BASE = 3
_SHOWN_TOKENS = 20
_SHOWN_PHRASES = 20
_HEADLINE_TEXTS = 5
_HEADLINE_WIDTH = 160
UNIT = "nats"


def section(result: Result) -> Section:
    """The method's section of the report."""
    return Section(_TITLE, (*numbers(result), *_texts(result), *_phrases(result), *_tokens(result)))


def headline(result: Result) -> Section:
    """What the terminal prints: means by dataset, the first texts, tokens and phrases."""
    rows = [r for r in text_rows(result, "finetuned") if r["advantage"] > 0][:_HEADLINE_TEXTS]
    cells = tuple(
        (r["dataset"], r["advantage"], _one_line(r["prefill"])[-40:], _one_line(r["text"])[:_HEADLINE_WIDTH])
        for r in rows
    )
    texts = Table(
        ("dataset", _unit(result), "after", "the finetuned model writes"), cells, "Texts of largest advantage."
    )
    return Section(_TITLE, (dataset_table(result), texts, _phrase_line(result), *_token_line(result)))


def _one_line(text: str) -> str:
    return text.replace("\n", "⏎")


def _unit(result: Result) -> str:
    return result.manifest["facts"]["unit"]


def text_rows(result: Result, source: str, dataset: str | None = None) -> list[dict[str, Any]]:
    """Texts of one source, by rank."""
    rows = [r for r in result.table("texts").to_pylist() if r["source"] == source and dataset in (None, r["dataset"])]
    return sorted(rows, key=lambda r: r["rank"])


def numbers(result: Result) -> list[Block]:
    """How much likelier each model finds its own texts."""
    blocks: list[Block] = [
        Paragraph(
            "Both models go on from the same short beginnings with the same random numbers, and both read what came "
            "out. Advantage: how much likelier its writer finds a text than the other model, log p − log q for the "
            "finetuned model's texts and log q − log p for the base's. The base's texts say what is usual between two "
            "models that differ; finetuned texts far beyond them show what was trained in."
        ),
        Heading("How much likelier the writer finds its texts"),
        dataset_table(result),
        Figure(
            "advantages",
            "Share of texts with at least this advantage",
            "Falling step lines over the advantage, one for each dataset and writer; the base's are dotted.",
        ),
        Figure(
            "positions",
            "Mean advantage by new token, with 95 % bands for the finetuned model's texts",
            "Lines of the mean advantage over the new tokens, one for each dataset and writer; the base's are dotted.",
        ),
    ]
    return blocks


def dataset_table(result: Result) -> Table:
    """One line per dataset and writer."""
    lines = tuple(
        (
            r["dataset"], r["source"], r["n_texts"], r["n_tokens"], _interval(r, "advantage", "low", "high"),
            _interval(r, "per_byte", "per_byte_low", "per_byte_high"), r["p95"], r["maximum"],
            None if r["source"] == "base" else r["share_above_base"],
        )
        for r in result.table("datasets").to_pylist()
    )  # fmt: skip
    columns = (
        "dataset", "writer", "texts", "tokens", f"advantage, {_unit(result)} [95 %]", "per byte [95 %]", "p95",
        "largest", "share above base's p95",
    )  # fmt: skip
    return Table(columns, lines, "Advantage of the writer; 5 % of texts above the base's 95th percentile is usual.")


def _interval(row: dict[str, Any], value: str, low: str, high: str) -> str | None:
    if row[value] is None:
        return None
    bounds = "" if row[low] is None else f" [{number(row[low])}, {number(row[high])}]"
    return f"{number(row[value])}{bounds}"


def _texts(result: Result) -> list[Block]:
    mine = [r for r in text_rows(result, "finetuned") if r["advantage"] > 0]
    if not mine:
        return []
    top = maximum(result)
    blocks: list[Block] = [
        Heading("What the finetuned model writes"),
        Paragraph(
            "Texts of largest advantage first, each after its beginning. Tokens are coloured by how much likelier the "
            "writer finds them than the other model does. Choose a token to read its value."
        ),
    ]
    for dataset in dict.fromkeys(r["dataset"] for r in mine):
        rows = [r for r in mine if r["dataset"] == dataset][:_SHOWN_TEXTS]
        blocks += [Heading(f"{dataset}: finetuned model's texts", 3), heatmaps(rows, top)]
        if base := text_rows(result, "base", dataset)[:_SHOWN_BASE]:
            blocks += [Heading(f"{dataset}: base's texts, for comparison", 3), heatmaps(base, top)]
    return blocks


def maximum(result: Result) -> float:
    """Largest advantage of a token of any text: the end of the colour scale."""
    ratios = result.table("texts").select(["source", "log_ratios"]).to_pylist()
    signed = [_sign(r) * v for r in ratios for v in r["log_ratios"] if v is not None]
    return max(0.0, max(signed, default=0.0))


def heatmaps(rows: list[dict[str, Any]], top: float) -> HeatmapList:
    """Texts under one colour legend that ends at `top`."""
    return HeatmapList(tuple(heatmap(r, top) for r in rows), top, UNIT)


def heatmap(row: dict[str, Any], top: float) -> Heatmap:
    """A text coloured by the advantage of its writer at each token, its beginning uncoloured."""
    cells = [HeatToken(row["prefill"], None, ("beginning",))]
    for token, token_id, ratio in zip(row["tokens"], row["token_ids"], row["log_ratios"], strict=True):
        value = None if ratio is None else max(0.0, _sign(row) * ratio)
        hover = (f"{token!r} (id {token_id})", *(() if ratio is None else (f"log p − log q {ratio:+.3g} nats",)))
        cells.append(HeatToken(token, value, hover))
    title = f"{row['source']} · {row['dataset']} {row['document']}, advantage {number(row['advantage'])}"
    return Heatmap(title, tuple(cells), top, UNIT)


def _sign(row: dict[str, Any]) -> int:
    return 1 if row["source"] == "finetuned" else -1


def _phrases(result: Result) -> list[Block]:
    rows = [r for r in result.table("phrases").to_pylist() if r["is_over"]][:_SHOWN_PHRASES]
    if not rows:
        return []
    cells = tuple((r["phrase"], r["n_top"], r["n_base"], r["z"]) for r in rows)
    caption = "Phrases over-represented at a false discovery rate of 5 %."
    return [
        Heading("Phrases"),
        Paragraph(
            "Words and phrases of the third of the finetuned model's texts with the largest advantage, against all "
            "texts of the base, by log-odds with a Dirichlet prior."
        ),
        Table(("phrase", "top texts", "base's texts", "z"), cells, caption),
    ]


def _phrase_line(result: Result) -> Table:
    rows = [r for r in result.table("phrases").to_pylist() if r["is_over"]][:_SHOWN_PHRASES]
    shown = ", ".join(r["phrase"] for r in rows) or "none"
    return Table(("phrases over-represented in the top texts",), ((shown,),), "")


def _token_line(result: Result) -> list[Table]:
    if "token_scores" not in result.tables():
        return []
    rows = [r for r in result.table("token_scores").slice(0, _SHOWN_TOKENS).to_pylist() if r["score"] > 0]
    shown = "  ".join(repr(r["token"])[1:-1] for r in rows) or "none"
    return [Table(("tokens with most log p − log q above the average",), ((shown,),), "")]


def _tokens(result: Result) -> list[Block]:
    if "token_scores" not in result.tables():
        return []
    rows = result.table("token_scores").slice(0, _SHOWN_TOKENS).to_pylist()
    cells = tuple((r["token"], r["score"], r["stderr"]) for r in rows if r["score"] > 0)
    return [
        Heading("At which tokens"),
        Paragraph(
            "Tokens that the finetuned model wrote, by how far above the average log p − log q is where it wrote them; "
            "what rests on a few occurrences is shrunk toward 0."
        ),
        Table(("token", "excess, nats", "standard error"), cells, "Excess of log p − log q.", ("token",)),
    ]
