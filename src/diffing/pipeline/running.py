"""Runs jobs: finds what is done, computes what is not, keeps what an interruption leaves whole."""

import errno
import os
import time
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from diffing.activations.cache import Cache
from diffing.activations.source import ActivationSource
from diffing.analysis.context import RunContext
from diffing.core.errors import UserError, one_line
from diffing.core.files import disk_errors
from diffing.core.layers import Slot, layers
from diffing.core.progress import say, warn
from diffing.core.provenance import restart_peak_memory
from diffing.core.result import Result
from diffing.core.runs import RunKey, RunState, run_status
from diffing.core.settings import RunConfig
from diffing.core.specs import PairSpec
from diffing.core.tracking import Log, tracker
from diffing.data.tokens import Corpus
from diffing.models.pair import ModelPair, load_pair
from diffing.pipeline.calibrating import calibrate_around
from diffing.pipeline.planning import Job, Subject, plan_jobs
from diffing.pipeline.preparing import (
    Prepared,
    harvest_for,
    joined,
    open_source,
    pair_facts,
    prepare,
    preprocessing_slots,
    refuse_live_preprocessing,
    slots_of,
    storage_dtype,
)
from diffing.pipeline.writing import write_result

REMEDY = "free some space or set infrastructure.storage.base_dir=DIR, then run the same command: finished work is kept"


@dataclass
class Sharing:
    """What runs had in common instead of making it anew.

    Args:
        n_uses_of_pairs: Runs and harvests that used loaded models.
        n_pairs_loaded: How often models were loaded for them.
        n_readers: Runs that read activations from disk.
        n_harvests: Passes over the text that made them.
    """

    n_uses_of_pairs: int = 0
    n_pairs_loaded: int = 0
    n_readers: int = 0
    n_harvests: int = 0


@dataclass
class Session:
    """What consecutive runs share: the pair that was loaded last.

    Args:
        command: The command line that asked for the runs, for manifests and messages.
        sharing: Counts what was shared.
        faults: What no user can mend and yet did not end the runs: method and reason.
    """

    command: str | None = None
    sharing: Sharing = field(default_factory=Sharing)
    faults: list[str] = field(default_factory=list)
    _pairs: dict[str, ModelPair] = field(default_factory=dict)

    def pair(self, fingerprint: str, spec: PairSpec, must_share_tokens: bool) -> ModelPair:
        """The pair, loaded unless it is the one at hand."""
        self.sharing.n_uses_of_pairs += 1
        if fingerprint not in self._pairs:
            self.sharing.n_pairs_loaded += 1
            self._pairs.clear()
            say(f"Loading {spec.model.name} and its finetuned variant …")
            self._pairs[fingerprint] = load_pair(spec, must_share_tokens)
        return self._pairs[fingerprint]


def run_settings(settings: RunConfig, session: Session) -> list[Result]:
    """Do everything that one configuration asks for.

    Raises:
        UserError: Something the user can mend; what was computed before stays.
    """
    mode = settings.pipeline.mode
    if mode == "preprocessing":
        refuse_live_preprocessing(settings)
    jobs = plan_jobs(settings)
    _set_threads(settings.infrastructure.threads)
    base_dir = _writable(settings.infrastructure.storage.base_dir)
    with disk_errors(base_dir, REMEDY):
        runs = _prepared_runs(jobs, base_dir, session)
        if mode == "preprocessing":
            preprocess(runs, settings.overwrite)
            return []
        if mode == "full":
            _harvest_needs(runs)
        return [_run(run) for run in runs]


@dataclass
class _Run:
    """A job on its way.

    Args:
        job: What to do.
        prepared: Its tokens and the pair's plan.
        slots: The activations it reads.
        base_dir: Output folder.
        session: Holds the pair between jobs.
        given: The pair, when it is loaded already.
        loaded: The pair, once it was asked for.
        is_verified: Whether what it reads from disk was compared with its checksums just now.
    """

    job: Job
    prepared: Prepared
    slots: list[Slot]
    base_dir: Path
    session: Session
    given: ModelPair | None = None
    loaded: ModelPair | None = None
    is_verified: bool = False

    @property
    def key(self) -> RunKey:
        """Where the result belongs."""
        reads = {"slots": [s.name for s in self.slots], "dtype": storage_dtype(self.job.settings)}
        return self.job.key(self.prepared.fingerprint, self.prepared.corpus.fingerprint, reads if self.slots else None)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.key.folder(self.base_dir)

    @property
    def is_done(self) -> bool:
        """Whether the result is there and need not be made again."""
        return run_status(self.folder)[0] == "done" and not self.job.settings.overwrite

    def pair(self, wanted: Sequence[Slot] = ()) -> ModelPair:
        """The models, loaded when first asked for and checked to have what is read: the run's slots and `wanted`."""
        if self.loaded is None:
            must_share = not self.job.method.compares_texts
            pair = self.given or self.session.pair(self.prepared.fingerprint, self.job.pair, must_share)
            if must_share and pair.vocabulary.refusal is not None:
                raise UserError(pair.vocabulary.refusal)
            check_fit(self.job.settings, pair, self.prepared.corpus, [*self.slots, *wanted])
            for note in (*pair.facts["warnings"], *self.prepared.corpus.notes):
                warn(note)
            self.loaded = pair
        return self.loaded


@dataclass(frozen=True)
class Attempt:
    """One method of several: its result, or why there is none.

    Args:
        method: Its name.
        result: None where it failed.
        reason: One sentence; empty where it did not fail.
        was_found: Whether it was finished before.
    """

    method: str
    result: Result | None
    reason: str = ""
    was_found: bool = False


def attempt_settings(settings: RunConfig, session: Session) -> list[Attempt]:
    """Do everything that one configuration asks for; a method that fails leaves the others alone.

    Raises:
        UserError: The pair, the text or the output folder cannot be had, so that no method can run.
    """
    jobs = plan_jobs(settings)
    _set_threads(settings.infrastructure.threads)
    base_dir = _writable(settings.infrastructure.storage.base_dir)
    with disk_errors(base_dir, REMEDY):
        runs = _prepared_runs(jobs, base_dir, session)
        refusal = _refusal(runs)
        return [_attempt(run, refusal if run.slots and not run.is_done else None) for run in runs]


def _refusal(runs: Sequence[_Run]) -> UserError | None:
    """Why the activations that runs read cannot be had; they alone fail for it."""
    try:
        _harvest_needs(runs)
    except UserError as error:
        return error
    return None


def _attempt(run: _Run, refusal: UserError | None) -> Attempt:
    """A run that is kept from ending the others: whatever goes wrong in one method is said and left behind."""
    name, was_found = run.job.method.name, run.is_done
    try:
        if refusal is not None:
            raise refusal
        return Attempt(name, _run(run), was_found=was_found)
    except UserError as error:
        warn(f"{name}: {error}")
        return Attempt(name, None, str(error))
    except OSError:
        raise
    except Exception as error:
        traceback.print_exc()
        reason = one_line(error)
        run.session.faults.append(f"{name}: {reason}")
        return Attempt(name, None, reason)


def _prepared_runs(jobs: Sequence[Job], base_dir: Path, session: Session) -> list[_Run]:
    """Jobs of one configuration share pair and text, so both are prepared once."""
    prepared = prepare(jobs[0].subject)
    return [_Run(job, prepared, slots_of(job, prepared.n_layers), base_dir, session) for job in jobs]


def run_job(
    job: Job, base_dir: Path, session: Session, corpus: Corpus | None = None, pair: ModelPair | None = None
) -> Result:
    """One method on one pair: found if it is done, else harvested as needed, computed and written.

    Args:
        job: What to do.
        base_dir: Output folder.
        session: Holds the pair between jobs.
        corpus: Given when the text comes from memory; else read as `job.corpus` says.
        pair: Given when it is loaded already.
    """
    prepared = prepare(job.subject, corpus, pair)
    run = _Run(job, prepared, slots_of(job, prepared.n_layers), base_dir, session, pair)
    _harvest_needs([run])
    return _run(run)


def preprocess(runs: Sequence[_Run], overwrite: bool) -> None:
    """Harvest `preprocessing.layers`, and what the chosen methods need besides."""
    first = runs[0]
    always = preprocessing_slots(first.job.settings, first.prepared.n_layers)
    wanted = joined([always, *(run.slots for run in runs)])
    cache = _harvest(first, wanted, overwrite)
    names = ", ".join(s.name for s in wanted)
    say(f"Activations of {cache.plan.n_tokens:,} tokens at {names} are whole in {cache.folder}")


def _harvest_needs(runs: Sequence[_Run]) -> None:
    """Put on disk what unfinished runs will read there, in one pass."""
    waiting = [run for run in runs if run.slots and not run.is_done]
    if waiting and waiting[0].job.settings.preprocessing.store == "disk":
        first = waiting[0]
        first.session.sharing.n_readers += len(waiting)
        _harvest(first, joined([run.slots for run in waiting]), first.job.settings.overwrite)
        for run in waiting:
            run.is_verified = True


def _harvest(run: _Run, wanted: list[Slot], overwrite: bool) -> Cache:
    subject, command = run.job.subject, run.session.command

    def load() -> ModelPair:
        run.session.sharing.n_harvests += 1
        return run.pair(wanted)

    return harvest_for(subject, run.prepared, wanted, run.base_dir, command, load, overwrite)


def _run(run: _Run) -> Result:
    folder = run.folder
    if run.is_done:
        say(f"Found finished: {folder} (overwrite=true computes it again)")
        found = Result(folder)
        calibrate_around(found, run.base_dir, only_unjudged=True)
        return found
    restart_peak_memory()
    started = time.time()
    source = _source(run) if run.slots else None
    folder.mkdir(parents=True, exist_ok=True)
    with RunState(folder):
        if run.is_done:
            return Result(folder)
        scratch = folder / "partial"
        if scratch.exists():
            say(f"Going on with the unfinished run in {folder}")
        scratch.mkdir(exist_ok=True)
        if source is None and run.job.method.needs_models:
            run.pair()
        with _log(run.job) as log:
            context = _context(run, source, scratch, log)
            output = run.job.method.run(run.job.options, context)
            log({s.name: s.value for s in output.summary if s.value is not None})
        facts = pair_facts(source, run.loaded, run.prepared)
        fingerprint = run.prepared.fingerprint
        identity = facts.get("base_identity") or run.prepared.load_plan().base_identity
        slots = [s.name for s in run.slots]
        comparison = run.job.comparison(identity, run.prepared.corpus.fingerprint, slots)
        result = write_result(
            folder, run.job, run.key, fingerprint, facts, run.prepared.corpus, output, started,
            run.session.command, comparison,
        )  # fmt: skip
    calibrate_around(result, run.base_dir)
    return Result(folder)


def _source(run: _Run) -> ActivationSource:
    subject, command, verify = run.job.subject, run.session.command, not run.is_verified
    return open_source(subject, run.prepared, run.slots, run.base_dir, command, run.pair, verify)


def source_of(subject: Subject, corpus: Corpus | None, pair: ModelPair, base_dir: Path) -> ActivationSource:
    """Activations of a loaded pair at `preprocessing.layers`, harvested first if they are to be on disk.

    Raises:
        UserError: A layer, text or folder does not fit, or the disk is full.
    """
    prepared = prepare(subject, corpus, pair)
    settings = subject.settings
    wanted = preprocessing_slots(settings, prepared.n_layers)
    check_fit(settings, pair, prepared.corpus, wanted)
    if settings.preprocessing.store == "disk":
        harvest_for(subject, prepared, wanted, base_dir, None, lambda: pair, settings.overwrite)
    return open_source(subject, prepared, wanted, base_dir, None, lambda: pair, verify=False)


def check_fit(settings: RunConfig, pair: ModelPair, corpus: Corpus, slots: Sequence[Slot] = ()) -> None:
    """Refuse layers the models do not have, and text longer than their positions.

    Raises:
        UserError: Names the option to change.
    """
    longest = max(len(s.ids) for s in corpus.sequences)
    for handle in (pair.base, pair.finetuned):
        n_layers = len(handle.sites.layers)
        layers(settings.preprocessing.layers, n_layers)
        layers([s.layer for s in slots], n_layers)
        if handle.max_positions is not None and longest > handle.max_positions:
            raise UserError(
                f"A document has {longest} tokens and the model reads at most {handle.max_positions}; "
                f"set data.max_length={handle.max_positions}."
            )


def _log(job: Job) -> AbstractContextManager[Log]:
    wandb = job.settings.wandb
    name = f"{job.method.name}/{job.pair.organism}/{job.pair.model.name}"
    return tracker(wandb.enabled, wandb.project, wandb.entity, name, job.settings.model_dump(mode="json"))


def _context(run: _Run, source: ActivationSource | None, scratch: Path, log: Log) -> RunContext:
    settings = run.job.settings
    return RunContext(
        load_pair=run.pair,
        tokenizer=run.prepared.tokenizer,
        corpus=run.prepared.corpus,
        seed=settings.seed,
        skip_first_tokens=settings.skip_first_tokens,
        batch_tokens=settings.preprocessing.batch_tokens,
        skip_template_tokens=run.job.corpus.skip_template_tokens,
        null_pair=settings.null_pair,
        scratch=scratch,
        log=log,
        activations=source,
        load_plan=run.prepared.load_plan,
    )


def _writable(base_dir: str) -> Path:
    """The output folder, made and tried before anything is computed."""
    path = Path(base_dir).expanduser()
    with disk_errors(path, "set infrastructure.storage.base_dir=DIR"):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:
            raise PermissionError(errno.EACCES, "no folder can be made there", str(path)) from None
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not writable", str(path))
        probe = path / f".write-test-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    return path


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
