"""Reads the corpus through both models once and yields, sequence by sequence, which tokens stand out at each position.

[batch, time, vocab] never exists: the head and D are computed over a few rows at a time, of which the K largest, the K
smallest and sums over positions are kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffing.analysis.divergences import log_probs, smoothed_log_ratio
from diffing.analysis.logit_rows import LogitRows, paired_blocks
from diffing.core.layers import layers
from diffing.data.batches import Batch
from diffing.models.pair import ModelHandle, ModelPair

NOT_COUNTED = -1


@dataclass(frozen=True, eq=False)
class MinedSequence:
    """One sequence read through both models; ids are columns of the compared vocabulary.

    Args:
        sequence: Its place in the corpus.
        largest_TK: The K columns of largest D at each position, largest first; −1 where D is not above 0.
        values_TK: Their D; 0 where it is not above 0.
        smallest_TK: The K columns of smallest D; −1 where D is not below 0.
        sum_V: Sum of D over the kept positions.
        positive_V: Kept positions with D above 0.
    """

    sequence: int
    largest_TK: np.ndarray
    values_TK: np.ndarray
    smallest_TK: np.ndarray
    sum_V: np.ndarray
    positive_V: np.ndarray

    @property
    def strength_T(self) -> np.ndarray:
        """At each position the mean of the K largest D, those not above 0 counting as 0; NaN where D is not finite."""
        return self.values_TK.mean(1)


class _Rows(NamedTuple):
    """The same of a few positions."""

    largest_NK: Tensor
    values_NK: Tensor
    smallest_NK: Tensor
    sum_V: Tensor
    positive_V: Tensor


@dataclass(frozen=True)
class Miner:
    """Finds the tokens that stand out at each position, for one pair.

    Args:
        pair: Both models.
        top_k: Tokens counted at each end.
        floor: See `smoothed_log_ratio`.
        layer: Block to read; None: the output.
        is_kept: Given a sequence index, which positions count in the vocabulary sums.
    """

    pair: ModelPair
    top_k: int
    floor: float
    layer: int | float | None
    is_kept: Callable[[int], np.ndarray]

    @torch.no_grad()
    def read(self, batch: Batch) -> Iterator[MinedSequence]:
        """Results of the batch's sequences, in the batch's order."""
        finetuned, base = (self._logit_rows(h, batch) for h in (self.pair.finetuned, self.pair.base))
        kept_N = torch.cat([torch.from_numpy(self.is_kept(s)) for s in batch.sequences])
        ends = list(accumulate(batch.lengths))
        parts: list[_Rows] = []
        for row, start, stop, logits_f, logits_b in paired_blocks(finetuned, base, batch.lengths):
            parts.append(self._rows(logits_f, logits_b, kept_N[start:stop]))
            if stop == ends[row]:
                yield _joined(batch.sequences[row], parts)
                parts = []

    def _logit_rows(self, handle: ModelHandle, batch: Batch) -> LogitRows:
        if self.layer is None:
            return LogitRows.of(handle, batch)
        (layer,) = layers([self.layer], len(handle.sites.layers), "diffing.method.layer")
        return LogitRows.at_layer(handle, batch, layer)

    def _rows(self, logits_f: Tensor, logits_b: Tensor, kept_N: Tensor) -> _Rows:
        ids = self.pair.vocabulary.shared_ids
        both = log_probs(logits_f, logits_b, 1.0, None if ids is None else ids.to(logits_f.device))
        d_NV = smoothed_log_ratio(both, self.floor)
        k = min(self.top_k, d_NV.shape[1])
        largest, smallest = d_NV.topk(k), d_NV.topk(k, largest=False)
        keep = kept_N.to(d_NV.device)
        kept_NV = d_NV if bool(keep.all()) else d_NV[keep]
        return _Rows(
            torch.where(largest.values > 0, largest.indices, NOT_COUNTED).int().cpu(),
            largest.values.clamp_min(0).cpu(),
            torch.where(smallest.values < 0, smallest.indices, NOT_COUNTED).int().cpu(),
            kept_NV.sum(0).double().cpu(),
            (kept_NV > 0).sum(0, dtype=torch.int32).cpu(),
        )


def _joined(sequence: int, parts: list[_Rows]) -> MinedSequence:
    largest, values, smallest = (torch.cat([p[i] for p in parts]).numpy() for i in range(3))
    sums, positive = (torch.stack([p[i] for p in parts]).sum(0).numpy() for i in (3, 4))
    return MinedSequence(sequence, largest, values, smallest, sums, positive)
