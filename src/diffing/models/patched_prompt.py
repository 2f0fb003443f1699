"""A prompt whose last token is given another residual state, and what the model says next.

The tokens before it are read once; their cache is repeated for as many states as are tried together.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from diffing.core.errors import UserError
from diffing.models.decoding import continues_from_cache, forward
from diffing.models.generation import check_ids, room
from diffing.models.handle import ModelHandle
from diffing.models.steering import check_layer
from diffing.models.stream_hook import stream_changed


@contextmanager
def last_token_replaced(handle: ModelHandle, layer: int, vectors_ND: Tensor) -> Iterator[None]:
    """Within the block forward passes of N rows go on after block `layer` with `vectors_ND` at their last token.

    The module may serve several handles: keep the block to one forward pass.

    Args:
        handle: Whose module.
        layer: The decoder block whose output is changed.
        vectors_ND: One state for each row; rounded once to the stream's dtype.

    Raises:
        UserError: The model has no such layer, or, from the forward pass, the states do not fit its width.
    """
    check_layer(handle, layer)

    def replace(own_BTD: Tensor) -> Tensor:
        if own_BTD.shape[-1] != vectors_ND.shape[1]:
            raise UserError(
                f"A vector of {vectors_ND.shape[1]} numbers cannot stand in a residual stream of "
                f"{own_BTD.shape[-1]}; choose one that was measured on this model."
            )
        new_BTD = own_BTD.clone()
        new_BTD[:, -1] = vectors_ND.to(own_BTD.device, own_BTD.dtype)
        return new_BTD

    with stream_changed(handle.sites.layers[layer], replace):
        yield


class PatchedPrompt:
    """A prompt whose last token's state after one block is given.

    Args:
        handle: The model.
        prompt_ids: At least one token.
        layer: The decoder block.

    Raises:
        UserError: The prompt is empty, too long or in another vocabulary, or the model has no such layer.
    """

    def __init__(self, handle: ModelHandle, prompt_ids: Sequence[int], layer: int) -> None:
        check_ids(handle, prompt_ids)
        room(handle, prompt_ids)
        check_layer(handle, layer)
        self._handle, self._layer = handle, layer
        self._ids_1T = torch.tensor([list(prompt_ids)], device=handle.device)
        self._cache = self._read_prefix()

    def _read_prefix(self) -> Any:
        """The cache of all tokens but the last; None where the model's caches cannot be trusted or repeated."""
        with self._handle.active(), torch.no_grad():
            if self._ids_1T.shape[1] < 2 or not continues_from_cache(self._handle):
                return None
            cache = forward(self._handle, self._ids_1T[:, :-1], True, None).past_key_values
            try:
                copy.deepcopy(cache).batch_repeat_interleave(2)
            except (AttributeError, NotImplementedError, TypeError):
                return None
            return cache

    def next_logits(self, vectors_ND: Tensor) -> Tensor:
        """Logits of the token after the prompt for each state, (N, V), float32, on the handle's device.

        Raises:
            UserError: The states do not fit the model's width.
        """
        n = len(vectors_ND)
        handle, cached = self._handle, self._cache is not None
        ids_BT = self._ids_1T[:, -1:] if cached else self._ids_1T
        cache = copy.deepcopy(self._cache)
        if cached:
            cache.batch_repeat_interleave(n)
        with handle.active(), torch.no_grad(), last_token_replaced(handle, self._layer, vectors_ND):
            output = forward(handle, ids_BT.expand(n, -1), cached, cache)
        return output.logits[:, -1].float().to(handle.device)
