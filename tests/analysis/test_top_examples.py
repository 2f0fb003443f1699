"""Top and sampled examples against a loop over everything, whatever the blocks."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing.analysis import top_examples
from diffing.analysis.top_examples import TopExamples, _keys


def activations(seed, n_units, n_sequences, values=6):
    """Sparse activations with ties, as columns in random order; sequences are contiguous rows."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, n_sequences)
    sequence_N = np.repeat(np.arange(n_sequences), lengths)
    unit, row = np.nonzero(rng.random((n_units, len(sequence_N))) < 0.3)
    value = rng.integers(1, values, len(unit)) / 4
    return unit, row, value, sequence_N[row]


def blocks(columns, n_sequences, n_blocks, seed):
    """The columns cut into blocks of whole sequences, in random order within and between blocks."""
    rng = np.random.default_rng(seed)
    block_S = rng.integers(0, n_blocks, n_sequences)
    for number in rng.permutation(n_blocks):
        mine = rng.permutation(np.flatnonzero(block_S[columns[3]] == number))
        yield tuple(c[mine] for c in columns)


def peaks(columns):
    """By unit and sequence the largest value and its first row."""
    best = {}
    for unit, row, value, sequence in zip(*(c.tolist() for c in columns), strict=True):
        key = (unit, sequence)
        if key not in best or (-value, row) < (-best[key][0], best[key][1]):
            best[key] = (value, row)
    return best


def by_loop(columns, n_top, n_sample, seed):
    pairs = defaultdict(list)
    for (unit, sequence), (value, row) in peaks(columns).items():
        pairs[unit].append((-value, row, sequence))
    top, sample = [], []
    for unit in sorted(pairs):
        ranked = sorted(pairs[unit])
        top += [(unit, rank, row, -v, s) for rank, (v, row, s) in enumerate(ranked[:n_top])]
        rest = sorted(ranked[n_top:], key=lambda p: _keys(seed, np.array([unit]), np.array([p[2]]))[0])
        sample += [(unit, rank, row, -v, s) for rank, (v, row, s) in enumerate(sorted(rest[:n_sample]))]
    return top, sample


def columns_of(ranked):
    return list(zip(*(getattr(ranked, c).tolist() for c in ("unit", "rank", "row", "value", "sequence")), strict=True))


def found(columns, n_units, n_sequences, n_top, n_sample, seed, n_blocks, order):
    examples = TopExamples(n_units, n_top, n_sample, seed)
    for block in blocks(columns, n_sequences, n_blocks, order):
        examples.add(*block)
    return columns_of(examples.top()), columns_of(examples.sample())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), n_units=st.integers(1, 6), n_sequences=st.integers(1, 30), n_top=st.integers(1, 6),
    n_sample=st.integers(0, 5), n_blocks=st.integers(1, 12), limit=st.sampled_from([1, 20, 10**6]),
)  # fmt: skip
def test_they_are_those_of_a_loop(seed, n_units, n_sequences, n_top, n_sample, n_blocks, limit):
    columns = activations(seed, n_units, n_sequences)
    before, top_examples._LEAST_PENDING = top_examples._LEAST_PENDING, limit
    try:
        here = found(columns, n_units, n_sequences, n_top, n_sample, seed, n_blocks, seed + 1)
    finally:
        top_examples._LEAST_PENDING = before
    assert here == by_loop(columns, n_top, n_sample, seed)


def test_blocks_change_nothing(monkeypatch):
    columns = activations(0, 40, 300)
    wanted = found(columns, 40, 300, 7, 5, 3, 1, 0)
    monkeypatch.setattr(top_examples, "_LEAST_PENDING", 1)
    for n_blocks, order in ((2, 1), (17, 2), (300, 3)):
        assert found(columns, 40, 300, 7, 5, 3, n_blocks, order) == wanted


def test_the_sample_is_uniform_over_the_others():
    n_sequences, hits = 20, np.zeros(20)
    rows = np.arange(n_sequences)
    for seed in range(600):
        examples = TopExamples(1, 3, 4, seed)
        examples.add(np.zeros(n_sequences, int), rows, rows + 1.0, rows)
        assert examples.top().sequence.tolist() == [19, 18, 17]
        hits[examples.sample().sequence] += 1
    assert hits[17:].sum() == 0
    expected = 600 * 4 / 17
    assert ((hits[:17] - expected) ** 2 / expected).sum() < 45


def test_samples_of_two_units_and_two_seeds_differ():
    rows = np.arange(1000)
    picks = []
    for seed in (0, 1, 2**63, -1):
        examples = TopExamples(2, 1, 10, seed)
        for unit in (0, 1):
            examples.add(np.full(1000, unit), rows, rows + 1.0, rows)
        sample = examples.sample()
        picks += [frozenset(sample.sequence[sample.unit == unit].tolist()) for unit in (0, 1)]
    assert len(set(picks)) == 8


def test_nothing_added_gives_nothing():
    examples = TopExamples(3, 2, 2)
    examples.add(*(np.empty(0, int), np.empty(0, int), np.empty(0), np.empty(0, int)))
    assert len(examples.top()) == len(examples.sample()) == 0
    assert examples.top().value.dtype == np.float64


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_only_positive_activations_come_in(value):
    with pytest.raises(AssertionError, match="positive"):
        TopExamples(1, 1).add(np.array([0]), np.array([0]), np.array([value]), np.array([0]))
