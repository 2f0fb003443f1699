"""Tokens that differ in case or in a leading space, taken together.

` Rome`, `Rome` and ` rome` are one word to a reader; apart they crowd a ranking and split a count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


def merge_key(token: str) -> str:
    """What tokens of one group share: the string in lower case without leading spaces.

    A token of spaces alone, and one that is empty, is its own group.
    """
    bare = token.lstrip(" ")
    return bare.casefold() if bare else token


@dataclass(frozen=True, eq=False)
class MergedTokens:
    """A vocabulary in groups.

    Args:
        keys: By group, its key; groups are in the order of their first id.
        group_V: By id, the number of its group.
    """

    keys: tuple[str, ...]
    group_V: Int[np.ndarray, " V"]

    @property
    def n_groups(self) -> int:
        """How many groups there are."""
        return len(self.keys)

    def members(self) -> list[np.ndarray]:
        """By group, the rows of `group_V` that belong to it."""
        order = np.argsort(self.group_V, kind="stable")
        ends = np.cumsum(np.bincount(self.group_V, minlength=self.n_groups))
        return np.split(order, ends[:-1]) if self.n_groups else []

    def sums(self, values_V: np.ndarray) -> np.ndarray:
        """Sum of a quantity over the members of each group."""
        return np.bincount(self.group_V, weights=values_V, minlength=self.n_groups)


def merge_tokens(ids: Sequence[int], names: Mapping[int, str]) -> MergedTokens:
    """Group ids whose strings differ in case or leading spaces alone.

    Args:
        ids: The vocabulary.
        names: String of each id.
    """
    groups: dict[str, int] = {}
    group_V = np.array([groups.setdefault(merge_key(names[i]), len(groups)) for i in ids], dtype=np.int64)
    return MergedTokens(tuple(groups), group_V)
