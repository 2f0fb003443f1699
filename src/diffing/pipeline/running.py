"""Runs jobs: finds what is done, computes what is not, keeps what an interruption leaves whole."""

import errno
import os
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from diffing.analysis.context import RunContext
from diffing.core.errors import UserError
from diffing.core.files import disk_errors
from diffing.core.layers import layers
from diffing.core.progress import say, warn
from diffing.core.result import Result
from diffing.core.runs import RunState, run_status
from diffing.core.settings import RunConfig
from diffing.core.specs import PairSpec
from diffing.core.tracking import Log, tracker
from diffing.data.tokens import Corpus, tokenize_corpus
from diffing.models.pair import ModelPair, load_pair
from diffing.models.plan import plan_pair
from diffing.pipeline.planning import Job, plan_jobs
from diffing.pipeline.writing import write_result

_REMEDY = "free some space or set infrastructure.storage.base_dir=DIR, then run the same command: finished work is kept"


@dataclass
class Session:
    """What consecutive runs share: the pair that was loaded last.

    Args:
        command: The command line that asked for the runs, for manifests.
    """

    command: str | None = None
    _pairs: dict[str, ModelPair] = field(default_factory=dict)

    def pair(self, fingerprint: str, spec: PairSpec) -> ModelPair:
        """The pair, loaded unless it is the one at hand."""
        if fingerprint not in self._pairs:
            self._pairs.clear()
            say(f"Loading {spec.model.name} and its finetuned variant …")
            self._pairs[fingerprint] = load_pair(spec)
        return self._pairs[fingerprint]


def run_settings(settings: RunConfig, session: Session) -> list[Result]:
    """Do everything that one configuration asks for.

    Raises:
        UserError: Something the user can mend; what was computed before stays.
    """
    mode = settings.pipeline.mode
    if mode in ("preprocessing", "cache"):
        raise UserError(f"pipeline.mode={mode} is not built yet; what works now: pipeline.mode=full (or diffing).")
    jobs = plan_jobs(settings)
    _set_threads(settings.infrastructure.threads)
    base_dir = _writable(settings.infrastructure.storage.base_dir)
    with disk_errors(base_dir, _REMEDY):
        return [run_job(job, base_dir, session) for job in jobs]


def run_job(
    job: Job, base_dir: Path, session: Session, corpus: Corpus | None = None, pair: ModelPair | None = None
) -> Result:
    """One method on one pair: found if it is done, else computed and written.

    Args:
        job: What to do.
        base_dir: Output folder.
        session: Holds the pair between jobs.
        corpus: Given when the text comes from memory; else read as `job.corpus` says.
        pair: Given when it is loaded already.
    """
    started = time.time()
    if pair is None:
        plan = plan_pair(job.pair)
        fingerprint, tokenizer, rules = plan.fingerprint, plan.tokenizer, plan.rules
    else:
        fingerprint, tokenizer, rules = pair.fingerprint, pair.tokenizer, pair.rules
    corpus = corpus or tokenize_corpus(job.corpus, tokenizer, rules)
    key = job.key(fingerprint, corpus.fingerprint)
    folder = key.folder(base_dir)
    if run_status(folder)[0] == "done" and not job.settings.overwrite:
        say(f"Found finished: {folder} (overwrite=true computes it again)")
        return Result(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with RunState(folder):
        if run_status(folder)[0] == "done" and not job.settings.overwrite:
            return Result(folder)
        scratch = folder / "partial"
        if scratch.exists():
            say(f"Going on with the unfinished run in {folder}")
        scratch.mkdir(exist_ok=True)
        pair = pair or session.pair(fingerprint, job.pair)
        check_fit(job.settings, pair, corpus)
        for note in (*pair.facts["warnings"], *corpus.notes):
            warn(note)
        with _log(job) as log:
            context = _context(job, pair, corpus, scratch, log)
            output = job.method.run(job.options, context)
            log({s.name: s.value for s in output.summary if s.value is not None})
        return write_result(folder, job, key, pair, corpus, output, started, session.command)


def check_fit(settings: RunConfig, pair: ModelPair, corpus: Corpus) -> None:
    """Refuse layers the models do not have, and text longer than their positions.

    Raises:
        UserError: Names the option to change.
    """
    longest = max(len(s.ids) for s in corpus.sequences)
    for handle in (pair.base, pair.finetuned):
        layers(settings.preprocessing.layers, len(handle.sites.layers))
        if handle.max_positions is not None and longest > handle.max_positions:
            raise UserError(
                f"A document has {longest} tokens and the model reads at most {handle.max_positions}; "
                f"set data.max_length={handle.max_positions}."
            )


def _log(job: Job) -> AbstractContextManager[Log]:
    wandb = job.settings.wandb
    name = f"{job.method.name}/{job.pair.organism}/{job.pair.model.name}"
    return tracker(wandb.enabled, wandb.project, wandb.entity, name, job.settings.model_dump(mode="json"))


def _context(job: Job, pair: ModelPair, corpus: Corpus, scratch: Path, log: Log) -> RunContext:
    settings = job.settings
    return RunContext(
        pair=pair,
        corpus=corpus,
        seed=settings.seed,
        skip_first_tokens=settings.skip_first_tokens,
        batch_tokens=settings.preprocessing.batch_tokens,
        skip_template_tokens=job.corpus.skip_template_tokens,
        scratch=scratch,
        log=log,
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
