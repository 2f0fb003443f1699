"""The residual stream in what a block returns, changed as it passes: the one hook behind steering and rewriting."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from diffing.models.sites import first_tensor


@contextmanager
def stream_changed(block: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Within the block of code `block` gives another residual stream; afterwards no hook is left.

    Args:
        block: A decoder block.
        change: From its stream to another of the same shape and dtype; None: it stays.
    """

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        stream_BTD = first_tensor(output)
        assert stream_BTD is not None, "a block gives no tensor"
        changed_BTD = change(stream_BTD)
        return None if changed_BTD is None else with_stream(output, changed_BTD)

    registered = block.register_forward_hook(hook)
    try:
        yield
    finally:
        registered.remove()


def with_stream(output: Any, stream_BTD: Tensor) -> Any:
    """A block's output with another stream in it: a tensor, or the first of a tuple or list."""
    if isinstance(output, Tensor):
        return stream_BTD.view_as(output)
    parts = (stream_BTD.view_as(output[0]), *output[1:])
    return list(parts) if isinstance(output, list) else parts
