"""Training: one step at a time, on batches of raw activations from anywhere."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffing.core.errors import UserError
from diffing.dictionaries.codes import Codes
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.losses import Jump, count_penalty, dead_reconstruction, length_penalty, reconstruction
from diffing.dictionaries.schedules import TrainingSpec

MOST_SKIPPED = 10
CURVE_POINTS = 200
_THRESHOLD_MEMORY = 10
_BIAS_DECAY = 0.9
_THRESHOLD_PACE = 10.0


@dataclass(frozen=True)
class StepRow:
    """What one step did.

    Args:
        step: From 0.
        n_tokens: Tokens of all steps so far.
        fve: 1 − the reconstruction loss, on the batch before it was learned from.
        l0: Active latents per token.
        n_dead: Dead latents before the step.
        loss: Sum of all terms.
        aux: AuxK alone.
        lr: Learning rate.
    """

    step: int
    n_tokens: int
    fve: float
    l0: float
    n_dead: int
    loss: float
    aux: float
    lr: float


class NotFiniteError(UserError):
    """Too many batches held NaN or infinity; what was learned before is sound."""


class Trainer:
    """A dictionary in training: its optimiser, its counters and its threshold.

    Args:
        dictionary: What is trained, in place; on the device it is to be trained on.
        spec: How.
        variance: Σ_m tr Cov(x̃^m) of the data.

    Attributes:
        n_steps: Batches learned from.
        n_skipped: Batches that held NaN or infinity.
        n_empty: Batches without rows.
        silent_F: Tokens since each latent was last active.
        n_tokens: Tokens learned from.
        history: About `CURVE_POINTS` evenly spaced steps.
    """

    def __init__(self, dictionary: Dictionary, spec: TrainingSpec, variance: float) -> None:
        self.dictionary, self.spec, self.variance = dictionary, spec, variance
        self.optimizer = torch.optim.Adam(_groups(dictionary), lr=spec.peak_lr(dictionary.spec.n_latents), fused=True)
        self.n_steps = self.n_skipped = self.n_empty = self.n_tokens = 0
        self.silent_F = torch.zeros(dictionary.spec.n_latents, dtype=torch.int64)
        self.n_thresholds = 0
        self.history: list[StepRow] = []

    @property
    def n_batches(self) -> int:
        """Batches taken from the data, skipped ones included: where to go on."""
        return self.n_steps + self.n_skipped + self.n_empty

    @property
    def is_done(self) -> bool:
        """Whether all steps are made."""
        return self.n_steps >= self.spec.n_steps

    def step(self, raw_NMD: Tensor) -> StepRow | None:
        """Learn from one batch of raw activations; None where it has no rows, or holds NaN or infinity and is skipped.

        Raises:
            NotFiniteError: It is the tenth such batch.
            UserError: The loss is no longer finite.
        """
        if not len(raw_NMD):
            self.n_empty += 1
            return None
        x_NMD = self.dictionary.normalised(raw_NMD)
        if not torch.isfinite(x_NMD).all():
            self._skip()
            return None
        spec = self.dictionary.spec
        lr = self.spec.peak_lr(spec.n_latents) * self.spec.lr_share(self.n_steps)
        dead_F = (self.silent_F >= self.spec.dead_after(len(x_NMD))).to(x_NMD.device)
        codes, loss, fve_loss, aux = self._losses(x_NMD, dead_F)
        total = float(loss.detach())
        if not math.isfinite(total):
            raise UserError(
                f"Training diverged at step {self.n_steps + 1} (loss {total}); lower diffing.method.training.lr "
                f"(now {lr:.3g})."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._update(lr, dead_F)
        self._count(codes, len(x_NMD))
        row = StepRow(
            self.n_steps, self.n_tokens, 1 - float(fve_loss.detach()), len(codes) / len(x_NMD), int(dead_F.sum()),
            total, float(aux.detach()), lr,
        )  # fmt: skip
        if self.n_steps % max(1, self.spec.n_steps // CURVE_POINTS) == 0 or self.n_steps == self.spec.n_steps - 1:
            self.history.append(row)
        self.n_steps += 1
        return row

    def _skip(self) -> None:
        if self.n_skipped + 1 >= MOST_SKIPPED:
            raise NotFiniteError(
                f"{MOST_SKIPPED} batches of activations held NaN or infinity, the last after step {self.n_steps}; "
                "check the weights, or store activations as preprocessing.dtype=float32 or bfloat16."
            )
        self.n_skipped += 1

    def _losses(self, x_NMD: Tensor, dead_F: Tensor) -> tuple[Codes, Tensor, Tensor, Tensor]:
        spec = self.dictionary.spec
        penalty = x_NMD.new_zeros(())
        if spec.is_top:
            dtype = getattr(torch, self.spec.encode_dtype)
            codes, score_P, scores_NF = self.dictionary.select(x_NMD, self.spec.k_at(self.n_steps, spec.k), dtype)
            self._follow_threshold(score_P)
            made_NMD = self.dictionary.decode(codes)
        else:
            whole_NF = self.dictionary.pre_activations(x_NMD)
            pre_NF = whole_NF.clamp_min(0)
            acts_NF = self._open(pre_NF)
            codes, scores_NF = Codes.of_dense(acts_NF.detach()), whole_NF.detach() * self.dictionary.score_scale_F()
            decoded_NE = acts_NF @ self.dictionary.decoder_FMD.flatten(1)
            made_NMD = decoded_NE.view_as(x_NMD) + self.dictionary.decoder_bias_MD
            if spec.sparsity == "l1":
                penalty = length_penalty(self.dictionary, acts_NF, self.variance)
            else:
                penalty = count_penalty(self.dictionary, pre_NF)
        fve_loss = reconstruction(made_NMD, x_NMD, self.variance)
        aux = x_NMD.new_zeros(())
        if self.spec.aux_weight and dead_F.any():
            k_aux = self.spec.k_aux or max(1, spec.width // 2)
            aux = dead_reconstruction(self.dictionary, x_NMD, x_NMD - made_NMD, scores_NF, dead_F, k_aux)
        weight = self.spec.penalty_at(self.n_steps)
        return codes, fve_loss + self.spec.aux_weight * aux + weight * penalty, fve_loss, aux

    def _open(self, pre_NF: Tensor) -> Tensor:
        """What thresholds, where there are any, leave of pre-activations that are at least 0."""
        spec = self.dictionary.spec
        if spec.sparsity == "l1":
            return pre_NF
        return Jump.apply(pre_NF, self.dictionary.log_threshold_F.exp(), spec.bandwidth)

    @torch.no_grad()
    def _follow_threshold(self, score_P: Tensor) -> None:
        """θ: running mean of each batch's smallest kept score."""
        if self.dictionary.spec.sparsity != "batch_topk" or not len(score_P):
            return
        self.n_thresholds += 1
        share = 1 / min(self.n_thresholds, _THRESHOLD_MEMORY)
        self.dictionary.threshold += share * (score_P.min() - self.dictionary.threshold)

    @torch.no_grad()
    def _update(self, lr: float, dead_F: Tensor) -> None:
        self.dictionary.constrain_grads_()
        torch.nn.utils.clip_grad_norm_(self.dictionary.parameters(), self.spec.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["pace"]
        self.optimizer.step()
        self.dictionary.constrain_()
        if self.spec.aux_weight:
            bias_F = self.dictionary.encoder_bias_F
            bias_F.copy_(torch.where(dead_F & (bias_F < 0), _BIAS_DECAY * bias_F, bias_F))

    def _count(self, codes: Codes, n_rows: int) -> None:
        self.n_tokens += n_rows
        self.silent_F += n_rows
        self.silent_F[codes.active_F().cpu()] = 0


def _groups(dictionary: Dictionary) -> list[dict[str, Any]]:
    """Parameters with their learning rates as multiples of the common one: a threshold is the logarithm of a number
    that must fall or rise by orders of magnitude, in steps of the size of the learning rate."""
    named = dict(dictionary.named_parameters())
    threshold = named.pop("log_threshold_F", None)
    groups: list[dict[str, Any]] = [{"params": list(named.values()), "pace": 1.0}]
    return groups if threshold is None else [*groups, {"params": [threshold], "pace": _THRESHOLD_PACE}]


def train(
    trainer: Trainer,
    batches: Iterator[Tensor],
    on_step: Callable[[StepRow], None] = lambda row: None,
    save: Callable[[], None] = lambda: None,
    save_every: int = 0,
) -> None:
    """Learn from batches until all steps are made.

    Args:
        trainer: What to train, as far as it has come.
        batches: Raw activations (N, M, D), from batch `trainer.n_batches` on.
        on_step: Told of every step.
        save: Called after every `save_every` steps (0: never), and when too many batches hold NaN.

    Raises:
        UserError: The batches end too soon, or what `Trainer.step` raises.
    """
    while not trainer.is_done:
        raw_NMD = next(batches, None)
        if raw_NMD is None:
            raise UserError(
                f"The activations ended after {trainer.n_batches} batches and training takes {trainer.spec.n_steps}; "
                "allow more epochs, or fewer steps."
            )
        try:
            row = trainer.step(raw_NMD)
        except NotFiniteError:
            save()
            raise
        if row is None:
            continue
        on_step(row)
        if save_every and trainer.n_steps % save_every == 0:
            save()
