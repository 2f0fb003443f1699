"""What stands in more texts of one set than of another: words, phrases or tokens.

Items are ranked by the z of their log-odds, and tested by Fisher's exact test on the number of texts. The z of a few
dozen texts is too cautious to test with: in 26 of 40 texts against 0 of 40 it is about 3, where chance has 3 in 10¹¹.
"""

import math
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np

from diffing.analysis.log_odds import benjamini_hochberg, log_odds

PRIOR = 1000.0
ItemT = TypeVar("ItemT", bound=Hashable)


@dataclass(frozen=True)
class Excess(Generic[ItemT]):
    """An item, in how many texts of each set it is, and what that says.

    Args:
        item: The word, phrase or token.
        n_texts: Texts of the first set that hold it.
        n_against: Texts of the second set that do.
        log_odds: Log-odds in the first set minus those in the second.
        z: The same over its standard error.
        p: Of Fisher's exact test, one-sided: how likely so many of its texts are in the first set by chance.
        is_over: Whether it is over-represented in the first set, at a false discovery rate of 5 %.
    """

    item: ItemT
    n_texts: int
    n_against: int
    log_odds: float
    z: float
    p: float
    is_over: bool


def over_represented(
    texts: Sequence[Collection[ItemT]], against: Sequence[Collection[ItemT]], least: int = 1, prior: float = PRIOR
) -> list[Excess[ItemT]]:
    """Items by how far they are over-represented in `texts` against `against`, most first.

    Items are counted once per text. Rare ones are left out before anything is tested: how often an item is in both sets
    together says nothing of how they differ.

    Args:
        texts: Items of each text.
        against: Items of each text it is compared with.
        least: Texts of both sets together that an item needs.
        prior: Strength of the prior; see `log_odds`.
    """
    ours, theirs = (Counter(item for text in side for item in set(text)) for side in (texts, against))
    items = [item for item in dict.fromkeys([*ours, *theirs]) if ours[item] + theirs[item] >= least]
    n_a, n_b = (np.array([side[i] for i in items], dtype=np.int64) for side in (ours, theirs))
    found = log_odds(n_a, n_b, prior)
    p = np.array([fisher(ours[i], theirs[i], len(texts), len(against)) for i in items], dtype=np.float64)
    is_over = benjamini_hochberg(p)
    rows = [
        Excess(item, ours[item], theirs[item], float(found.log_odds_W[i]), float(found.z_W[i]), float(p[i]),
               bool(is_over[i]))
        for i, item in enumerate(items)
    ]  # fmt: skip
    return sorted(rows, key=lambda r: (-r.z, -r.n_texts, str(r.item)))


@lru_cache(maxsize=2**16)
def fisher(n_texts: int, n_against: int, of_texts: int, of_against: int) -> float:
    """How likely it is that of the texts that hold an item at least `n_texts` are in the first set, by chance alone.

    Args:
        n_texts: Texts of the first set that hold it.
        n_against: Texts of the second set that do.
        of_texts: Texts of the first set.
        of_against: Texts of the second set.

    Source: Fisher, The Logic of Inductive Inference (1935), section 4.
    """
    n_both = n_texts + n_against
    ways = sum(
        math.comb(of_texts, k) * math.comb(of_against, n_both - k) for k in range(n_texts, min(of_texts, n_both) + 1)
    )
    return ways / math.comb(of_texts + of_against, n_both)
