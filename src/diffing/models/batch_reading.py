"""One model's place in texts that grow together: their cache, and the logits of what comes next."""

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from diffing.core.errors import UserError
from diffing.models.decoding import continues_from_cache, forward
from diffing.models.handle import ModelHandle, probe_ids
from diffing.models.quiet import quiet_transformers
from diffing.models.readout import tolerance
from diffing.models.steering import SteeredRow, steered_rows

_PROBE_TOKENS = 6


class CacheFacts(NamedTuple):
    """What a model's cache can do, and its size.

    Args:
        continues: Whether reading on from it gives the logits of the whole sequence.
        drops_rows: Whether rows can leave it; a model without a cache has nothing to drop.
        bytes_per_token: Of each row; 0 without a cache.
    """

    continues: bool
    drops_rows: bool
    bytes_per_token: int


_FACTS: WeakKeyDictionary[ModelHandle, CacheFacts] = WeakKeyDictionary()


@torch.no_grad()
def cache_facts(handle: ModelHandle) -> CacheFacts:
    """Tried once per handle, by short passes."""
    with handle.active():
        continues = continues_from_cache(handle)
        if not continues:
            return CacheFacts(False, True, 0)
        if handle not in _FACTS:
            _FACTS[handle] = _try_rows(handle)
    return _FACTS[handle]


def _try_rows(handle: ModelHandle) -> CacheFacts:
    """Two rows are read, the first is dropped, and the other must go on as if nothing had been."""
    ids_BT = probe_ids(handle.tokenizer, handle.module)[:, : _PROBE_TOKENS + 1]
    with quiet_transformers():
        cache = forward(handle, ids_BT[:, :_PROBE_TOKENS], cached=True, cache=None).past_key_values
        size = _cache_bytes(cache) // (2 * _PROBE_TOKENS)
        expected_V = forward(handle, ids_BT[1:], cached=False, cache=None).logits[0, -1]
        try:
            cache.batch_select_indices(torch.tensor([1], device=ids_BT.device))
            found_V = forward(handle, ids_BT[1:, _PROBE_TOKENS:], cached=True, cache=cache).logits[0, -1]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # What a cache without such a choice raises is its own affair; rows then stay in it.
            return CacheFacts(True, False, size)
    gap = (found_V.float() - expected_V.float()).abs().max() / expected_V.float().abs().max().clamp_min(1e-12)
    return CacheFacts(True, bool(gap < tolerance(expected_V.dtype)), size)


def _cache_bytes(cache: Any) -> int:
    tensors = [t for layer in getattr(cache, "layers", ()) for t in vars(layer).values() if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


class Reading:
    """The rows of a batch as one model reads them; all stand at the same position."""

    def __init__(self, handle: ModelHandle) -> None:
        self.handle = handle
        self._facts = cache_facts(handle)
        self._n_read, self._cache = 0, None

    @property
    def drops_rows(self) -> bool:
        """Whether `keep` may be called."""
        return self._facts.drops_rows

    def keep(self, rows: Sequence[int]) -> None:
        """Let all other rows leave."""
        if self._cache is not None:
            self._cache.batch_select_indices(torch.tensor(list(rows), device=self.handle.device))

    def next_logits(self, texts: Sequence[Sequence[int]], steering: Sequence[SteeredRow]) -> Tensor:
        """Logits of what follows each text, (B, V), as the model gives them.

        Args:
            texts: Token ids of each row so far, equally many.
            steering: Of each row.

        Raises:
            UserError: A steering vector does not fit the model.
        """
        handle = self.handle
        unread_BT = torch.tensor([ids[self._n_read :] for ids in texts], device=handle.device)
        with handle.active(), steered_rows(handle, steering, self._n_read):
            output = forward(handle, unread_BT, self._facts.continues, self._cache)
        if self._facts.continues:
            self._cache, self._n_read = output.past_key_values, len(texts[0])
        return output.logits[:, -1]


def check_logits(logits_BV: Tensor, is_steered: bool) -> None:
    """Raises UserError: A logit is NaN or +∞, or all of a row are −∞."""
    if not torch.isfinite(logits_BV.amax(-1)).all():
        remedy = "use a smaller strength, or " if is_steered else ""
        raise UserError(f"The model gives NaN or infinite logits for the next token; {remedy}use model.dtype=float32.")
