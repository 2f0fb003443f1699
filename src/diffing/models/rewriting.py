"""Rewriting: the residual stream after one block replaced by given states."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from diffing.models.handle import ModelHandle
from diffing.models.sites import first_tensor
from diffing.models.steering import check_layer


@contextmanager
def rewritten(handle: ModelHandle, layer: int, stream_BTD: Tensor) -> Iterator[None]:
    """Within the block forward passes go on after block `layer` with `stream_BTD`; afterwards no hook is left.

    The module may serve several handles: keep the block to one forward pass.

    Args:
        handle: Whose module.
        layer: The decoder block whose output is replaced.
        stream_BTD: Instead of it; rounded once to the stream's dtype.

    Raises:
        UserError: The model has no such layer.
    """
    check_layer(handle, layer)

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        own_BTD = first_tensor(output)
        assert own_BTD is not None, "a block gives no tensor"
        new_BTD = stream_BTD.to(own_BTD.device, own_BTD.dtype).view_as(own_BTD)
        if isinstance(output, Tensor):
            return new_BTD
        return [new_BTD, *output[1:]] if isinstance(output, list) else (new_BTD, *output[1:])

    registered = handle.sites.layers[layer].register_forward_hook(replace)
    try:
        yield
    finally:
        registered.remove()
