"""Log-odds with an informative Dirichlet prior: the paper's formula word by word, and what must not be found."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from diffing.analysis.log_odds import benjamini_hochberg, log_odds


def test_it_is_the_formula_of_the_paper():
    a, b, prior = [40, 3, 0, 57], [10, 30, 1, 200], 50.0
    found = log_odds(np.array(a), np.array(b), prior)
    total = sum(a) + sum(b)
    for w in range(4):
        alpha = prior * (a[w] + b[w]) / total
        odds = [(y[w] + alpha) / (sum(y) + prior - y[w] - alpha) for y in (a, b)]
        delta = math.log(odds[0]) - math.log(odds[1])
        z = delta / math.sqrt(1 / (a[w] + alpha) + 1 / (b[w] + alpha))
        assert found.log_odds_W[w] == pytest.approx(delta, rel=1e-12)
        assert found.z_W[w] == pytest.approx(z, rel=1e-12)
        assert found.p_W[w] == pytest.approx(1 - NormalDist().cdf(z), abs=1e-12)


def test_a_planted_word_is_over_represented_and_no_other():
    rng = np.random.default_rng(0)
    a, b = rng.poisson(50, 300), rng.poisson(50, 300)
    a[7] += 120
    found = log_odds(a, b)
    assert found.is_over_W.tolist() == [w == 7 for w in range(300)]
    assert not log_odds(b, a).is_over_W[7]
    assert found.z_W.argmax() == 7


def test_sides_change_sign():
    a, b = np.array([5, 0, 9, 100]), np.array([1, 4, 9, 90])
    one, other = log_odds(a, b), log_odds(b, a)
    np.testing.assert_allclose(one.z_W, -other.z_W, atol=1e-12)
    np.testing.assert_allclose(one.p_W, 1 - other.p_W, atol=1e-12)


def test_equal_counts_differ_in_nothing():
    found = log_odds(np.arange(6), np.arange(6))
    assert not found.log_odds_W.any()
    assert not found.is_over_W.any()


def test_words_of_neither_side_are_not_tested():
    """Unseen words would otherwise weaken the test of the seen ones."""
    a, b = np.array([30, 2, 50]), np.array([2, 3, 50])
    alone = log_odds(a, b)
    padded = log_odds(np.append(a, np.zeros(1000, int)), np.append(b, np.zeros(1000, int)))
    np.testing.assert_array_equal(padded.is_over_W[:3], alone.is_over_W)
    np.testing.assert_allclose(padded.z_W[:3], alone.z_W)
    assert set(padded.p_W[3:]) == {1.0}
    assert not padded.z_W[3:].any()


@pytest.mark.parametrize("counts", [([], []), ([0], [0]), ([3], [4]), ([3, 0], [0, 0]), ([0, 0], [0, 0])])
def test_little_is_finite_and_finds_nothing(counts):
    found = log_odds(*(np.array(c, dtype=np.int64) for c in counts))
    assert np.isfinite(found.z_W).all()
    assert not found.is_over_W.any()


def test_benjamini_hochberg_by_hand():
    """The example of the paper: 15 hypotheses, four rejected at 5 %."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert benjamini_hochberg(np.array(p)).tolist() == [True] * 4 + [False] * 11
    assert benjamini_hochberg(np.array(p[::-1])).tolist() == [False] * 11 + [True] * 4


def test_benjamini_hochberg_rejects_below_the_last_that_passes():
    assert benjamini_hochberg(np.array([0.03, 0.04, 0.05]), 0.05).all(), "only the largest meets its own bound"
    assert not benjamini_hochberg(np.array([0.2, 0.06]), 0.05).any()
    assert benjamini_hochberg(np.array([])).tolist() == []
