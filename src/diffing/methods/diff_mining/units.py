"""What a unit of work holds, stored whole, so that an interrupted run goes on.

Vocabulary sums are added unit by unit, so a resumed run gives the same bits. Beside them a unit keeps a number for each
document, its best examples, and the positions that topics are made from: nothing for every token.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffing.analysis.units import write_arrays
from diffing.data.token_table import TokenTable
from diffing.methods.diff_mining.buckets import bucket_of
from diffing.methods.diff_mining.stream import NOT_COUNTED, MinedSequence

MOST_UNITS = 32
N_SHOWN = 5
SUMS = (
    "largest", "largest_squares", "smallest", "difference", "difference_squares", "positive", "merged_largest",
    "merged_squares", "merged_smallest", "by_bucket",
)  # fmt: skip
PARTS = (
    "sequence", "strength", "example_sequence", "example_strength", "example_shown", "sample_row", "sample_ids",
    "sample_values",
)  # fmt: skip
ARRAYS = (*SUMS, *PARTS)


@dataclass(frozen=True, eq=False)
class Frame:
    """What sums are made over.

    Args:
        tokens: The corpus.
        kept_N: Which tokens count.
        sampled_N: Which of them topics are made from.
        group_V: By column of the compared vocabulary, its group of merged tokens.
        n_examples: Documents kept for each dataset.
    """

    tokens: TokenTable
    kept_N: np.ndarray
    sampled_N: np.ndarray
    group_V: np.ndarray
    n_examples: int

    @property
    def n_buckets(self) -> int:
        """Buckets of positions that the corpus reaches."""
        return int(bucket_of(self.tokens.position_N).max()) + 1


class UnitWriter:
    """Collects the sequences of one unit, then writes them as one file."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        n_sets, n_ids = len(frame.tokens.datasets), len(frame.group_V)
        n_groups = int(frame.group_V.max(initial=-1)) + 1
        self.sums: dict[str, np.ndarray] = {
            "largest": np.zeros((n_sets, n_ids), np.int32),
            "largest_squares": np.zeros((n_sets, n_ids), np.int64),
            "smallest": np.zeros((n_sets, n_ids), np.int32),
            "difference": np.zeros((n_sets, n_ids)),
            "difference_squares": np.zeros((n_sets, n_ids)),
            "positive": np.zeros((n_sets, n_ids), np.int32),
            "merged_largest": np.zeros((n_sets, n_groups), np.int32),
            "merged_squares": np.zeros((n_sets, n_groups), np.int64),
            "merged_smallest": np.zeros((n_sets, n_groups), np.int32),
            "by_bucket": np.zeros((n_sets, frame.n_buckets, n_groups), np.int32),
        }
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in PARTS}
        self._best: dict[int, list[tuple[float, int, MinedSequence]]] = {}

    def add(self, mined: MinedSequence) -> None:
        """Take one sequence."""
        rows = self.frame.tokens.rows_of(mined.sequence)
        dataset = int(self.frame.tokens.dataset_N[rows.start])
        kept_T = self.frame.kept_N[rows]
        self._add_sums(mined, dataset, kept_T)
        self._add_buckets(mined, dataset)
        strength_T = mined.strength_T
        self.parts["sequence"].append(np.array([mined.sequence], dtype=np.int64))
        self.parts["strength"].append(np.array([strength_T[kept_T].sum(dtype=np.float64)]))
        at_T = self.frame.sampled_N[rows]
        self.parts["sample_row"].append(rows.start + np.flatnonzero(at_T))
        self.parts["sample_ids"].append(mined.largest_TK[at_T])
        self.parts["sample_values"].append(mined.values_TK[at_T])
        if kept_T.any() and (peak := float(strength_T[kept_T].max())) > 0:
            best = self._best.setdefault(dataset, [])
            best.append((-peak, mined.sequence, mined))
            best.sort(key=lambda entry: entry[:2])
            del best[self.frame.n_examples :]

    def _add_sums(self, mined: MinedSequence, dataset: int, kept_T: np.ndarray) -> None:
        n_ids, n_groups = len(self.frame.group_V), self.sums["merged_largest"].shape[1]
        counted = {}
        for side, ids_TK in (("largest", mined.largest_TK[kept_T]), ("smallest", mined.smallest_TK[kept_T])):
            counted[side] = _counts(ids_TK, n_ids)
            counted[f"merged_{side}"] = _counts(_once(_grouped(ids_TK, self.frame.group_V)), n_groups)
        for name, counts in counted.items():
            self.sums[name][dataset] += counts.astype(np.int32)
        self.sums["largest_squares"][dataset] += counted["largest"] ** 2
        self.sums["merged_squares"][dataset] += counted["merged_largest"] ** 2
        self.sums["difference"][dataset] += mined.sum_V
        self.sums["difference_squares"][dataset] += mined.sum_V**2
        self.sums["positive"][dataset] += mined.positive_V

    def _add_buckets(self, mined: MinedSequence, dataset: int) -> None:
        groups_TK = _once(_grouped(mined.largest_TK, self.frame.group_V))
        bucket_T = bucket_of(np.arange(len(groups_TK)))
        for bucket in np.unique(bucket_T).tolist():
            here = groups_TK[bucket_T == bucket]
            np.add.at(self.sums["by_bucket"][dataset, bucket], here[here != NOT_COUNTED], 1)

    def write(self, path: Path) -> None:
        """Write the unit, whole or not at all."""
        found = [entry[2] for dataset in sorted(self._best) for entry in self._best[dataset]]
        self.parts["example_sequence"] = [np.array([m.sequence for m in found], dtype=np.int64)]
        self.parts["example_strength"] = [m.strength_T for m in found] or [np.empty(0, np.float32)]
        shown = [_padded(m.largest_TK[:, :N_SHOWN]) for m in found]
        self.parts["example_shown"] = shown or [np.empty((0, N_SHOWN), np.int32)]
        arrays = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        write_arrays(path, arrays | self.sums)


def _counts(ids_TK: np.ndarray, width: int) -> np.ndarray:
    return np.bincount(ids_TK[ids_TK != NOT_COUNTED], minlength=width)


def _grouped(ids_TK: np.ndarray, group_V: np.ndarray) -> np.ndarray:
    """Groups instead of columns; what is not counted stays so."""
    return np.where(ids_TK == NOT_COUNTED, NOT_COUNTED, group_V[ids_TK])


def _once(groups_TK: np.ndarray) -> np.ndarray:
    """Each group once in a row: its repetitions are not counted."""
    ordered = np.sort(groups_TK, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = NOT_COUNTED
    return ordered


def _padded(shown_TK: np.ndarray) -> np.ndarray:
    missing = N_SHOWN - shown_TK.shape[1]
    return np.pad(shown_TK, ((0, 0), (0, missing)), constant_values=NOT_COUNTED) if missing else shown_TK


def add_units(units: Iterator[Mapping[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Vocabulary sums added in order, counts in 64 bits, and the other parts joined."""
    totals: dict[str, np.ndarray] = {}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in PARTS}
    for unit in units:
        for name in SUMS:
            wide = unit[name].astype(np.float64 if unit[name].dtype.kind == "f" else np.int64)
            totals[name] = totals[name] + wide if name in totals else wide
        for name in PARTS:
            parts[name].append(unit[name])
    return totals, {name: np.concatenate(found) for name, found in parts.items()}
