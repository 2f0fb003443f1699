"""What is known of each token, or group of merged tokens, on a dataset: the columns that orders sort by."""

from dataclasses import dataclass

import numpy as np

from diffing.analysis.bootstrap import mean_stderr
from diffing.methods.diff_mining.gather import ALL, Gathered
from diffing.methods.diff_mining.null import Excess, NullCounts, excess


@dataclass(frozen=True, eq=False)
class Measures:
    """One value for each token or group.

    Args:
        is_merged: Whether they are groups.
        largest_X: Share of positions at which it is among the K largest.
        largest_stderr_X: Its standard error; NaN with a single document.
        smallest_X: Share at which it is among the K smallest.
        mean_X: Mean D; of a group that of its token with the largest.
        mean_stderr_X: Standard error of that.
        positive_X: Share of positions at which D is above 0, of the same token.
        excess: Beside the null runs; None where there are none for this dataset.
    """

    is_merged: bool
    largest_X: np.ndarray
    largest_stderr_X: np.ndarray
    smallest_X: np.ndarray
    mean_X: np.ndarray
    mean_stderr_X: np.ndarray
    positive_X: np.ndarray
    excess: Excess | None

    @property
    def orders(self) -> dict[str, np.ndarray]:
        """What each order sorts by."""
        found = {"occurrence": self.largest_X, "mean": self.mean_X, "asymmetry": self.largest_X - self.smallest_X}
        return found if self.excess is None else {**found, "z": self.excess.z_X}


def measures(data: Gathered, nulls: NullCounts | None, dataset: str, is_merged: bool) -> Measures:
    """All measures on a dataset, or on `all`."""
    own = data.occurrence([dataset], is_merged)
    n = max(own.n_positions, 1)
    total, squares = data.total("difference", dataset), data.total("difference_squares", dataset)
    mean, error = total / n, mean_stderr(total, squares, n, own.n_documents)
    positive = data.total("positive", dataset) / n
    if is_merged:
        best = np.array([m[mean[m].argmax()] for m in data.members], dtype=np.int64)
        mean, error, positive = mean[best], error[best], positive[best]
    smallest = data.total("merged_smallest" if is_merged else "smallest", dataset) / n
    found = _excess(data, nulls, dataset, is_merged)
    return Measures(is_merged, own.share_X, own.stderr_X, smallest, mean, error, positive, found)


def _excess(data: Gathered, nulls: NullCounts | None, dataset: str, is_merged: bool) -> Excess | None:
    if nulls is None or not (runs := nulls.of(dataset, is_merged)):
        return None
    return excess(data.occurrence(nulls.common(dataset), is_merged), runs)


@dataclass(frozen=True, eq=False)
class Labels:
    """How tokens and groups are called on one dataset.

    Args:
        data: The counts.
        is_merged: Whether groups are asked for.
        ordered_V: Columns by group, each group's most frequent on the dataset first.
        start_G: Where a group begins in it.
        n_shown_G: How many of a group's columns are counted on the dataset; 1 where none is.
    """

    data: Gathered
    is_merged: bool
    ordered_V: np.ndarray
    start_G: np.ndarray
    n_shown_G: np.ndarray

    @classmethod
    def of(cls, data: Gathered, dataset: str, is_merged: bool) -> "Labels":
        """Names by how often each token is counted on the dataset."""
        count_V, group_V = data.total("largest", dataset), data.merged.group_V
        size_G = np.bincount(group_V, minlength=data.merged.n_groups)
        counted_G = np.bincount(group_V, weights=count_V > 0, minlength=data.merged.n_groups).astype(np.int64)
        ordered_V = np.lexsort((np.arange(len(group_V)), -count_V, group_V))
        return cls(data, is_merged, ordered_V, np.cumsum(size_G) - size_G, np.maximum(counted_G, 1))

    def ids(self, x: int) -> tuple[int, ...]:
        """Token ids of a token or group: those that are counted, most frequent first; one where none is."""
        if not self.is_merged:
            return (int(self.data.ids_V[x]),)
        start = int(self.start_G[x])
        return tuple(self.data.ids_V[self.ordered_V[start : start + int(self.n_shown_G[x])]].tolist())

    def token(self, x: int) -> str:
        """Its most frequent token as people read it."""
        return self.data.names[self.ids(x)[0]]


def all_datasets(data: Gathered) -> tuple[str, ...]:
    """`all`, and each dataset where there are several."""
    return (ALL, *data.datasets)
