"""Logits of any stretch of a batch's tokens, without ever holding those of all of them."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from diffing.analysis.lenses import device_of, known_norm
from diffing.core.layers import Slot
from diffing.data.batches import Batch
from diffing.models.capture import capture
from diffing.models.pair import ModelHandle

_HEAD_ROWS = 256
_ROWS = 16
_GPU_ROWS = 512


@dataclass(frozen=True, eq=False)
class LogitRows:
    """Logits of any stretch of a batch's tokens, padding left out, sequences one after the other.

    From hidden states where the head's part of the model is known, else from the model's own forward pass.
    """

    handle: ModelHandle
    states_BTX: Tensor
    are_logits: bool
    row_N: Tensor
    position_N: Tensor

    @classmethod
    def of(cls, handle: ModelHandle, batch: Batch) -> "LogitRows":
        """Run the model over the batch, up to the head where possible."""
        own = handle.transform is None
        forward = handle.forward_logits if own else handle.final_hidden
        states_BTX = forward(batch.ids_BT, batch.lengths)
        return cls._over(handle, states_BTX, own, batch)

    @classmethod
    def at_layer(cls, handle: ModelHandle, batch: Batch, layer: int) -> "LogitRows":
        """Run the model up to a block, whose residual stream the model's own final norm and head will read.

        Raises:
            UserError: The model's read-out is not known.
        """
        norm, slot = known_norm(handle, "read the output instead (layer=null)"), Slot(layer)
        stream_BTD = capture(handle, batch.ids_BT, [slot], batch.lengths)[slot]
        with handle.active(), torch.no_grad():
            states_BTD = norm(stream_BTD.to(device_of(norm, stream_BTD.device)))
        return cls._over(handle, states_BTD.to(device_of(handle.sites.head, states_BTD.device)), False, batch)

    @classmethod
    def _over(cls, handle: ModelHandle, states_BTX: Tensor, are_logits: bool, batch: Batch) -> "LogitRows":
        row_N = torch.repeat_interleave(torch.arange(len(batch.lengths)), torch.tensor(batch.lengths))
        position_N = torch.cat([torch.arange(n) for n in batch.lengths])
        return cls(handle, states_BTX, are_logits, row_N.to(states_BTX.device), position_N.to(states_BTX.device))

    @property
    def device(self) -> torch.device:
        """Where the rows lie."""
        return self.states_BTX.device

    def logits(self, start: int, stop: int) -> Tensor:
        """Float32 logits of tokens `start` to `stop` of the batch, [N, V]."""
        states_NX = self.states_BTX[self.row_N[start:stop], self.position_N[start:stop]]
        return states_NX if self.are_logits else self.handle.logits(states_NX)


class LogitBlock(NamedTuple):
    """Logits of both models over tokens `start` to `stop` of a batch, all of them of its row `row`."""

    row: int
    start: int
    stop: int
    finetuned_NV: Tensor
    base_NV: Tensor


def paired_blocks(finetuned: LogitRows, base: LogitRows, lengths: Sequence[int]) -> Iterator[LogitBlock]:
    """Logits of both models, a stretch of tokens at a time that does not cross the end of a sequence.

    The head runs over many rows at once, which its matrix product likes; what follows over few, which caches like.

    Args:
        finetuned: The finetuned model's rows.
        base: The base's.
        lengths: Tokens of each of the batch's sequences.
    """
    ends = list(accumulate(lengths))
    head, inner = (_HEAD_ROWS, _ROWS) if finetuned.device.type == "cpu" else (_GPU_ROWS, _GPU_ROWS)
    for first in range(0, ends[-1], head):
        last = min(first + head, ends[-1])
        block_f = finetuned.logits(first, last)
        block_b = base.logits(first, last).to(block_f.device)
        start = first
        while start < last:
            row = bisect_right(ends, start)
            stop = min(start + inner, last, ends[row])
            here = slice(start - first, stop - first)
            yield LogitBlock(row, start, stop, block_f[here], block_b[here])
            start = stop
