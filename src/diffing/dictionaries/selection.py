"""Which scores of a batch are kept: exact, without ever sorting all of them.

A flat top-k over N·F scores costs as much as the product that made them. A stride of the scores tells roughly where the
smallest kept one lies; what exceeds a bound safely below that is few, and the exact top-k is taken of these. Should the
bound have been too high, all positive scores are candidates, so that the result is exact in any case.
"""

import math
from collections.abc import Callable

import numpy as np
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
    kept = _largest(values, n_kept)
    return candidates[kept], values[kept]


def _largest(values: Tensor, n_kept: int) -> Tensor:
    """Places of the `n_kept` largest, ascending; of equal ones the first. Nothing is sorted."""
    least = torch.topk(values, n_kept, sorted=False).values.min()
    larger, equal = _places(values > least), _places(values == least)
    equal = equal[: n_kept - len(larger)]
    return larger if not len(equal) else _merged(larger, equal, len(values))


def _merged(one: Tensor, other: Tensor, n: int) -> Tensor:
    """Both sets of places below `n`, ascending."""
    is_in = torch.zeros(n, dtype=torch.bool, device=one.device)
    is_in[one] = True
    is_in[other] = True
    return _places(is_in)


def _candidates(flat: Tensor, n_kept: int, n_latents: int) -> Tensor:
    """Flat indices, ascending, that hold the `n_kept` largest positive scores and not many more."""
    if len(flat) > _SMALL:
        found = _places(_exceeds(flat, _bound(flat, n_kept, n_latents)))
        if len(found) >= n_kept:
            return found
    return _places(_exceeds(flat, 0.0))


def _exceeds(flat: Tensor, bound: float) -> Tensor:
    """Which values are above a bound that is at least 0, (P,) bool.

    On the CPU as integers, in whose order positive floats are: several times faster than torch compares floats.
    """
    integer = {torch.bfloat16: torch.int16, torch.float32: torch.int32}.get(flat.dtype)
    if flat.device.type != "cpu" or integer is None:
        return flat > bound
    words, least = flat.view(integer).numpy(), torch.tensor(bound, dtype=flat.dtype).view(integer).numpy()
    return torch.from_numpy(np.greater(words, least))


def _places(is_kept_P: Tensor) -> Tensor:
    """Where a flat mask is true, ascending; on the CPU by NumPy, which skips what is false many at a time."""
    if is_kept_P.device.type != "cpu":
        return is_kept_P.nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(is_kept_P.numpy()))


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
    flat = _places(kept.flatten())
    return flat, scores_NF.flatten()[flat]
