"""Losses of one model on a batch, with and without changes of its residual stream after one block."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.data.batches import Batch
from diffing.models.handle import ModelHandle
from diffing.models.rewriting import rewritten


@dataclass(frozen=True, eq=False)
class Losses:
    """Of one model, changed or not, by sequence of a batch.

    Args:
        nll_B: Σ of the next tokens' negative log-likelihood, nats.
        n_B: Next tokens.
        kl_B: Σ of KL(unchanged ‖ changed) at the same places; 0 for the unchanged model.
    """

    nll_B: np.ndarray
    n_B: np.ndarray
    kl_B: np.ndarray


class LossReader:
    """Losses of one model on one batch, with and without changes of its stream.

    Args:
        handle: The model.
        batch: The batch.
        layer: Block after which the stream is changed.
    """

    def __init__(self, handle: ModelHandle, batch: Batch, layer: int) -> None:
        self._handle, self._batch, self._layer = handle, batch, layer
        self._next_BT = batch.ids_BT[:, 1:].to(handle.device)
        places_T = torch.arange(batch.ids_BT.shape[1] - 1)
        self._has_next_BT = (places_T[None] < torch.tensor(batch.lengths)[:, None] - 1).to(handle.device)
        self._own = self._log_probs()

    @property
    def unchanged(self) -> Losses:
        """Of the model as it is."""
        return self._losses(self._own)

    def changed(self, stream_BTD: Tensor) -> Losses:
        """With another stream after the layer."""
        with rewritten(self._handle, self._layer, stream_BTD):
            return self._losses(self._log_probs())

    def _log_probs(self) -> Tensor:
        logits_BTV = self._handle.forward_logits(self._batch.ids_BT, self._batch.lengths)[:, :-1]
        return logits_BTV.log_softmax(-1)

    def _losses(self, log_probs_BTV: Tensor) -> Losses:
        nll_BT = -log_probs_BTV.gather(2, self._next_BT[:, :, None]).squeeze(2).double()
        same = log_probs_BTV is self._own
        kl_BT = torch.zeros_like(nll_BT) if same else (self._own.exp() * (self._own - log_probs_BTV)).sum(-1).double()
        counted = self._has_next_BT.double()
        return Losses(*(x.cpu().numpy() for x in ((nll_BT * counted).sum(1), counted.sum(1), (kl_BT * counted).sum(1))))
