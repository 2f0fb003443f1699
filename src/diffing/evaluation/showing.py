"""The leaderboard as people read it: in the terminal, as a page, as Markdown."""

from dataclasses import dataclass
from pathlib import Path

from diffing.core.blocks import Block, Figure, Heading, Paragraph, Section, Table
from diffing.core.files import disk_errors, write_text
from diffing.core.progress import say
from diffing.core.sensitivity import Sensitivity, write_sensitivity
from diffing.display.numbers import duration, number, size
from diffing.evaluation.figures import figures
from diffing.evaluation.leaderboard import NAME, Leaderboard, Row, over_seeds, write_leaderboard
from diffing.evaluation.scores import Score
from diffing.evaluation.scoring import Count, Counts
from diffing.evaluation.suite import LADDER
from diffing.evaluation.summing import added, faintest, false_claims, mean_score
from diffing.pipeline.printing import print_blocks
from diffing.pipeline.running import REMEDY
from diffing.report.document import Chapter, Document, markdown, render_document


def show_leaderboard(board: Leaderboard, folder: Path) -> None:
    """Write the leaderboard as `leaderboard.html`, `.md` and `.json`, with what was measured of sensitivity; print it.

    Raises:
        UserError: The folder cannot be written, or the disk is full.
    """
    document = as_document(board)
    with disk_errors(folder, REMEDY):
        _write(board, document, folder)
    for chapter in document.chapters[:3]:
        print_blocks(chapter.section.title, chapter.section.blocks)
    say(f"Leaderboard: {folder / 'leaderboard.html'}, {folder / 'leaderboard.md'}, {folder / NAME}")


def _write(board: Leaderboard, document: Document, folder: Path) -> None:
    write_leaderboard(folder / NAME, board)
    write_text(folder / "leaderboard.html", render_document(document))
    write_text(folder / "leaderboard.md", markdown(document))
    methods = dict.fromkeys(r.method for r in board.rows)
    write_sensitivity(folder, board.model, [s for m in methods if (s := faintest(board, m)) is not None])


def as_document(board: Leaderboard) -> Document:
    """The page of a leaderboard."""
    pairs = list(dict.fromkeys(r.pair for r in board.rows if r.role == "organism"))
    methods = list(dict.fromkeys(r.method for r in board.rows))
    seeds = sorted({r.seed for r in board.rows})
    limit = "all tokens" if board.max_tokens is None else f"at most {number(board.max_tokens)} tokens"
    drawn = figures(board)
    chapters = [
        _detection(board, pairs, methods, bool(drawn)),
        _ladder(board, methods),
        _nulls(board),
        _cost(board, methods),
        _missing(board),
        _made(board),
    ]
    return Document(
        title=f"Benchmark of {board.model}, {board.size} size",
        eyebrow="Planted truth and nulls",
        lead=(
            f"{len(methods)} method{'s' if len(methods) != 1 else ''} on {len(pairs)} "
            f"organism{'s' if len(pairs) != 1 else ''} and on null pairs, "
            f"{limit} of each dataset, {'one seed' if len(seeds) == 1 else f'{len(seeds)} seeds'}. No model judged "
            "anything: tokens are scored against the words of the training text, documents by where they come from, "
            "texts by a rule.",
        ),
        chapters=tuple(Chapter(section) for section in chapters if section.blocks),
        figures=drawn,
    )


@dataclass(frozen=True)
class _Kind:
    """How a kind of score is shown."""

    name: str
    title: str
    unit: str
    caption: str


_KINDS = {
    "tokens": _Kind(
        "tokens", "Tokens", "average precision",
        "Of the ranking of the whole vocabulary, for the words that the training text is full of. By chance: mean over "
        "random sets of tokens that are as frequent.",
    ),
    "documents": _Kind(
        "documents", "Documents", "AUROC", "The organism's training text against generic text of the same kind.",
    ),
    "excess": _Kind(
        "documents beyond the null", "Documents beyond the null", "AUROC",
        "The same of what a document's share of the change exceeds its share in the null; on the null: of another.",
    ),
    "texts": _Kind("texts", "Texts", "share", "Of the texts in a result's evidence, those that show what is expected."),
}  # fmt: skip


def _detection(board: Leaderboard, pairs: list[str], methods: list[str], is_drawn: bool) -> Section:
    groups = {(g[0].method, g[0].pair): g for g in over_seeds(board.rows)}
    blocks: list[Block] = [
        Paragraph(
            "Where a method's scores lie, with their 95 % intervals, above chance (random tokens as frequent, "
            "shuffled documents) and above the same scores of the null."
        ),
        Table(
            ("method", *pairs),
            tuple((m, *(_found(groups.get((m, p))) for p in pairs)) for m in methods),
            "What is found, by method and organism; no null: there is nothing to hold it against.",
        ),
    ]
    if is_drawn:
        alt = "Average precision for domain tokens by method and organism, with 95 % intervals, and that of the null."
        blocks.append(Figure("tokens", "Average precision for domain tokens; hollow diamonds: on the null.", alt))
    for field, kind in _KINDS.items():
        rows = [row for m in methods for p in pairs if (row := _scores(groups.get((m, p)), field))]
        if rows:
            columns = ("method", "organism", kind.unit, "95 %", "by chance", "on the null")
            blocks += [Heading(kind.title), Table(columns, tuple(rows), kind.caption)]
    claims = [row for m in methods for p in pairs if (row := _claims(groups.get((m, p))))]
    if claims:
        columns = ("method", "organism", "tokens", "in the domain", "by chance", "examples", "texts", "numbers")
        blocks += [Heading("Claims"), Table(columns, tuple(claims), _CLAIMS)]
    return Section("Detection", tuple(blocks))


_COUNTED = ("tokens", "examples", "texts", "numbers")
_CLAIMS = (
    "Claimed of judged, against the null. In the domain: of the listed tokens that are claimed, those that the "
    "training text is full of; their relatives count as wrong. By chance: the share of these among what it ranks."
)


def _claims(rows: list[Row] | None) -> tuple[str | float | None, ...] | None:
    judged = [r for r in rows or [] if r.counts is not None]
    if not judged:
        return None
    tokens, examples, texts, numbers = _count_cells(added([r.counts for r in judged if r.counts]))
    right = mean_score(judged, "right")
    share = None if right.value is None else f"{number(right.value)} {_interval(right)}"
    return judged[0].method, judged[0].pair, tokens, share, right.chance, examples, texts, numbers


def _found(rows: list[Row] | None) -> str:
    if not rows:
        return "not run"
    known = [r for r in rows if r.detection is not None]
    if not known:
        return "failed"
    scored = [field for field in _KINDS if mean_score(known, field).value is not None]
    found = [_KINDS[field].name for field in scored if all(r.exceeds(field) for r in known)]
    if not found and scored and not any(r.has_null(field) for r in known for field in scored):
        return "no null"
    return ", ".join(found) or ("nothing" if scored else "not scored")


def _scores(rows: list[Row] | None, kind: str) -> tuple[str | float | None, ...] | None:
    known = [r for r in rows or [] if r.detection is not None]
    if not known:
        return None
    score, null = mean_score(known, kind), mean_score(known, kind, of_null=True)
    if score.value is None:
        return None
    return known[0].method, known[0].pair, score.value, _interval(score), score.chance, null.value


def _interval(score: Score) -> str:
    return "–" if score.low is None else f"[{number(score.low)}, {number(score.high)}]"


def _ladder(board: Leaderboard, methods: list[str]) -> Section:
    found = [s for m in methods if (s := faintest(board, m)) is not None]
    if not found:
        return Section("Sensitivity")
    rungs = [rung for rung in LADDER if any(r.pair == rung for r in board.rows)]
    rows = tuple((s.method, *(s.by_rung.get(rung, "not run") for rung in rungs), _faintest(s)) for s in found)
    said = (
        "How faint a change is still found: roman_concrete trained on its documents alone, with one and with four "
        "generic documents for each, for equally many steps."
    )
    return Section(
        "Sensitivity",
        (
            Paragraph(said),
            Table(("method", *rungs, "faintest found"), rows, "From the strongest change to the faintest."),
        ),
    )


def _faintest(sensitivity: Sensitivity) -> str:
    return sensitivity.faintest or "none"


def _nulls(board: Leaderboard) -> Section:
    rates = false_claims(board)
    if not rates:
        return Section("False claims")
    rows = tuple((r.method, r.null, *_count_cells(r.counts)) for r in rates)
    said = (
        "Claims on pairs in which nothing was planted, judged against the generic finetune as every result is: all "
        "are false, though every null but the last digits of a dtype carries some readable signal."
    )
    return Section("False claims", (Paragraph(said), Table(("method", "null", *_COUNTED), rows, "Claimed of judged.")))


def _count_cells(counts: Counts) -> tuple[str, str, str, str]:
    return _count(counts.tokens), _count(counts.examples), _count(counts.texts), _count(counts.numbers)


def _count(count: Count | None) -> str:
    return "–" if count is None else f"{number(count.n_claimed)} of {number(count.n_tested)}"


def _cost(board: Leaderboard, methods: list[str]) -> Section:
    rows = []
    for method in methods:
        costs = [r.cost for r in board.rows if r.method == method and r.cost is not None]
        if costs:
            seconds = sorted(c.seconds for c in costs)
            rows.append(
                (
                    method, len(costs), duration(seconds[len(seconds) // 2]), duration(seconds[-1]),
                    size(max(c.peak_memory_bytes for c in costs)),
                )
            )  # fmt: skip
    caption = (
        "Time of a run without the harvest of activations, which runs of a pair share; memory with the models loaded."
    )
    return Section("Cost", (Table(("method", "runs", "median", "longest", "peak memory"), tuple(rows), caption),))


def _missing(board: Leaderboard) -> Section:
    rows = tuple((r.method, r.pair, r.reason) for r in board.rows if r.reason)
    return Section("What is missing", (Table(("method", "pair", "reason"), rows),) if rows else ())


def _made(board: Leaderboard) -> Section:
    runs = f"{number(board.n_run)} runs were computed, {number(board.n_found)} were found finished."
    command = f"Made by: {board.command}" if board.command else ""
    return Section("How this was made", tuple(Paragraph(p) for p in (runs, *board.notes, command) if p))
