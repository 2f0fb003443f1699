"""Steering of a batch in which every row may have a vector, layer and strength of its own."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffing.models.handle import ModelHandle
from diffing.models.sites import first_tensor
from diffing.models.steering import Steering, check_layer, check_width, steering_scales


@contextmanager
def steered_rows(
    handle: ModelHandle, rows: Sequence[tuple[Steering | None, int]], first_position: int
) -> Iterator[None]:
    """Within the block every forward pass is steered row by row; afterwards no hook is left.

    Args:
        handle: Whose module.
        rows: Of each row of the batch, what is added (None: nothing) and the number of its prompt's tokens.
        first_position: Position of the pass's first token in the whole sequence.

    Raises:
        UserError: The model has no such layer, or, from the forward pass, a vector does not fit its width.
    """
    layers = sorted({steering.layer for steering, _ in rows if steering is not None})
    with ExitStack() as stack:
        for layer in layers:
            check_layer(handle, layer)
            hook = _hook(layer, rows, first_position)
            stack.callback(handle.sites.layers[layer].register_forward_hook(hook).remove)
        yield


def _hook(layer: int, rows: Sequence[tuple[Steering | None, int]], first_position: int) -> Any:
    def add(module: nn.Module, args: Any, output: Any) -> Any:
        stream_BTD = first_tensor(output)
        assert stream_BTD is not None, "a block gives no tensor"
        assert stream_BTD.dim() == 3, "a block's output is (B, T, D)"
        changed_BTD = stream_BTD + _added(layer, rows, first_position, stream_BTD)
        if isinstance(output, Tensor):
            return changed_BTD.to(stream_BTD.dtype)
        changed = changed_BTD.to(stream_BTD.dtype)
        return [changed, *output[1:]] if isinstance(output, list) else (changed, *output[1:])

    return add


def _added(layer: int, rows: Sequence[tuple[Steering | None, int]], first_position: int, stream_BTD: Tensor) -> Tensor:
    """What is added to each row and position, in at least float32, so that the sum is rounded once."""
    exact = torch.promote_types(stream_BTD.dtype, torch.float32)
    added_BTD = torch.zeros(stream_BTD.shape, dtype=exact, device=stream_BTD.device)
    for b, (steering, n_prompt) in enumerate(rows):
        if steering is None or steering.layer != layer:
            continue
        check_width(steering, stream_BTD.shape[2])
        scale_T = steering_scales(steering, first_position, stream_BTD.shape[1], n_prompt)
        added_BTD[b] = scale_T.to(added_BTD)[:, None] * steering.vector_D.to(added_BTD)
    return added_BTD
