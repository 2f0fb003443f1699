"""Which scores of a batch are kept: exact, without ever sorting all of them.

A flat top-k over N·F scores costs as much as the product that made them. A stride of the scores tells roughly where the
smallest kept one lies; what exceeds a bound safely below that is few, and the exact top-k is taken of these. Should the
bound have been too high, all positive scores are candidates, so that the result is exact in any case.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

_SMALL = 2**18
_SAMPLE = 2**19
_MARGIN = 1.2
_STRIDES = (61, 67, 71, 73, 79, 83, 89, 97)
Exact = Callable[[Tensor], Tensor]


def batch_topk(scores_NF: Tensor, n_kept: int, exact: Exact | None = None) -> tuple[Tensor, Tensor]:
    """The `n_kept` largest positive scores of a batch (fewer where fewer are positive).

    Args:
        scores_NF: Scores; may be rounded, see `exact`.
        n_kept: How many to keep.
        exact: `(flat index) -> score`; candidates are ranked by it instead of by rounded scores.

    Returns:
        Flat indices (row · F + latent), ascending, and their scores.
    """
    flat = scores_NF.flatten()
    candidates = _candidates(flat, n_kept, scores_NF.shape[1])
    values = flat[candidates] if exact is None else exact(candidates)
    positive = values > 0
    if not positive.all():
        candidates, values = candidates[positive], values[positive]
    if len(candidates) <= n_kept:
        return candidates, values
    kept = torch.topk(values, n_kept, sorted=False).indices.sort().values
    return candidates[kept], values[kept]


def _candidates(flat: Tensor, n_kept: int, n_latents: int) -> Tensor:
    """Flat indices, ascending, that hold the `n_kept` largest positive scores and not many more."""
    if len(flat) > _SMALL:
        found = (flat > _bound(flat, n_kept, n_latents)).nonzero().squeeze(1)
        if len(found) >= n_kept:
            return found
    return (flat > 0).nonzero().squeeze(1)


def _bound(flat: Tensor, n_kept: int, n_latents: int) -> float:
    """A value that a little more than `n_kept` scores exceed, from a stride of them; at least 0."""
    stride = 1 if len(flat) <= _SAMPLE else next(s for s in (*_STRIDES, 101) if n_latents % s)
    sample = flat[::stride]
    share = n_kept / len(flat) * len(sample)
    rank = math.ceil(_MARGIN * share + 3 * math.sqrt(share)) + 1
    if rank >= len(sample):
        return 0.0
    return max(0.0, float(torch.topk(sample, rank, sorted=False).values.min()))


def row_topk(scores_NF: Tensor, k: int, exact: Exact | None = None) -> tuple[Tensor, Tensor]:
    """The `k` largest positive scores of each row (fewer where fewer are positive); as `batch_topk`."""
    n_rows, n_latents = scores_NF.shape
    n_candidates = k if exact is None else min(n_latents, math.ceil(_MARGIN * k) + 8)
    values_NK, latent_NK = torch.topk(scores_NF, n_candidates, dim=1, sorted=False)
    flat_NK = torch.arange(n_rows, device=scores_NF.device)[:, None] * n_latents + latent_NK
    if exact is not None:
        values_NK = exact(flat_NK.flatten()).view_as(values_NK)
        values_NK, kept_NK = torch.topk(values_NK, k, dim=1, sorted=False)
        flat_NK = flat_NK.gather(1, kept_NK)
    flat, order = flat_NK.flatten().sort()
    values = values_NK.flatten()[order]
    positive = values > 0
    return flat[positive], values[positive]


def above(scores_NF: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """All positive scores above a threshold (one, or one for each latent); as `batch_topk`."""
    kept = scores_NF > torch.clamp(torch.as_tensor(threshold, device=scores_NF.device), min=0)
    flat = kept.flatten().nonzero().squeeze(1)
    return flat, scores_NF.flatten()[flat]
