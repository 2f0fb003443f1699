"""For every unit the sequences in which it is strongest, and a random sample of the others, from one pass."""

from dataclasses import dataclass

import numpy as np

_LEAST_PENDING = 2**17
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, eq=False)
class Ranked:
    """Sequences of units, as columns of one length.

    Args:
        unit: The unit (a latent, one end of a component).
        rank: Place among those of its unit, from 0.
        row: Row of the token table with the unit's largest value in the sequence.
        value: That value.
        sequence: The sequence.
    """

    unit: np.ndarray
    rank: np.ndarray
    row: np.ndarray
    value: np.ndarray
    sequence: np.ndarray

    def __len__(self) -> int:
        return len(self.unit)


@dataclass(frozen=True, eq=False)
class _Entries:
    """Candidates: the largest value of a unit in a sequence, and the pair's random key."""

    unit: np.ndarray
    row: np.ndarray
    value: np.ndarray
    sequence: np.ndarray
    key: np.ndarray

    @classmethod
    def none(cls) -> "_Entries":
        whole = np.empty(0, dtype=np.int64)
        return cls(whole, whole, np.empty(0), whole, np.empty(0, dtype=np.uint64))

    def at(self, index: np.ndarray) -> "_Entries":
        return _Entries(*(column[index] for column in self._columns))

    def joined(self, other: "_Entries") -> "_Entries":
        return _Entries(*(np.concatenate(pair) for pair in zip(self._columns, other._columns, strict=True)))

    @property
    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.unit, self.row, self.value, self.sequence, self.key


class TopExamples:
    """For every unit the sequences with the largest activation, and a uniform sample of the others; one pass.

    A (unit, sequence) pair counts once, by its largest value (ties: the first row). Memory is O(n_units · n). What is
    found depends neither on the order of blocks nor on their sizes.

    Args:
        n_units: Units are numbered from 0 to `n_units` − 1.
        n_top: Sequences kept for each unit.
        n_sample: Sequences sampled for each unit from those that are not among its `n_top`.
        seed: Determines the sample.
    """

    def __init__(self, n_units: int, n_top: int, n_sample: int = 0, seed: int = 0) -> None:
        self._n_units, self._n_top, self._n_sample, self._seed = n_units, n_top, n_sample, seed
        # A sample of others is what is left of the smallest keys without the top ones, so that many more are kept.
        self._n_keyed = n_sample + n_top if n_sample else 0
        self._limit = max(_LEAST_PENDING, n_units * (n_top + self._n_keyed))
        self._top, self._keyed = _Entries.none(), _Entries.none()
        self._pending: list[tuple[np.ndarray, ...]] = []
        self._n_pending = 0

    def add(self, unit_M: np.ndarray, row_M: np.ndarray, value_M: np.ndarray, sequence_M: np.ndarray) -> None:
        """Take in the activations of one block of whole sequences.

        Args:
            unit_M: Unit of each activation.
            row_M: Row of the token table where it is.
            value_M: The activation, above 0.
            sequence_M: Sequence of that row; all of a sequence's activations come in one call.
        """
        assert bool((value_M > 0).all()), "activations must be positive"
        assert not len(unit_M) or (unit_M.min() >= 0 and unit_M.max() < self._n_units)
        whole = (np.array(a, dtype=np.int64) for a in (unit_M, row_M, sequence_M))
        unit, row, sequence = whole
        self._pending.append((unit, row, np.array(value_M, dtype=np.float64), sequence))
        self._n_pending += len(unit)
        if self._n_pending >= self._limit:
            self._compress()

    def top(self) -> Ranked:
        """The sequences with the largest values; by unit, then value descending, ties by row."""
        self._compress()
        return _ranked(self._top)

    def sample(self) -> Ranked:
        """A uniform sample of each unit's other sequences, in the same order."""
        self._compress()
        pairs = np.stack([self._keyed.unit, self._keyed.sequence], 1)
        taken = np.stack([self._top.unit, self._top.sequence], 1)
        _, index, counts = np.unique(np.concatenate([pairs, taken]), axis=0, return_inverse=True, return_counts=True)
        others = self._keyed.at(counts[index.reshape(-1)[: len(pairs)]] == 1)
        return _ranked(_first(_by_key(others), self._n_sample))

    def _compress(self) -> None:
        if not self._n_pending:
            self._pending = []
            return
        unit, row, value, sequence = (np.concatenate(parts) for parts in zip(*self._pending, strict=True))
        self._pending, self._n_pending = [], 0
        order = np.lexsort((row, -value, sequence, unit))
        first = np.ones(len(order), dtype=bool)
        same_unit, same_sequence = (np.diff(column[order]) == 0 for column in (unit, sequence))
        first[1:] = ~(same_unit & same_sequence)
        at = order[first]
        found = _Entries(unit[at], row[at], value[at], sequence[at], _keys(self._seed, unit[at], sequence[at]))
        self._top = _first(_by_value(self._top.joined(found)), self._n_top)
        if self._n_keyed:
            self._keyed = _first(_by_key(self._keyed.joined(found)), self._n_keyed)


def _by_value(entries: _Entries) -> _Entries:
    return entries.at(np.lexsort((entries.row, -entries.value, entries.unit)))


def _by_key(entries: _Entries) -> _Entries:
    return entries.at(np.lexsort((entries.sequence, entries.key, entries.unit)))


def _first(entries: _Entries, n: int) -> _Entries:
    """The first n of each unit; entries are sorted by unit."""
    return entries.at(_ranks(entries.unit) < n)


def _ranks(unit_M: np.ndarray) -> np.ndarray:
    """Place of each entry among those of its unit; units are ascending."""
    _, starts, counts = np.unique(unit_M, return_index=True, return_counts=True)
    return np.arange(len(unit_M)) - np.repeat(starts, counts)


def _ranked(entries: _Entries) -> Ranked:
    e = _by_value(entries)
    return Ranked(e.unit, _ranks(e.unit), e.row, e.value, e.sequence)


def _keys(seed: int, unit_M: np.ndarray, sequence_M: np.ndarray) -> np.ndarray:
    """64 bits for each (unit, sequence) that look random: SplitMix64 (Steele, Lea and Flood 2014) over the three."""
    key = _mixed(np.full(len(unit_M), seed % 2**64, dtype=np.uint64))
    for part in (unit_M, sequence_M):
        key = _mixed(key + part.astype(np.uint64))
    return key


def _mixed(state: np.ndarray) -> np.ndarray:
    x = state + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))
