"""The bootstrap against theory, and its degenerate cases."""

import numpy as np
import pytest

from diffing.analysis.bootstrap import mean_stderr, ratio_interval


def test_interval_of_a_mean_matches_the_normal_one():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, size=400)
    found = ratio_interval(values, np.ones(400), np.random.default_rng(1))
    half = 1.96 * values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.06)
    assert found.high == pytest.approx(values.mean() + half, abs=0.06)


def test_it_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        counts = rng.integers(5, 50, size=60)
        sums = np.array([rng.normal(1.0, 1.0, n).sum() for n in counts])
        found = ratio_interval(sums, counts, np.random.default_rng(trial), resamples=300)
        hits += found.low <= 1.0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_long_sequences_weigh_more():
    assert ratio_interval(np.array([10.0, 0.0]), np.array([10, 90]), np.random.default_rng(0)).value == pytest.approx(
        0.1
    )


def test_one_sequence_has_no_interval_and_none_has_no_value():
    one = ratio_interval(np.array([4.0]), np.array([2]), np.random.default_rng(0))
    assert (one.value, one.low, one.high) == (2.0, None, None)
    assert np.isnan(ratio_interval(np.array([0.0]), np.array([0]), np.random.default_rng(0)).value)


def test_stderr_of_a_mean_over_equal_sequences():
    sums = np.array([1.0, 3.0, 5.0, 7.0])
    found = mean_stderr(np.array([sums.sum()]), np.array([(sums**2).sum()]), n_tokens=40, n_sequences=4)
    assert found[0] == pytest.approx((sums / 10).std(ddof=1) / 2)
    assert np.isnan(mean_stderr(np.ones(1), np.ones(1), 10, 1)).all()
