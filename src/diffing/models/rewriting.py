"""Rewriting: the residual stream after one block replaced by given states."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from diffing.models.handle import ModelHandle
from diffing.models.steering import check_layer
from diffing.models.stream_hook import stream_changed


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
    with stream_changed(handle.sites.layers[layer], lambda own_BTD: stream_BTD.to(own_BTD.device, own_BTD.dtype)):
        yield
