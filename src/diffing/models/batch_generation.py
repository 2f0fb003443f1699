"""Many texts at once: batched, on a cache, each with random numbers of its own, from one model or two in lock-step.

Rows of a batch are never padded: all stand at the same position, and a row whose prompt is longer than the shortest
reads its next prompt token where others draw one. So no architecture needs an attention mask.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diffing.core.errors import UserError
from diffing.models.amplified import Amplified, amplified_logits
from diffing.models.batch_plan import plan_rows
from diffing.models.batch_reading import Reading, check_logits
from diffing.models.generation import check_ids, room
from diffing.models.handle import ModelHandle
from diffing.models.sampling import GumbelNoise, Sampling, choose
from diffing.models.steering import SteeredRow, Steering, check_layer

__all__ = ["Amplified", "Continuation", "Prompt", "seeded", "write_texts"]


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


def write_texts(
    writer: ModelHandle | Amplified,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    end_ids: Collection[int],
    done: Callable[[int], None] = lambda n: None,
    on_token: Callable[[int, int], None] = lambda row, token_id: None,
) -> list[Continuation]:
    """Continue every prompt; in the order of the prompts.

    A text depends on the models, its prompt and the sampling; what else is in its batch changes logits by rounding.

    Args:
        writer: One model, or two in lock-step.
        prompts: What is continued.
        sampling: How tokens are chosen; its seed is not read, each prompt has one.
        end_ids: Tokens after which a text is at its end; see `generation.end_ids`.
        done: Told the number of new tokens, as they are written.
        on_token: Told each new token as it is written, with the place of its prompt.

    Raises:
        UserError: A prompt is empty, too long or in another vocabulary, an alpha or a steering vector makes no sense,
            or logits are not finite.
    """
    handles = [writer] if isinstance(writer, ModelHandle) else [writer.finetuned, writer.base]
    for prompt in prompts:
        _check(prompt, handles)
    found: dict[int, Continuation] = {}
    for places in plan_rows(handles, [len(p.ids) for p in prompts], sampling.max_new_tokens):
        batch = _Batch(writer, handles, {i: prompts[i] for i in places}, sampling, frozenset(end_ids))
        found |= batch.write(done, on_token)
    return [found[i] for i in range(len(prompts))]


def _check(prompt: Prompt, handles: Sequence[ModelHandle]) -> None:
    for handle in handles:
        check_ids(handle, prompt.ids)
        room(handle, prompt.ids)
        if prompt.steering is not None:
            check_layer(handle, prompt.steering.layer)
    if not math.isfinite(prompt.alpha):
        raise UserError(f"alpha is {prompt.alpha}; give a finite number.")


class _Row:
    """One text on its way."""

    def __init__(self, place: int, prompt: Prompt, n_new: int) -> None:
        self.place, self.prompt, self.n_new = place, prompt, n_new
        self.ids = list(prompt.ids)
        self.log_probs: list[float] = []
        self.noise = GumbelNoise(prompt.seed)
        self.is_ended = False

    @property
    def is_done(self) -> bool:
        return self.is_ended or len(self.log_probs) == self.n_new

    def continuation(self, tokenizer: PreTrainedTokenizerBase) -> Continuation:
        new = self.ids[len(self.prompt.ids) :][: len(self.log_probs)]
        text = tokenizer.decode(new, skip_special_tokens=True)
        assert isinstance(text, str)
        return Continuation(tuple(new), tuple(self.log_probs), text, self.is_ended)


class _Batch:
    """Texts that grow together, one position at a time."""

    def __init__(
        self, writer: ModelHandle | Amplified, handles: Sequence[ModelHandle], prompts: Mapping[int, Prompt],
        sampling: Sampling, ends: frozenset[int],
    ) -> None:  # fmt: skip
        self._writer, self._sampling, self._ends = writer, sampling, ends
        self._tokenizer = handles[0].tokenizer
        is_one = handles[0] is handles[-1]
        self._models = [Reading(handle) for handle in (handles[:1] if is_one else handles)]
        self._rows = [
            _Row(place, p, min(sampling.max_new_tokens, *(room(h, p.ids) for h in handles)))
            for place, p in prompts.items()
        ]
        self._position = min(len(p.ids) for p in prompts.values())

    @torch.no_grad()
    def write(self, done: Callable[[int], None], on_token: Callable[[int, int], None]) -> dict[int, Continuation]:
        rows = self._rows
        while not all(row.is_done for row in self._rows):
            drawn = self._step()
            self._position += 1
            for row in drawn:
                on_token(row.place, row.ids[-1])
            done(len(drawn))
            self._drop_rows()
        return {row.place: row.continuation(self._tokenizer) for row in rows}

    def _step(self) -> list[_Row]:
        """One token for every row that has none at this position and is not done: these rows."""
        texts = [row.ids[: self._position] for row in self._rows]
        steering = [SteeredRow(row.prompt.steering, len(row.prompt.ids)) for row in self._rows]
        places = [b for b, row in enumerate(self._rows) if len(row.ids) == self._position and not row.is_done]
        drawn = [self._rows[b] for b in places]
        all_logits = []
        for model in self._models:
            logits_BV = model.next_logits(texts, steering)
            logits_BV = (logits_BV if len(places) == len(self._rows) else logits_BV[places]).float()
            check_logits(logits_BV, any(row.steering for row in steering))
            all_logits.append(logits_BV)
        if drawn:
            if isinstance(self._writer, Amplified):
                self._draw_amplified(drawn, all_logits[0], all_logits[-1])
            else:
                self._draw(drawn, all_logits[0])
        for row in self._rows:
            if len(row.ids) == self._position:
                row.ids.append(row.ids[-1])
        return drawn

    def _draw(self, rows: Sequence[_Row], logits_BV: Tensor) -> None:
        total_B = logits_BV.logsumexp(-1)
        if self._sampling.temperature == 0:
            chosen_B = logits_BV.argmax(-1)
        else:
            on_cpu_BV = logits_BV.cpu()
            chosen = [choose(on_cpu_BV[b], self._sampling, row.noise) for b, row in enumerate(rows)]
            chosen_B = torch.tensor(chosen, device=logits_BV.device)
        log_probs_B = logits_BV.gather(1, chosen_B[:, None])[:, 0].double() - total_B.double()
        for row, token_id, log_prob in zip(rows, chosen_B.tolist(), log_probs_B.tolist(), strict=True):
            self._append(row, token_id, log_prob)

    def _draw_amplified(self, rows: Sequence[_Row], finetuned_BV: Tensor, base_BV: Tensor) -> None:
        assert isinstance(self._writer, Amplified)
        shared, epsilon = self._writer.shared_ids, self._writer.epsilon
        finetuned_BV, base_BV = finetuned_BV.cpu(), base_BV.cpu()
        for b, row in enumerate(rows):
            found = amplified_logits(finetuned_BV[b], base_BV[b], row.prompt.alpha, epsilon, shared)
            token_id = choose(found.logits_K, self._sampling, row.noise, found.ids_K)
            at = int(torch.searchsorted(found.ids_K, token_id))
            self._append(row, token_id, float(found.logits_K[at] - found.logits_K.logsumexp(0)))

    def _append(self, row: _Row, token_id: int, log_prob: float) -> None:
        row.ids.append(token_id)
        row.log_probs.append(log_prob)
        row.is_ended = token_id in self._ends

    def _drop_rows(self) -> None:
        """Rows that are done leave once they are a quarter: dropping copies the cache."""
        going = [b for b, row in enumerate(self._rows) if not row.is_done]
        n_done = len(self._rows) - len(going)
        if going and 4 * n_done >= len(self._rows) and all(model.drops_rows for model in self._models):
            for model in self._models:
                model.keep(going)
            self._rows = [self._rows[b] for b in going]


def seeded(prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Prompt]:
    """Every prompt once with every seed, prompts outermost."""
    return [replace(p, seed=s) for p in prompts for s in seeds]
