"""Runs the suite and scores what came out. Finished runs are found again, so an interrupted suite goes on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffing.core.config import fingerprint
from diffing.core.errors import DiskError, UserError
from diffing.core.progress import say, warn
from diffing.core.result import Result
from diffing.core.settings import RunConfig
from diffing.core.specs import ExpectedSpec
from diffing.evaluation.leaderboard import Cost, Leaderboard, Row
from diffing.evaluation.scoring import Detection, counts, detection
from diffing.evaluation.suite import Case, methods_of, words_of
from diffing.evaluation.truth import Truth, ground_truth
from diffing.models.plan import plan_pair
from diffing.pipeline.calibrating import claims_against
from diffing.pipeline.planning import (
    choose_variant,
    chosen_methods,
    model_label,
    plan_corpus,
    plan_pair_spec,
    training_text,
)
from diffing.pipeline.running import Attempt, Session, attempt_settings


@dataclass(frozen=True)
class Entry:
    """A pair of the suite and the configuration that runs it."""

    case: Case
    settings: RunConfig | UserError


@dataclass
class _Done:
    """Attempts of a case, for one seed."""

    case: Case
    seed: int
    settings: RunConfig | None
    attempts: list[Attempt] = field(default_factory=list)

    def result(self, method: str) -> Result | None:
        """The result of a method, if there is one."""
        return next((a.result for a in self.attempts if a.method == method), None)


def run_benchmark(settings: RunConfig, entries: Sequence[Entry], session: Session) -> tuple[Leaderboard, Path]:
    """Run everything and score it.

    Args:
        settings: Of the benchmark; decides its size, methods and seeds.
        entries: Its pairs.
        session: Holds the pair between runs.

    Returns:
        The leaderboard and the folder it belongs in.

    Raises:
        DiskError: The output folder cannot be written.
        UserError: No method gave a result on any organism.
    """
    done = []
    chosen = chosen_methods(settings) if settings.pipeline.methods else []
    seeds = range(settings.seed, settings.seed + settings.benchmark.seeds)
    total = len(entries) * len(seeds)
    for number, (entry, seed) in enumerate(((e, s) for e in entries for s in seeds), 1):
        methods = methods_of(entry.case, settings.benchmark, chosen)
        say(f"[{number}/{total}] {entry.case.label}, seed {seed}: {', '.join(methods) or 'no method'}")
        done.append(_attempted(entry, methods, seed, session))
    attempts = [a for d in done if d.case.role == "organism" for a in d.attempts]
    if not any(a.result for a in attempts):
        reasons = dict.fromkeys(a.reason for a in attempts if a.reason)
        raise UserError(
            "No method gave a result on any organism of the benchmark: "
            + next(iter(reasons), f"none of {', '.join(chosen)} is run on them in this size")
        )
    board = _scored(settings, done, session)
    base_dir = Path(settings.infrastructure.storage.base_dir).expanduser()
    return board, base_dir / "benchmark" / _key(settings, entries)


def _key(settings: RunConfig, entries: Sequence[Entry]) -> str:
    """Of what decides the rows."""
    return fingerprint(
        {
            "benchmark": settings.benchmark.model_dump(mode="json"),
            "methods": list(settings.pipeline.methods),
            "cases": [[e.case.label, _decisive(e.settings)] for e in entries],
        }
    )


def _decisive(settings: RunConfig | UserError) -> Any:
    """What of a configuration decides numbers: all but where they go and how the machine is used."""
    left_out = {"infrastructure", "wandb", "overwrite", "cache"}
    return str(settings) if isinstance(settings, UserError) else settings.model_dump(mode="json", exclude=left_out)


def _attempted(entry: Entry, methods: Sequence[str], seed: int, session: Session) -> _Done:
    if isinstance(entry.settings, UserError):
        return _failed(entry.case, methods, seed, str(entry.settings))
    pipeline = entry.settings.pipeline.model_copy(update={"mode": "full", "methods": tuple(methods)})
    settings = entry.settings.model_copy(update={"seed": seed, "pipeline": pipeline})
    done = _Done(entry.case, seed, settings)
    if methods:
        try:
            done.attempts = attempt_settings(settings, session)
        except DiskError:
            raise
        except UserError as error:
            warn(f"{entry.case.label}: {error}")
            return _failed(entry.case, methods, seed, str(error))
    return done


def _failed(case: Case, methods: Sequence[str], seed: int, reason: str) -> _Done:
    return _Done(case, seed, None, [Attempt(m, None, reason) for m in methods])


def _scored(settings: RunConfig, done: Sequence[_Done], session: Session) -> Leaderboard:
    truths: dict[str, Truth | None] = {}
    on_null: dict[tuple[str, str, int], Detection] = {}
    rows, notes = [], []
    for each in done:
        if each.settings is None:
            rows += [_row(each, a) for a in each.attempts]
            continue
        text = each.case.text_of
        if text not in truths:
            truths[text] = _truth(each.settings)
            if truths[text] is None:
                notes.append(
                    f"{text} has no training text, or no generic text of its kind to compare it with: its tokens and "
                    "documents are reported and not scored."
                )
        for attempt in each.attempts:
            try:
                rows.append(_scored_row(each, attempt, done, truths[text], on_null))
            except UserError as error:
                warn(str(error))
                rows.append(_row(each, replace(attempt, reason=str(error))))
    return Leaderboard(
        size=settings.benchmark.size,
        model=model_label(settings.model),
        rows=tuple(rows),
        notes=(*notes, *_remarks(rows, session)),
        n_found=sum(a.was_found for d in done for a in d.attempts),
        n_run=sum(a.result is not None and not a.was_found for d in done for a in d.attempts),
        max_tokens=settings.data.max_tokens,
        command=session.command,
    )


def _row(each: _Done, attempt: Attempt) -> Row:
    return Row(attempt.method, each.case.label, each.case.role, each.seed, attempt.reason)


def _scored_row(
    each: _Done, attempt: Attempt, done: Sequence[_Done], truth: Truth | None,
    on_null: dict[tuple[str, str, int], Detection],
) -> Row:  # fmt: skip
    result, settings = attempt.result, each.settings
    if result is None or settings is None:
        return _row(each, attempt)
    expected = settings.organism.expected
    judge, second = _judges(each, attempt.method, done)
    claims = None if judge is None else claims_against(result, judge, second)
    is_organism = each.case.role == "organism"
    key = (each.case.text_of, attempt.method, each.seed)
    if is_organism and judge is not None and key not in on_null:
        on_null[key] = _of_null(judge, second, truth, expected, each.seed)
    manifest = result.manifest
    return Row(
        method=attempt.method,
        pair=each.case.label,
        role=each.case.role,
        seed=each.seed,
        detection=detection(result, judge, claims, truth, expected, each.seed) if is_organism else None,
        on_null=on_null[key] if is_organism and judge is not None else None,
        counts=None if claims is None else counts(claims),
        cost=Cost(manifest["wall_seconds"], manifest["peak_memory_bytes"]),
        folder="/".join(result.folder.parts[-_BELOW_RESULTS:]),
        version=manifest.get("versions", {}).get("diffing"),
    )


def _of_null(
    judge: Result, second: Result | None, truth: Truth | None, expected: ExpectedSpec | None, seed: int
) -> Detection:
    """The scores of a null on an organism's truth; what exceeds a null is known of a second one."""
    found = detection(judge, None, None, truth, expected, seed)
    if second is None:
        return found
    return replace(found, excess=detection(second, judge, None, truth, expected, seed).excess)


def _judges(each: _Done, method: str, done: Sequence[_Done]) -> tuple[Result | None, Result | None]:
    """The judging nulls' results by the same method on the same text, the first and the second; none judges itself.

    A method that reads no text is judged by nulls on any text.
    """
    if each.case.role in ("judge", "second judge"):
        return None, None
    mine = each.result(method)
    assert mine is not None
    return _of_role("judge", mine, each, method, done), _of_role("second judge", mine, each, method, done)


def _of_role(role: str, mine: Result, each: _Done, method: str, done: Sequence[_Done]) -> Result | None:
    key = mine.manifest.get("comparison")
    found = [d.result(method) for d in done if d.case.role == role and d.seed == each.seed]
    return next((r for r in found if r is not None and r.manifest.get("comparison") == key), None)


def _truth(settings: RunConfig) -> Truth | None:
    spec, training = plan_pair_spec(settings)
    tokenizer = plan_pair(spec).tokenizer
    corpus = plan_corpus(settings, training)
    return ground_truth(corpus.datasets, tokenizer, len(tokenizer), settings.seed)


def _remarks(rows: Sequence[Row], session: Session) -> list[str]:
    versions = sorted({r.version for r in rows if r.version})
    shared = session.sharing
    said = []
    if len(versions) > 1:
        said.append(f"Runs of different versions of diffing are mixed here ({', '.join(versions)}): overwrite=true.")
    if shared.n_pairs_loaded:
        said.append(
            f"Shared: {shared.n_uses_of_pairs} runs and harvests used models that were loaded {shared.n_pairs_loaded} "
            f"times; {shared.n_readers} runs read activations that {shared.n_harvests} passes over the text made."
        )
    return said


_BELOW_RESULTS = 4  # model, pair, method, run
Compose = Callable[[Sequence[str]], RunConfig]


def compose_entries(cases: Sequence[Case], compose: Compose) -> list[Entry]:
    """The configuration of each pair; a null that cannot be composed is kept with its reason.

    Raises:
        UserError: An organism cannot be: it was misspelt, or has nothing for this base.
    """
    entries = [Entry(case, _composed(case, compose)) for case in cases]
    for entry in entries:
        if entry.case.role == "organism":
            if isinstance(entry.settings, UserError):
                raise entry.settings
            plan_pair_spec(entry.settings)
    return entries


def own_texts(names: Sequence[str], compose: Compose) -> set[str]:
    """The organisms, named with their variant, that were trained on another text than the default variant.

    Raises:
        UserError: One was misspelt, or has nothing for this base.
    """
    return {name for name in names if "+" in name and _has_own_text(compose(words_of(name)))}


def _has_own_text(settings: RunConfig) -> bool:
    organism, model = settings.organism, settings.model
    variant, _ = choose_variant(organism, model, settings.organism_variant)
    return training_text(organism, model, variant) != training_text(organism, model, None)


def refuse_gaps(board: Leaderboard) -> None:
    """Say that the leaderboard is not whole.

    Raises:
        UserError: A method gave no result on an organism.
    """
    missing = [r for r in board.rows if r.role == "organism" and r.reason]
    if missing:
        first, n = missing[0], sum(r.role == "organism" for r in board.rows)
        raise UserError(
            f"{len(missing)} of {n} rows of the leaderboard have no result, such as {first.method} on {first.pair} "
            f"({first.reason.rstrip('.')}); the same command tries them again."
        )


def _composed(case: Case, compose: Compose) -> RunConfig | UserError:
    try:
        return compose(case.overrides)
    except UserError as error:
        return error
