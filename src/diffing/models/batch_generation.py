"""Many texts at once: batched, on a cache, each with random numbers of its own, from one model or two in lock-step.

Rows of a batch are never padded: all stand at the same position, and a row whose prompt is longer than the shortest
reads its next prompt token where others draw one. So no architecture needs an attention mask.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffing.core.errors import UserError
from diffing.models.batch_steering import steered_rows
from diffing.models.decoding import continues_from_cache, forward
from diffing.models.generation import check_ids, room
from diffing.models.handle import ModelHandle
from diffing.models.sampling import GumbelNoise, Sampling, choose
from diffing.models.steering import Steering, check_layer

_BATCH_ROWS = 32


@dataclass(frozen=True, eq=False)
class Prompt:
    """One text to be continued.

    Args:
        ids: At least one token.
        seed: Decides this text's random numbers, whatever else is in the batch.
        steering: A vector added to the residual stream of this text alone.
        alpha: By how much the difference of two models is amplified; read by `Amplified` only.
    """

    ids: tuple[int, ...]
    seed: int = 0
    steering: Steering | None = None
    alpha: float = 0.0


@dataclass(frozen=True)
class Continuation:
    """What was written after a prompt.

    Args:
        ids: New tokens; the end token, where it was reached, is the last.
        log_probs: Of each, in nats, under the distribution drawn from before temperature, `top_k` and `top_p`.
        text: The new tokens decoded, special tokens left out.
        is_ended: Whether an end token was reached.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    text: str
    is_ended: bool


@dataclass(frozen=True, eq=False)
class Amplified:
    """Contrastive decoding between two models: log p + α (log p − log q), p of the finetuned model, q of the base.

    α is each prompt's; 0 is the finetuned model, −1 the base.

    Args:
        finetuned: Gives p.
        base: Gives q.
        epsilon: Only tokens of probability p_v ≥ ε · max p may be drawn; 0: all.
        shared_ids: Ids on which the vocabularies agree, where they differ; no other is drawn.

    Source: Li et al., Contrastive Decoding (2023), section 3.
    """

    finetuned: ModelHandle
    base: ModelHandle
    epsilon: float = 0.1
    shared_ids: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise UserError(f"epsilon is {self.epsilon}; give a share of the largest probability, 0 to 1.")


def write_texts(
    writer: ModelHandle | Amplified,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    end_ids: Collection[int],
    done: Callable[[int], None] = lambda n: None,
) -> list[Continuation]:
    """Continue every prompt; in the order of the prompts.

    Args:
        writer: One model, or two in lock-step.
        prompts: What is continued.
        sampling: How tokens are chosen; its seed is not read, each prompt has one.
        end_ids: Tokens after which a text is at its end; see `generation.end_ids`.
        done: Told the number of new tokens, as they are written.

    Raises:
        UserError: A prompt is empty, too long or in another vocabulary, a steering vector does not fit, or logits are
            not finite.
    """
    handles = [writer] if isinstance(writer, ModelHandle) else [writer.finetuned, writer.base]
    for prompt in prompts:
        _check(prompt, handles)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].ids), i))
    found: dict[int, Continuation] = {}
    for start in range(0, len(order), _BATCH_ROWS):
        chosen = order[start : start + _BATCH_ROWS]
        batch = _Batch(writer, handles, [prompts[i] for i in chosen], sampling, frozenset(end_ids))
        found |= dict(zip(chosen, batch.write(done), strict=True))
    return [found[i] for i in range(len(prompts))]


def _check(prompt: Prompt, handles: Sequence[ModelHandle]) -> None:
    for handle in handles:
        check_ids(handle, prompt.ids)
        room(handle, prompt.ids)
        if prompt.steering is not None:
            check_layer(handle, prompt.steering.layer)


class _Row:
    """One text on its way."""

    def __init__(self, prompt: Prompt, n_new: int) -> None:
        self.prompt, self.n_new = prompt, n_new
        self.ids = list(prompt.ids)
        self.log_probs: list[float] = []
        self.noise = GumbelNoise(prompt.seed)
        self.is_ended = False

    @property
    def is_done(self) -> bool:
        return self.is_ended or len(self.log_probs) == self.n_new


class _Batch:
    """Texts that grow together, one position at a time."""

    def __init__(
        self, writer: ModelHandle | Amplified, handles: Sequence[ModelHandle], prompts: Sequence[Prompt],
        sampling: Sampling, ends: frozenset[int],
    ) -> None:  # fmt: skip
        self._writer, self._sampling, self._ends = writer, sampling, ends
        self._models = [_Reading(handle) for handle in handles]
        self._rows = [_Row(p, min(sampling.max_new_tokens, *(room(h, p.ids) for h in handles))) for p in prompts]
        self._position = min(len(p.ids) for p in prompts)

    @torch.no_grad()
    def write(self, done: Callable[[int], None]) -> list[Continuation]:
        while not all(row.is_done for row in self._rows):
            done(self._step())
        return [self._continuation(row) for row in self._rows]

    def _step(self) -> int:
        """One token for every row that has none at this position; how many were drawn."""
        ids_BT = torch.tensor([row.ids[: self._position] for row in self._rows])
        logits = [model.next_logits(ids_BT, [row.prompt for row in self._rows]) for model in self._models]
        n_drawn = 0
        for b, row in enumerate(self._rows):
            if len(row.ids) > self._position:
                continue
            if row.is_done:
                row.ids.append(row.ids[-1])
                continue
            self._draw(row, [logits_BV[b] for logits_BV in logits])
            n_drawn += 1
        self._position += 1
        return n_drawn

    def _draw(self, row: _Row, logits: Sequence[Tensor]) -> None:
        logits_V = _mixed(self._writer, logits, row.prompt.alpha)
        chosen = choose(logits_V, self._sampling, row.noise)
        row.ids.append(chosen)
        row.log_probs.append(float(logits_V[chosen].double() - logits_V.double().logsumexp(0)))
        row.is_ended = chosen in self._ends

    def _continuation(self, row: _Row) -> Continuation:
        new = row.ids[len(row.prompt.ids) :][: len(row.log_probs)]
        text = str(self._models[0].handle.tokenizer.decode(new, skip_special_tokens=True))
        return Continuation(tuple(new), tuple(row.log_probs), text, row.is_ended)


class _Reading:
    """One model's place in the texts of a batch."""

    def __init__(self, handle: ModelHandle) -> None:
        self.handle = handle
        self._n_read, self._cache = 0, None

    def next_logits(self, ids_BT: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Logits after the last of `ids_BT`, (B, V), float32, on the CPU."""
        handle = self.handle
        with handle.active():
            cached = continues_from_cache(handle)
            unread_BT = ids_BT[:, self._n_read :].to(handle.device)
            steerings = [(p.steering, len(p.ids)) for p in prompts]
            with steered_rows(handle, steerings, self._n_read):
                output: Any = forward(handle, unread_BT, cached, self._cache)
            if cached:
                self._cache, self._n_read = output.past_key_values, ids_BT.shape[1]
            logits_BV = output.logits[:, -1].float().cpu()
        if torch.isnan(logits_BV).any() or not torch.isfinite(logits_BV.max(-1).values).all():
            remedy = "use a smaller strength, or " if any(p.steering for p in prompts) else ""
            raise UserError(
                f"The model gives NaN or infinite logits for the next token; {remedy}use model.dtype=float32."
            )
        return logits_BV


def _mixed(writer: ModelHandle | Amplified, logits: Sequence[Tensor], alpha: float) -> Tensor:
    if isinstance(writer, ModelHandle):
        return logits[0]
    return amplified_log_probs(logits[0], logits[1], alpha, writer.epsilon, writer.shared_ids)


def amplified_log_probs(
    finetuned_V: Tensor, base_V: Tensor, alpha: float, epsilon: float, shared_ids: Tensor | None = None
) -> Tensor:
    """log p + α (log p − log q) in float64, not normalised; −∞ for tokens that may not be drawn.

    Args:
        finetuned_V: Logits whose softmax is p.
        base_V: Logits whose softmax is q.
        alpha: α.
        epsilon: Share of the largest p that a token needs.
        shared_ids: Ids on which the vocabularies agree; None: all. p and q are renormalised over them.

    Raises:
        UserError: Something is not finite.
    """
    ids = None if shared_ids is None else shared_ids.to(finetuned_V.device)
    f, b = (x.double() if ids is None else x.double()[ids] for x in (finetuned_V, base_V))
    log_p, log_q = f.log_softmax(-1), b.log_softmax(-1)
    mixed = log_p + alpha * (log_p - log_q)
    if torch.isnan(mixed).any() or torch.isposinf(mixed).any():
        raise UserError(f"alpha={alpha} gives NaN or infinite logits; use a smaller alpha, or model.dtype=float32.")
    if epsilon > 0:
        floor = log_p.max(-1, keepdim=True).values + torch.log(torch.tensor(epsilon, dtype=torch.float64))
        mixed = mixed.masked_fill(log_p < floor, -torch.inf)
    if ids is None:
        return mixed
    return torch.full(finetuned_V.shape, -torch.inf, dtype=torch.float64).index_copy_(-1, ids, mixed)


def seeded(prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Prompt]:
    """Every prompt once with every seed, prompts outermost."""
    return [replace(p, seed=s) for p in prompts for s in seeds]
