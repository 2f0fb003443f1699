"""The report of a pair as a page, as Markdown and as JSON."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffing.core.blocks import Block, Heading, HeatmapList, Paragraph, Section, Table
from diffing.core.evidence import ExampleEvidence
from diffing.core.files import write_text
from diffing.core.method import load_method
from diffing.core.result import Result
from diffing.display.calibrated import judged, stable
from diffing.display.examples import example_heatmap
from diffing.display.headline import claim
from diffing.display.numbers import duration, number
from diffing.report.document import Chapter, Document, Link, markdown, render_document
from diffing.report.pair.findings import HEAD, Agreement, Finding, Support, agreement, shared_texts
from diffing.report.pair.gathering import PairResults
from diffing.report.pair.words import n_claimed, sensitivity_words, summary

SCHEMA = 1
_SHOWN_FINDINGS = 25
_SHOWN_EXAMPLES = 8
_SHOWN_TEXTS = 6
_SHOWN_TOKENS = 12
_MOST_IN_JSON = 200
_RUN_LETTERS = 6  # of a fingerprint: enough to tell the runs of a pair apart
_MOST_RANKS = 5  # in a cell; report.json has all


def write_pair_report(pair: PairResults, found: Sequence[Finding], folder: Path) -> Path:
    """Write `report.html`, `report.md` and `report.json`, each whole or not at all.

    Args:
        pair: Its results.
        found: What they found together.
        folder: Where to; links are relative to it.

    Returns:
        Path of the page.
    """
    agreeing = agreement(pair.results)
    document = pair_document(pair, found, agreeing, folder)
    write_text(folder / "report.json", json.dumps(_as_json(pair, found, agreeing, folder), indent=1, allow_nan=False))
    write_text(folder / "report.md", markdown(document))
    write_text(folder / "report.html", render_document(document))
    return folder / "report.html"


def pair_document(pair: PairResults, found: Sequence[Finding], agreeing: Sequence[Agreement], folder: Path) -> Document:
    """The page: summary, findings across methods, a chapter for each method, what found nothing, what was not done."""
    chapters = [
        Chapter(_strongest(found)),
        Chapter(_texts(pair)),
        Chapter(_agreeing(pair, agreeing)),
        *(_method(result, folder) for result in pair.results),
        Chapter(_nothing(pair)),
        Chapter(_not_looked_at(pair)),
        Chapter(_made(pair), tuple(_link(r, folder) for r in pair.results)),
    ]
    return Document(
        title=pair_title(pair),
        eyebrow="What did finetuning change?",
        lead=summary(pair, found),
        chapters=tuple(c for c in chapters if c.section.blocks),
    )


def pair_title(pair: PairResults) -> str:
    """What the page is about."""
    variant = "" if pair.variant == "default" else f" ({pair.variant})"
    return f"{pair.organism}{variant} against {pair.model}"


def _strongest(found: Sequence[Finding]) -> Section:
    return Section("Words", findings_blocks(found))


def findings_blocks(found: Sequence[Finding]) -> tuple[Block, ...]:
    """The strongest words: who claims them, who ranks them, and the numbers of the method that ranks them best."""
    if not found:
        return (Paragraph("No method ranks any word."),)
    shown = found[:_SHOWN_FINDINGS]
    rows = tuple(_finding_row(f) for f in shown)
    several = sum(len(f.claimed_by) > 1 for f in found)
    said = (
        f"The strongest {len(shown)} of {number(len(found))} words that a method claims or has in its first {HEAD}; "
        f"{number(several)} are claimed by more than one. Of the method named first are score, standard error, score "
        "under the null, rank against it (p), run, and how often it comes back (on halves of the text and with another "
        "seed, where stability=true was run)."
    )
    columns = ("word", "claimed by", "ranked by", "score", "± s.e.", "null", "p", "comes back", "also written", "run")
    known = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    return Paragraph(said), Table(
        tuple(columns[i] for i in known),
        tuple(tuple(row[i] for i in known) for row in rows),
        "The strongest first.",
        ("word", "also written"),
    )


def _finding_row(finding: Finding) -> tuple[str | float | None, ...]:
    best = finding.supports[0]
    ranked = ", ".join(f"{s.method} {s.rank}" for s in finding.supports[:_MOST_RANKS])
    if n_more := len(finding.supports[_MOST_RANKS:]):
        ranked += f" and {n_more} more"
    also = " ".join(finding.forms[1:]) or None
    claimed = ", ".join(finding.claimed_by) or ("none" if any(s.claimed is False for s in finding.supports) else "–")
    return (
        finding.forms[0],
        claimed,
        ranked,
        best.score,
        best.stderr,
        best.null_score,
        best.p,
        _back(best),
        also,
        best.run[:_RUN_LETTERS],
    )


def _back(support: Support) -> str | None:
    return None if support.n_back is None else f"{support.n_back} of {support.n_reruns}"


def _texts(pair: PairResults) -> Section:
    blocks: list[Block] = []
    shared = shared_texts(pair.results)[:_SHOWN_EXAMPLES]
    if shared:
        items = tuple(example_heatmap(e, f"{label} · ") for s in shared for label, e in s.by_result)
        blocks += [
            Heading("Texts that two or more methods point at"),
            HeatmapList(items, max(i.maximum for i in items), "each method's own unit, each text on its own scale"),
        ]
    if examples := _claimed_examples(pair):
        items = tuple(example_heatmap(e, f"{method} · ") for method, e in examples)
        blocks += [
            Heading("Texts that are claimed"),
            HeatmapList(items, max(i.maximum for i in items), "the method's own unit, each text on its own scale"),
        ]
    written = [(r.method, t) for r in pair.results for t in r.evidence().texts[:_SHOWN_TEXTS] if t.claimed is not False]
    if written:
        rows = tuple((m, t.source, t.text, claim(t.claimed)) for m, t in written[: 2 * _SHOWN_TEXTS])
        blocks += [Heading("Generated texts"), Table(("method", "how", "text", "state"), rows)]
    return Section("Texts", tuple(blocks))


def _claimed_examples(pair: PairResults) -> list[tuple[str, ExampleEvidence]]:
    """The first claimed examples of each method in turn."""
    by_method = [[(r.method, e) for e in r.evidence().examples if e.claimed] for r in pair.results]
    turns = [mine[i] for i in range(_SHOWN_EXAMPLES) for mine in by_method if i < len(mine)]
    return turns[:_SHOWN_EXAMPLES]


def _agreeing(pair: PairResults, agreeing: Sequence[Agreement]) -> Section:
    return Section("Where methods agree", agreement_blocks(pair.results, agreeing))


def agreement_blocks(results: Sequence[Result], agreeing: Sequence[Agreement]) -> tuple[Block, ...]:
    """The share of their first tokens that each two methods have in common; nothing with fewer than two rankings."""
    if not agreeing:
        return ()
    methods = [r.method for r in results if "token_scores" in r.tables()]
    cells = {frozenset((a.first, a.second)): a for a in agreeing}
    rows = tuple((m, *(_cell(cells.get(frozenset((m, o))), m == o) for o in methods)) for m in methods)
    caption = (
        f"Share of the first {HEAD} tokens of one ranking that are among the first {HEAD} of the other; by chance "
        f"{number(max((a.chance or 0) for a in agreeing))} or less."
    )
    return (Table(("method", *methods), rows, caption),)


def _cell(pair: Agreement | None, is_same: bool) -> str:
    return "" if is_same else "–" if pair is None or pair.share is None else f"{100 * pair.share:.0f} %"


def _method(result: Result, folder: Path) -> Chapter:
    method = load_method(result.method)
    blocks: list[Block] = [Paragraph(method.summary)]
    if result.null_pair == "none":
        blocks.append(Paragraph(judged(result.calibration())))
    if said := stable(result.stability()):
        blocks.append(Paragraph(said))
    blocks += [_numbers(result), *method.headline(result).blocks]
    tokens = result.evidence().tokens[:_SHOWN_TOKENS]
    if tokens:
        calibration = result.calibration()
        p_values = [None if calibration is None else calibration.claims.tokens.p_value(i) for i in range(len(tokens))]
        rows = tuple(
            (t.token, t.score, t.stderr, t.null_score, p, claim(t.claimed))
            for t, p in zip(tokens, p_values, strict=True)
        )
        blocks.append(Table(("token", "score", "± s.e.", "null", "p", "state"), rows, "Its first tokens.", ("token",)))
    return Chapter(Section(method.title, tuple(blocks)), (_link(result, folder),))


def _numbers(result: Result) -> Table:
    rows = tuple(
        (s["name"], s["value"], _interval(s), s["null"], s["unit"], claim(s["claimed"])) for s in result.summary
    )
    return Table(("number", "value", "95 %", "null", "unit", "state"), rows, "Its headline numbers.")


def _interval(scalar: dict[str, Any]) -> str:
    return "–" if scalar["low"] is None else f"[{number(scalar['low'])}, {number(scalar['high'])}]"


def _nothing(pair: PairResults) -> Section:
    blocks: list[Block] = []
    silent = [r for r in pair.results if r.calibration() is not None and not n_claimed(r)]
    if silent:
        rows = tuple((load_method(r.method).title, r.method, load_method(r.method).summary) for r in silent)
        blocks += [
            Paragraph("These methods were judged against a null and claim nothing."),
            Table(("name", "method", "what it looks at"), rows),
            Paragraph(sensitivity_words(pair, silent)),
        ]
    open_ = [r for r in pair.results if r.calibration() is None and r.null_pair == "none"]
    if open_:
        names = ", ".join(r.method for r in open_)
        blocks.append(Paragraph(f"Not judged, as no null pair was run with the same text and options: {names}."))
    return Section("What found nothing", tuple(blocks))


def _not_looked_at(pair: PairResults) -> Section:
    blocks: list[Block] = []
    if pair.not_run:
        rows = tuple((name, load_method(name).summary) for name in pair.not_run)
        blocks.append(Table(("method", "what it would look at"), rows, "Methods that were not run on this pair."))
    if pair.not_installed:
        names = ", ".join(pair.not_installed)
        blocks.append(Paragraph(f"Results of methods that are not installed here are left out: {names}."))
    if unmeasured := ", ".join(r.method for r in pair.results if r.stability() is None):
        blocks.append(
            Paragraph(f"Whether it comes back on other text or with another seed (stability=true): {unmeasured}.")
        )
    read = {d for r in pair.results for d in r.manifest["data"].get("datasets", ())}
    absent = [d for d in ("pretraining", "chat", "training") if d not in read]
    if absent:
        blocks.append(Paragraph(f"Kinds of text that no method read: {', '.join(absent)}."))
    known = sorted({limit for r in pair.results if (limit := _limit(r)) is not None})
    if known:
        blocks.append(
            Paragraph(
                f"Of each dataset at most {number(known[-1])} tokens were read: rarer changes may have been missed "
                "(data.max_tokens=null reads all)."
            )
        )
    return Section("What was not looked at", tuple(blocks))


def _limit(result: Result) -> int | None:
    """Tokens that were read of each dataset at most; None where no document was left out."""
    data = result.manifest["data"]
    read, there = data.get("sequences", {}), data.get("documents", {})
    is_whole = all(read.get(name, 0) >= n for name, n in there.items())
    return None if is_whole else data["spec"].get("max_tokens")


def _made(pair: PairResults) -> Section:
    rows = tuple(_run_row(r) for r in pair.results)
    columns = ("method", "run", "made", "seed", "tokens", "took", "null", "version", "git")
    return Section(
        "How this was made", (Table(columns, rows), *(Paragraph(note) for note in pair.notes), *_commands(pair))
    )


def _run_row(result: Result) -> tuple[str | int | None, ...]:
    manifest = result.manifest
    calibration = result.calibration()
    return (
        result.method,
        str(manifest.get("fingerprint")),
        str(manifest["created"]).replace("T", " ").replace("+00:00", ""),
        manifest["seed"],
        manifest["data"].get("n_tokens") or None,
        duration(manifest.get("wall_seconds")),
        None if calibration is None else calibration.null.label,
        manifest.get("versions", {}).get("diffing"),
        str(manifest.get("git") or "–")[:10],
    )


def _commands(pair: PairResults) -> list[Block]:
    commands = list(dict.fromkeys(r.manifest["command"] for r in pair.results if r.manifest.get("command")))
    return [Paragraph(f"Made by: {c}") for c in commands]


def _link(result: Result, folder: Path) -> Link:
    path = os.path.relpath(result.folder / "report.html", folder)
    return Link(f"Full report of {result.method}", Path(path).as_posix())


def _as_json(
    pair: PairResults, found: Sequence[Finding], agreeing: Sequence[Agreement], folder: Path
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": pair.model,
        "organism": pair.organism,
        "variant": pair.variant,
        "null_pair": pair.null_pair,
        "summary": list(summary(pair, found)),
        "findings": [
            {
                "forms": list(f.forms),
                "claimed_by": list(f.claimed_by),
                "supports": [asdict(s) for s in f.supports],
                "examples": [{"method": m, "dataset": e.dataset, "text": e.text} for m, e in f.examples],
            }
            for f in found[:_MOST_IN_JSON]
        ],
        "methods": [_method_json(r, folder) for r in pair.results],
        "agreement": [asdict(a) for a in agreeing],
        "not_run": list(pair.not_run),
        "notes": list(pair.notes),
        "sensitivity": {name: asdict(s) for name, s in pair.sensitivity.items()},
    }


def _method_json(result: Result, folder: Path) -> dict[str, Any]:
    calibration = result.calibration()
    return {
        "method": result.method,
        "folder": Path(os.path.relpath(result.folder, folder)).as_posix(),
        "fingerprint": result.manifest.get("fingerprint"),
        "created": result.manifest["created"],
        "null": None if calibration is None else asdict(calibration.null),
        "n_claimed": None if calibration is None else n_claimed(result),
        "summary": result.summary,
    }
