"""All counts of a run with what they are counts of: vocabulary, groups of merged tokens, datasets, positions."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from diffing.analysis.bootstrap import mean_stderr
from diffing.analysis.merged_tokens import MergedTokens
from diffing.methods.diff_mining.buckets import bucket_of
from diffing.methods.diff_mining.units import Frame

ALL = "all"


@dataclass(frozen=True, eq=False)
class Occurrence:
    """In how many positions each token, or group, is among the K largest, in some datasets.

    Args:
        count_X: Positions.
        squares_X: Sum over documents of the squares of each document's count.
        n_positions: Positions there are.
        n_documents: Documents they belong to.
    """

    count_X: np.ndarray
    squares_X: np.ndarray
    n_positions: int
    n_documents: int

    def __add__(self, other: "Occurrence") -> "Occurrence":
        return Occurrence(
            self.count_X + other.count_X,
            self.squares_X + other.squares_X,
            self.n_positions + other.n_positions,
            self.n_documents + other.n_documents,
        )

    @property
    def share_X(self) -> np.ndarray:
        """Share of the positions."""
        return self.count_X / max(self.n_positions, 1)

    @property
    def stderr_X(self) -> np.ndarray:
        """Its standard error, documents being the independent units; NaN for fewer than two."""
        return mean_stderr(self.count_X, self.squares_X, max(self.n_positions, 1), self.n_documents)


@dataclass(frozen=True, eq=False)
class Gathered:
    """Everything that was counted.

    Args:
        frame: What the counts were made over.
        sums: By name, [dataset, vocabulary or groups].
        parts: What units keep of documents, examples and sampled positions.
        ids_V: Token id of each column of the compared vocabulary.
        names: Strings of the ids.
        merged: The columns in groups.
    """

    frame: Frame
    sums: Mapping[str, np.ndarray]
    parts: Mapping[str, np.ndarray]
    ids_V: np.ndarray
    names: Mapping[int, str]
    merged: MergedTokens

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets that hold kept positions."""
        return tuple(n for n, many in zip(self.frame.tokens.datasets, self.n_positions_S, strict=True) if many)

    @cached_property
    def n_positions_S(self) -> np.ndarray:
        """Kept positions of each dataset of the corpus."""
        tokens = self.frame.tokens
        return np.bincount(tokens.dataset_N[self.frame.kept_N], minlength=len(tokens.datasets))

    @cached_property
    def n_documents_S(self) -> np.ndarray:
        """Documents of each that hold kept positions."""
        tokens = self.frame.tokens
        sequences = np.unique(tokens.sequence_N[self.frame.kept_N])
        return np.bincount(tokens.dataset_N[tokens.starts[sequences]], minlength=len(tokens.datasets))

    @cached_property
    def members(self) -> list[np.ndarray]:
        """Columns of each group."""
        return self.merged.members()

    def rows_of(self, dataset: str) -> list[int]:
        """Rows of the sums that a dataset, or all of them, has."""
        names = self.frame.tokens.datasets
        return [i for i, n in enumerate(names) if dataset in (ALL, n) and self.n_positions_S[i]]

    def total(self, name: str, dataset: str) -> np.ndarray:
        """A sum over a dataset, or over all."""
        return self.sums[name][self.rows_of(dataset)].sum(0)

    def occurrence(self, datasets: Sequence[str], is_merged: bool) -> Occurrence:
        """Occurrence among the K largest over some datasets."""
        rows = [i for d in datasets for i in self.rows_of(d)]
        count, squares = ("merged_largest", "merged_squares") if is_merged else ("largest", "largest_squares")
        return Occurrence(
            self.sums[count][rows].sum(0), self.sums[squares][rows].sum(0), int(self.n_positions_S[rows].sum()),
            int(self.n_documents_S[rows].sum()),
        )  # fmt: skip

    def bucket_positions(self, dataset: str) -> np.ndarray:
        """Positions in each bucket, none left out."""
        tokens = self.frame.tokens
        mine_N = np.isin(tokens.dataset_N, self.rows_of(dataset))
        return np.bincount(bucket_of(tokens.position_N[mine_N]), minlength=self.frame.n_buckets)

    def text_digest(self, dataset: str) -> str:
        """Hash of a dataset's tokens and of which of them are kept."""
        tokens, digest = self.frame.tokens, hashlib.sha256()
        mine_N = np.isin(tokens.dataset_N, self.rows_of(dataset))
        for array, kind in ((tokens.ids_N, "<i8"), (tokens.position_N, "<i8"), (self.frame.kept_N, "u1")):
            digest.update(np.ascontiguousarray(array[mine_N], dtype=kind).tobytes())
        return digest.hexdigest()[:16]
