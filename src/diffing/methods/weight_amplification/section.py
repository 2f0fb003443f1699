"""What the report, the dashboard and the terminal show of a `weight_amplification` result."""

from typing import Any

from diffing.core.blocks import Block, Figure, Heading, Paragraph, Section, Table
from diffing.core.result import Result
from diffing.display.numbers import number
from diffing.methods.weight_amplification.figures import has_map
from diffing.methods.weight_amplification.plan import WHOLE

_TITLE = "Weight amplification"
_METRICS = {"kl": "Mean KL from the base", "delta_nll": "Mean ΔNLL of the actual text"}
_SHOWN_TOKENS = 15
_SHOWN_PHRASES = 10
_SHOWN_PROMPTS = 3
_HEADLINE_TOKENS = 10


def section(result: Result) -> Section:
    """The method's section of the report."""
    return Section(_TITLE, (*numbers(result), *parts(result), *words(result), *_side_by_side(result)))


def headline(result: Result) -> Section:
    """What the terminal prints: effect and texts by factor, and what the amplified model says."""
    tokens = [r for r in result.table("token_scores").slice(0, _HEADLINE_TOKENS).to_pylist() if r["score"] > 0]
    said = "  ".join(repr(r["token"])[1:-1] for r in tokens) or "none"
    line = Table((f"tokens that the model with the change ×{looked_at(result):g} predicts more",), ((said,),), "")
    return Section(_TITLE, (*(effect_table(result, m) for m in _METRICS), measure_table(result), line))


def looked_at(result: Result) -> float:
    """The factor at which tokens, phrases and evidence are read."""
    return result.manifest["facts"]["looked_at"]


def named(factor: float) -> str:
    """`×−1`."""
    return f"×{factor:g}".replace("-", "−")


def numbers(result: Result) -> list[Block]:
    """How the effect grows with the factor."""
    return [
        Paragraph(
            "The change of the weights is multiplied by a factor: 0 is the base model, 1 the finetuned one, negative "
            "factors reverse what was learned. KL and ΔNLL compare each with the base on the same tokens; at factor 0 "
            "both are 0, which is the null."
        ),
        Heading("How the effect grows"),
        effect_table(result, "kl"),
        Figure(
            "effect",
            "Mean KL from the base and mean ΔNLL by factor, with 95 % intervals over documents",
            "Lines over the factor, one per dataset: KL on a logarithmic axis, lowest near factor 0, and ΔNLL.",
        ),
        effect_table(result, "delta_nll"),
        *_growth(result),
    ]


def effect_table(result: Result, metric: str) -> Table:
    """One line per factor of the whole change, one column per dataset."""
    rows = [r for r in result.table("effects").to_pylist() if (r["part"], r["metric"]) == (WHOLE, metric)]
    names = list(dict.fromkeys(r["dataset"] for r in rows))
    by_key = {(r["factor"], r["dataset"]): r for r in rows}
    problems = {r["factor"]: r["problem"] for r in result.table("settings").to_pylist() if r["part"] == WHOLE}
    lines = tuple(
        (named(f), *(_interval(by_key[f, n]) for n in names)) for f in dict.fromkeys(r["factor"] for r in rows)
    )
    said = [f"{named(f)}: {p}." for f, p in problems.items() if p]
    caption = f"{_METRICS[metric]}, nats per token, with 95 % intervals over documents."
    return Table(("factor", *names), lines, " ".join([caption, *said]))


def _interval(row: dict[str, Any]) -> str | None:
    if row["mean"] is None:
        return None
    bounds = "" if row["low"] is None else f" [{number(row['low'])}, {number(row['high'])}]"
    return f"{number(row['mean'])}{bounds}"


def _growth(result: Result) -> list[Block]:
    """Exponents of growth between neighbouring factors; nothing where nothing grows."""
    rows = result.table("growth").to_pylist()
    if not rows:
        return []
    names = list(dict.fromkeys(r["dataset"] for r in rows))
    spans = list(dict.fromkeys((r["from_factor"], r["to_factor"]) for r in rows))
    found = {(r["dataset"], r["from_factor"], r["to_factor"]): {**r, "mean": r["exponent"]} for r in rows}
    lines = tuple(
        (f"{named(a)} to {named(b)}", *(_interval(found[n, a, b]) if (n, a, b) in found else None for n in names))
        for a, b in spans
    )
    return [
        Paragraph(
            "From one factor to the next KL grows as factor^exponent: 2 where the change acts in proportion, less "
            "where the effect is saturated."
        ),
        Table(("exponent from", *names), lines, "With 95 % intervals over documents."),
    ]


def parts(result: Result) -> list[Block]:
    """What parts of the change do alone."""
    if not has_map(result):
        return []
    facts = result.manifest["facts"]
    return [
        Heading("Where the effect sits"),
        Paragraph(
            f"One part of the change at a time has the factor {facts['map_factor']:g}, everything else "
            f"{facts['map_rest']:g}. Parts do not add up to the whole: they act through each other."
        ),
        Figure(
            "map",
            "Mean KL from the base with one part of the change, over that of the finetuned model",
            "Heat maps, one per dataset: thirds of the depth against attention and MLP.",
        ),
    ]


def words(result: Result) -> list[Block]:
    """Texts in numbers, and tokens and phrases of the factor that is looked at."""
    factor = looked_at(result)
    tokens = [r for r in result.table("token_scores").slice(0, _SHOWN_TOKENS).to_pylist() if r["score"] > 0]
    found = [r for r in result.table("phrases").to_pylist() if r["factor"] == factor and r["rank"] < _SHOWN_PHRASES]
    blocks: list[Block] = [
        Heading("What is written"),
        Paragraph(
            "Every factor continues the same prompts with the same random numbers. Log-probabilities are those of the "
            "written text under the base and under the finetuned model itself."
        ),
        measure_table(result),
        Figure(
            "texts",
            "Mean log-probability, repetition and capitals of the texts by factor, with 95 % intervals over prompts",
            "Lines over the factor: log-probability under both models, share of repeated trigrams, share of capitals.",
        ),
    ]
    if tokens:
        cells = tuple((r["token"], r["score"], r["stderr"]) for r in tokens)
        caption = f"Tokens that the model with the change ×{factor:g} predicts more than the base: part in the mean KL."
        blocks.append(Table(("token", "part of KL", "standard error"), cells, caption, ("token",)))
    if found:
        lines = tuple(
            (r["phrase"], r["n_texts"], r["n_against"], r["z"], "yes" if r["is_over"] else "no") for r in found
        )
        caption = f"Phrases of the texts at ×{factor:g} beside the base's, by log-odds."
        blocks.append(Table(("phrase", "texts", "base texts", "z", "over-represented"), lines, caption))
    return blocks


def measure_table(result: Result) -> Table:
    """One line per factor: the measures of its texts."""
    rows = [r for r in result.table("text_measures").to_pylist() if r["part"] == WHOLE]
    kinds = [k for k in ("raw", "chat") if any(r["kind"] == k for r in rows)]
    shown = [("log_prob_base", "all"), ("log_prob_ft", "all"), ("repetition", "all"), *(("capitals", k) for k in kinds)]
    titles = ("log p, base", "log p, finetuned", "repeated", *(f"capitals, {k}" for k in kinds))
    found = {(r["factor"], r["measure"], r["kind"]): r for r in rows}
    lines = tuple(
        (named(f), *(found[f, m, k]["mean"] if (f, m, k) in found else None for m, k in shown))
        for f in sorted({r["factor"] for r in rows})
    )
    return Table(("factor", *titles), lines, "Means over texts; repeated: share of trigrams that stood before.")


def _side_by_side(result: Result) -> list[Block]:
    factors = list(dict.fromkeys((0.0, 1.0, looked_at(result))))
    rows = [r for r in result.table("texts").to_pylist() if r["part"] == WHOLE and r["factor"] in factors]
    blocks: list[Block] = [Heading("Side by side")] if rows else []
    for kind in dict.fromkeys(r["kind"] for r in rows):
        for prompt in list(dict.fromkeys(r["prompt"] for r in rows if r["kind"] == kind))[:_SHOWN_PROMPTS]:
            mine = [r for r in rows if r["prompt"] == prompt]
            blocks.append(Heading(f"{kind}: {mine[0]['prompt_text'] or 'the empty prompt'}", 3))
            blocks += [Paragraph(f"{named(r['factor'])}: {_flat(r['text'])}") for r in mine]
    return blocks


def _flat(text: str) -> str:
    return " ".join(text.split())
