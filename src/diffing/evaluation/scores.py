"""Scores of a method against what is known of an organism: average precision, AUROC, and what chance would give.

Tokens that a method does not rank come after all that it ranks, in one tie.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, Num

N_DECILES = 10
_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True, eq=False)
class Order:
    """A ranking with ties, sorted once, so that many sets of relevant items can be scored against it.

    Args:
        scores_N: Higher is better; NaN: not ranked.
    """

    scores_N: Float[np.ndarray, " N"]

    @cached_property
    def group_N(self) -> Int[np.ndarray, " N"]:
        """The tie that each item is in; the best is 0."""
        known_N = np.where(np.isnan(self.scores_N), -np.inf, self.scores_N)
        return np.unique(-known_N, return_inverse=True)[1]

    @cached_property
    def n_above_G(self) -> Int[np.ndarray, " G"]:
        """Items in a tie and in all better ones."""
        return np.cumsum(np.bincount(self.group_N))

    def average_precision(self, relevant: Num[np.ndarray, " R"]) -> float | None:
        """Σ over thresholds of (recall gained) · precision; items of one score come in together.

        Args:
            relevant: Indices of the items to be found, each once.

        Returns:
            None when there are none.

        Source: Buckley and Voorhees, Evaluating Evaluation Measure Stability (2000); ties as in scikit-learn.
        """
        if not len(relevant):
            return None
        groups, counts = np.unique(self.group_N[relevant], return_counts=True)
        precision = np.cumsum(counts) / self.n_above_G[groups]
        return float((counts * precision).sum() / len(relevant))


def auroc(scores_N: Float[np.ndarray, " N"], is_true_N: Bool[np.ndarray, " N"]) -> float | None:
    """Probability that an item to be found scores above one that is not, ties counting half; None without both kinds.

    Args:
        scores_N: Higher is better; left out where not finite.
        is_true_N: Items to be found.

    Source: Mann and Whitney (1947); Hanley and McNeil (1982).
    """
    from sklearn.metrics import roc_auc_score

    known_N = np.isfinite(scores_N)
    truth, scores = is_true_N[known_N], scores_N[known_N]
    return float(roc_auc_score(truth, scores)) if truth.any() and not truth.all() else None


def frequency_groups(counts_V: Num[np.ndarray, " V"]) -> Int[np.ndarray, " V"]:
    """0 for tokens that never occur, 1 … 10 for the deciles of those that do, the rarest first; ties stay together.

    Args:
        counts_V: Occurrences by token.
    """
    group_V = np.zeros(len(counts_V), dtype=np.int64)
    seen_V = counts_V > 0
    ordered = np.sort(counts_V[seen_V])
    below_V = np.searchsorted(ordered, counts_V[seen_V], side="left") / max(len(ordered), 1)
    group_V[seen_V] = 1 + np.minimum((below_V * N_DECILES).astype(np.int64), N_DECILES - 1)
    return group_V


def matched_sets(
    relevant: Num[np.ndarray, " R"], group_V: Int[np.ndarray, " V"], n_sets: int, rng: np.random.Generator
) -> list[Int[np.ndarray, " R"]]:
    """Random sets with as many tokens of each frequency group as `relevant` has: what it would be by frequency alone.

    They are drawn from whole groups, `relevant` included: were it drawn like them, it would score like them.

    Args:
        relevant: Ids of the tokens to be found.
        group_V: Group of each token.
        n_sets: Sets to draw.
        rng: Where they are drawn from.
    """
    groups, counts = np.unique(group_V[relevant], return_counts=True)
    pools = [np.flatnonzero(group_V == g) for g in groups]
    return [
        np.concatenate([rng.choice(p, n, replace=False) for p, n in zip(pools, counts, strict=True)])
        if len(pools) else np.zeros(0, dtype=np.int64)
        for _ in range(n_sets)
    ]  # fmt: skip


@dataclass(frozen=True)
class Score:
    """A score with its 95 % interval and what chance gives.

    Args:
        value: None where it cannot be computed.
        low: Lower end of the interval.
        high: Upper end.
        chance: Its mean under chance.
        chance_high: The 97.5th percentile under chance.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    chance_high: float | None = None

    @property
    def is_above_chance(self) -> bool:
        """Whether the score is above all but 2.5 % of what chance gives."""
        return self.value is not None and self.chance_high is not None and self.value > self.chance_high


def token_score(
    scores_V: Float[np.ndarray, " V"],
    relevant: Num[np.ndarray, " R"],
    counts_V: Num[np.ndarray, " V"],
    rng: np.random.Generator,
    n_draws: int = 400,
) -> Score:
    """Average precision for tokens to be found, its interval over them, and that of tokens just as frequent.

    Args:
        scores_V: The method's, for the whole vocabulary; NaN where it has none.
        relevant: Ids of the tokens to be found.
        counts_V: How often each token occurs in the texts that decide which are to be found.
        rng: For the bootstrap over the tokens to be found, and for the random sets.
        n_draws: Of each.
    """
    order = Order(scores_V)
    value = order.average_precision(relevant)
    if value is None:
        return Score(None)
    drawn = [_resampled(order, relevant, rng) for _ in range(n_draws)]
    sets = matched_sets(relevant, frequency_groups(counts_V), n_draws, rng)
    chance = np.array([order.average_precision(s) for s in sets], dtype=np.float64)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Score(value, float(low), float(high), float(chance.mean()), float(np.percentile(chance, 97.5)))


def _resampled(order: Order, relevant: np.ndarray, rng: np.random.Generator) -> float:
    """Mean of the items' own precisions over a resample: average precision is that mean over all of them."""
    ranks, counts = np.unique(order.group_N[relevant], return_counts=True)
    precision = np.cumsum(counts) / order.n_above_G[ranks]
    each = precision[np.searchsorted(ranks, order.group_N[relevant])]
    return float(rng.choice(each, len(each)).mean())


def document_score(
    scores_N: Float[np.ndarray, " N"],
    is_true_N: Bool[np.ndarray, " N"],
    rng: np.random.Generator,
    n_draws: int = 400,
) -> Score:
    """AUROC of documents to be found, with a bootstrap interval over documents of each kind; chance is one half.

    Args:
        scores_N: The method's, one a document; NaN where it has none.
        is_true_N: The documents to be found.
        rng: For the bootstrap.
        n_draws: Resamples.
    """
    value = auroc(scores_N, is_true_N)
    if value is None:
        return Score(None)
    known_N = np.isfinite(scores_N)
    ours, theirs = scores_N[known_N & is_true_N], scores_N[known_N & ~is_true_N]
    draws = [_auroc_of(rng.choice(ours, len(ours)), rng.choice(theirs, len(theirs))) for _ in range(n_draws)]
    both = np.concatenate([ours, theirs])
    shuffled = [_auroc_of(mixed[: len(ours)], mixed[len(ours) :]) for mixed in (rng.permutation(both) for _ in draws)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Score(value, float(low), float(high), 0.5, float(np.percentile(shuffled, 97.5)))


def _auroc_of(ours: np.ndarray, theirs: np.ndarray) -> float:
    ordered = np.sort(theirs)
    below = np.searchsorted(ordered, ours, side="left") + np.searchsorted(ordered, ours, side="right")
    return float(below.mean() / (2 * len(theirs)))


def share_score(shows: Sequence[bool]) -> Score:
    """Share of items that show something, with Wilson's interval; None without items.

    Args:
        shows: Whether each does.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference (1927).
    """
    n = len(shows)
    if not n:
        return Score(None)
    share = sum(shows) / n
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    way = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return Score(share, max(middle - way, 0.0), min(middle + way, 1.0))
