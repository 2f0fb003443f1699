"""How far two rankings of the same kind of item agree: their heads, and their whole order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

_FEWEST = 3


@dataclass(frozen=True)
class Overlap:
    """What the heads of two rankings have in common.

    Args:
        k: Length of the heads: what was asked for, or the shorter ranking's length.
        share: Part of a head that is also in the other; None for an empty ranking.
        chance: The share expected of two random orders of the same items; k/n where both rank the same n items.
    """

    k: int
    share: float | None
    chance: float | None


def overlap_at(a_ids: Int[np.ndarray, " A"], b_ids: Int[np.ndarray, " B"], ks: Sequence[int]) -> dict[int, Overlap]:
    """Share of the top k that two rankings have in common, for each k.

    Of A and B items, C of them in both, random heads of length k share k²·C/(A·B) items on average: an item of both is
    in one head with probability k/A and in the other, independently, with k/B.

    Args:
        a_ids: Items of a whole ranking, best first, each once.
        b_ids: Items of another.
        ks: Lengths of the heads, 1 or more.
    """
    assert all(k >= 1 for k in ks)
    n_a, n_b = len(a_ids), len(b_ids)
    n_common = len(np.intersect1d(a_ids, b_ids, assume_unique=True))
    return {k: _overlap(a_ids, b_ids, min(k, n_a, n_b), n_common) for k in ks}


def _overlap(a_ids: np.ndarray, b_ids: np.ndarray, k: int, n_common: int) -> Overlap:
    if k == 0:
        return Overlap(0, None, None)
    n_shared = len(np.intersect1d(a_ids[:k], b_ids[:k], assume_unique=True))
    return Overlap(k, n_shared / k, k * n_common / (len(a_ids) * len(b_ids)))


def rank_correlation(scores_a: Float[np.ndarray, " N"], scores_b: Float[np.ndarray, " N"]) -> float | None:
    """Spearman's ρ of two scorings of the same N items, ties having the mean of their ranks.

    Args:
        scores_a: One score for each item; NaN where it has none.
        scores_b: Another.

    Returns:
        Pearson's r of the ranks among the items that both score; None when they are fewer than three, or when one
        scoring gives all of them the same.

    Source: Spearman, The Proof and Measurement of Association between Two Things (1904); ties as in Kendall, Rank
    Correlation Methods (1948), chapter 3.
    """
    both = ~(np.isnan(scores_a) | np.isnan(scores_b))
    if both.sum() < _FEWEST:
        return None
    a, b = (_centred_ranks(scores[both]) for scores in (scores_a, scores_b))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / scale, -1, 1)) if scale > 0 else None


def _centred_ranks(scores_N: np.ndarray) -> np.ndarray:
    _, index_N, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    ranks_N = (np.cumsum(counts) - (counts - 1) / 2)[index_N]
    return ranks_N - (len(scores_N) + 1) / 2
