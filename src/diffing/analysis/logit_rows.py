"""Logits of any stretch of a batch's tokens, without ever holding those of all of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffing.data.batches import Batch
from diffing.models.pair import ModelHandle


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
        row_N = torch.repeat_interleave(torch.arange(len(batch.lengths)), torch.tensor(batch.lengths))
        position_N = torch.cat([torch.arange(n) for n in batch.lengths])
        return cls(handle, states_BTX, own, row_N.to(states_BTX.device), position_N.to(states_BTX.device))

    @property
    def device(self) -> torch.device:
        """Where the rows lie."""
        return self.states_BTX.device

    def logits(self, start: int, stop: int) -> Tensor:
        """Float32 logits of tokens `start` to `stop` of the batch, [N, V]."""
        states_NX = self.states_BTX[self.row_N[start:stop], self.position_N[start:stop]]
        return states_NX if self.are_logits else self.handle.logits(states_NX)
