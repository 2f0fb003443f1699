"""Trains the dictionaries of a run, or opens a published one; goes on where an interrupted run stopped."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from diffing.activations.rows import SlotRows
from diffing.analysis.latents.config import DictionaryConfig
from diffing.analysis.latents.sites import Input, Split, as_input
from diffing.core.errors import UserError
from diffing.core.progress import Advance, bar
from diffing.core.tracking import Log
from diffing.dictionaries.checkpoints import load_checkpoint, save_checkpoint
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.initial import DataScale, initial_dictionary
from diffing.dictionaries.schedules import TrainingSpec
from diffing.dictionaries.spec import DictionarySpec
from diffing.dictionaries.trainer import StepRow, Trainer, train

_SCALE_BATCHES = 128
_SHOWN_EVERY = 10


@dataclass(frozen=True, eq=False)
class Trained:
    """A dictionary and how it came about.

    Args:
        dictionary: In evaluation; on the device it was trained on.
        curve: Some steps of its training, evenly spaced.
        n_tokens: Tokens learned from, repetitions counted.
        n_unique: Different ones among them.
        n_skipped: Batches that held NaN or infinity.
    """

    dictionary: Dictionary
    curve: tuple[StepRow, ...]
    n_tokens: int
    n_unique: int
    n_skipped: int

    @property
    def epochs(self) -> float:
        """How often each token was learned from."""
        return self.n_tokens / max(1, self.n_unique)


def scale_rows(rows: SlotRows, kind: Input, split: Split, batch_rows: int) -> Iterator[Tensor]:
    """Rows that the scale is measured on: all that are learned from, or where they stream, the first batches."""
    if not rows.is_held:
        yield from (as_input(b, kind) for b in islice(rows.batches(split.train_N, batch_rows), _SCALE_BATCHES))
        return
    for block in rows.blocks():
        keep_N = torch.from_numpy(split.train_N[block.token_N]).to(block.rows_N2D.device)
        yield as_input(block.rows_N2D[keep_N & rows.usual(block.rows_N2D)], kind)


def train_on(
    config: DictionaryConfig, spec: DictionarySpec, scale: DataScale, rows: SlotRows, kind: Input, split: Split,
    seed: int, scratch: Path, log: Log, title: str,
) -> Trained:  # fmt: skip
    """Train one dictionary; a checkpoint in `scratch` is gone on from, and gives the same weights.

    Args:
        config: Options.
        spec: The dictionary's shape and kind.
        scale: Of the data.
        rows: The data.
        kind: How the dictionary takes them.
        split: Which of them it learns from.
        seed: Of its initial weights.
        scratch: Folder for checkpoints.
        log: Receives named numbers.
        title: Of the progress bar.

    Raises:
        UserError: Training diverges, or ten batches hold NaN.
    """
    n_unique = int(split.train_N.sum())
    batch_rows = min(config.training.batch_rows, n_unique)
    training = training_spec(config, max(1, config.training.budget(n_unique) // batch_rows))
    key = f"{seed}"
    trainer = load_checkpoint(scratch, key, _device(config.training.device))
    if trainer is None:
        dictionary = initial_dictionary(spec, scale, seed).to(_device(config.training.device))
        trainer = Trainer(dictionary, training, scale.variance)
    batches = (as_input(b, kind) for b in rows.batches(split.train_N, batch_rows, trainer.n_batches))
    with bar(title, training.n_steps * batch_rows, "tokens") as advance:
        advance(trainer.n_steps * batch_rows)
        show = _Progress(advance, log, batch_rows, training.n_steps)
        save = lambda: save_checkpoint(scratch, trainer, key)  # noqa: E731
        train(trainer, batches, show, save, config.training.checkpoint_steps)
        save()
    return Trained(trainer.dictionary, tuple(trainer.history), trainer.n_tokens, n_unique, trainer.n_skipped)


class _Progress:
    """Shows FVE, L0, dead latents and tokens per second beside the bar."""

    def __init__(self, advance: Advance, log: Log, batch_rows: int, n_steps: int) -> None:
        self._advance, self._log, self._batch_rows, self._n_steps = advance, log, batch_rows, n_steps
        self._started, self._n = time.monotonic(), 0

    def __call__(self, row: StepRow) -> None:
        self._n += 1
        is_shown = self._n % _SHOWN_EVERY == 0 or row.step + 1 == self._n_steps
        speed = self._n * self._batch_rows / max(time.monotonic() - self._started, 1e-9)
        note = f"FVE {row.fve:.3f}  L0 {row.l0:.1f}  dead {row.n_dead:,}  {speed:,.0f} tokens/s"
        self._advance(self._batch_rows, note if is_shown else None)
        if is_shown:
            self._log({"fve": row.fve, "l0": row.l0, "dead": row.n_dead, "loss": row.loss, "lr": row.lr})


def training_spec(config: DictionaryConfig, n_steps: int) -> TrainingSpec:
    """Options of the trainer."""
    own = set(TrainingSpec.model_fields) - {"n_steps", "penalty"}
    given = {k: v for k, v in config.training.model_dump().items() if k in own}
    penalty = config.training.penalty
    if penalty is None:
        penalty = 1.0 if config.sparsity == "jumprelu" else 0.2
    return TrainingSpec(n_steps=n_steps, penalty=penalty, **given)


def n_latents(config: DictionaryConfig, width: int) -> int:
    """Latents of the dictionary.

    Raises:
        UserError: k is more than these.
    """
    n = config.n_latents if config.n_latents is not None else max(1, round(config.expansion * width))
    config.refuse_k(n)
    return n


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"diffing.method.training.device={name!r} cannot be used ({reason}); use auto or cpu."
        ) from None
    return device
