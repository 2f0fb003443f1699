"""One forward pass per new token: on the cache of the positions before it where the model continues from that
rightly, else on the whole sequence.

Nothing stays switched or hooked between passes, so that several sequences can grow in turns on one module.
"""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from diffing.core.errors import UserError
from diffing.models.handle import ModelHandle, probe_ids
from diffing.models.quiet import quiet_transformers
from diffing.models.readout import tolerance
from diffing.models.steering import Steering, steered

_PROBE_TOKENS, _PROBE_PREFIX = 8, 5
_CONTINUES: WeakKeyDictionary[ModelHandle, bool] = WeakKeyDictionary()


class Decoding:
    """A sequence that grows at its end.

    Args:
        handle: The model; its weights are in force within `next_logits` only.
        prompt_ids: What it starts with.
        steering: Steers every pass; cached states of steered positions are steered ones.
    """

    def __init__(self, handle: ModelHandle, prompt_ids: Sequence[int], steering: Steering | None = None) -> None:
        self._handle, self._steering = handle, steering
        self._ids, self._n_prompt = list(prompt_ids), len(prompt_ids)
        self._n_read = 0
        self._cache: Any = None

    def append(self, token_id: int) -> None:
        """Let the sequence end with one more token."""
        self._ids.append(token_id)

    def next_logits(self) -> Tensor:
        """The model's logits for the token that comes next, shape (V,), float32, on the CPU.

        Raises:
            UserError: They are no distribution, or the steering does not fit the model.
        """
        with self._handle.active(), torch.no_grad():
            cached = continues_from_cache(self._handle)
            unread_BT = torch.tensor([self._ids[self._n_read :]], device=self._handle.device)
            with self._steered():
                output = forward(self._handle, unread_BT, cached, self._cache)
            if cached:
                self._cache, self._n_read = output.past_key_values, len(self._ids)
            logits_V = output.logits[0, -1].float().cpu()
        _check_logits(logits_V, self._steering)
        return logits_V

    def _steered(self) -> AbstractContextManager[None]:
        if self._steering is None:
            return nullcontext()
        return steered(self._handle, self._steering, self._n_read, self._n_prompt)


def continues_from_cache(handle: ModelHandle) -> bool:
    """Whether the model, reading on from its cache, gives the logits of the whole sequence; tried once per handle.

    Call it where the handle is active and no gradient is wanted.
    """
    if handle not in _CONTINUES:
        _CONTINUES[handle] = _try_cache(handle)
    return _CONTINUES[handle]


def _try_cache(handle: ModelHandle) -> bool:
    ids_BT = probe_ids(handle.tokenizer, handle.module).view(1, -1)[:, :_PROBE_TOKENS]
    with quiet_transformers():
        whole = forward(handle, ids_BT, cached=False, cache=None).logits
        try:
            output = forward(handle, ids_BT[:, :_PROBE_PREFIX], cached=True, cache=None)
            for t in range(_PROBE_PREFIX, _PROBE_TOKENS):
                if output.past_key_values is None:
                    return False
                output = forward(handle, ids_BT[:, t : t + 1], cached=True, cache=output.past_key_values)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # What an architecture without such a cache raises is its own affair; the way around is slow.
            return False
    expected_V, found_V = whole[0, -1].float(), output.logits[0, -1].float()
    gap = (found_V - expected_V).abs().max() / expected_V.abs().max().clamp_min(1e-12)
    return bool(gap < tolerance(whole.dtype))


def forward(handle: ModelHandle, ids_BT: Tensor, cached: bool, cache: Any) -> Any:
    """The module's output for the tokens after those in `cache` (None: from the start); logits of the last at least."""
    given: dict[str, Any] = {"input_ids": ids_BT, "use_cache": cached}
    if cache is not None:
        given["past_key_values"] = cache
    if "logits_to_keep" in inspect.signature(handle.module.forward).parameters:
        given["logits_to_keep"] = 1
    return handle.module(**given)


def _check_logits(logits_V: Tensor, steering: Steering | None) -> None:
    """Raises UserError: A logit is NaN or +∞, or all are −∞."""
    if torch.isnan(logits_V).any() or not torch.isfinite(logits_V.max()):
        remedy = "use model.dtype=float32" if steering is None else "use a smaller strength, or model.dtype=float32"
        raise UserError(f"The model gives NaN or infinite logits for the next token; {remedy}.")
