"""Agreement of rankings: by hand, against a loop in float64, and against scipy."""

import itertools
import math

import numpy as np
import pytest

from diffing.analysis.agreement import Overlap, overlap_at, rank_correlation


def test_overlap_by_hand():
    a, b = np.array([4, 2, 0, 1, 3]), np.array([2, 4, 3, 0, 1])
    assert overlap_at(a, b, [1, 2, 3, 5]) == {
        1: Overlap(1, 0.0, 1 / 5),
        2: Overlap(2, 1.0, 2 / 5),
        3: Overlap(3, 2 / 3, 3 / 5),
        5: Overlap(5, 1.0, 1.0),
    }


def test_a_head_longer_than_the_ranking_is_the_ranking():
    assert overlap_at(np.array([1, 2]), np.array([2, 1]), [10]) == {10: Overlap(2, 1.0, 1.0)}
    assert overlap_at(np.array([1]), np.array([2, 1]), [10])[10] == Overlap(1, 0.0, 0.5)
    assert overlap_at(np.array([], dtype=int), np.array([2, 1]), [3])[3] == Overlap(0, None, None)


@pytest.mark.parametrize(("a", "b"), [((0, 1, 2, 3), (0, 1, 2, 3)), ((0, 1, 2, 3), (2, 3, 4)), ((0, 1), (2, 3))])
def test_chance_is_the_mean_over_all_orders(a, b):
    for k in (1, 2):
        orders = itertools.product(itertools.permutations(a), itertools.permutations(b))
        shares = [len(set(x[:k]) & set(y[:k])) / k for x, y in orders]
        chance = overlap_at(np.array(a), np.array(b), [k])[k].chance
        assert chance == pytest.approx(sum(shares) / len(shares))


def loop_spearman(a, b):
    def ranks(values):
        return [sum(w < v for w in values) + (1 + sum(w == v for w in values)) / 2 for v in values]

    x, y = ranks(a), ranks(b)
    mx, my = math.fsum(x) / len(x), math.fsum(y) / len(y)
    sxy = math.fsum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    return sxy / math.sqrt(math.fsum((p - mx) ** 2 for p in x) * math.fsum((q - my) ** 2 for q in y))


def test_spearman_by_hand():
    assert rank_correlation(np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, 30.0, 20.0, 40.0])) == pytest.approx(0.8)
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([-1.0, -5.0, -9.0])) == -1.0
    tied = rank_correlation(np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert tied == pytest.approx(math.sqrt(3) / 2)


def pairs():
    rng = np.random.default_rng(0)
    for n in (3, 10, 300):
        yield rng.normal(size=n), rng.normal(size=n)
        yield rng.integers(0, 4, n).astype(float), np.arange(n, dtype=float)
        x = rng.normal(size=n)
        yield x, np.exp(x) + 0.1 * rng.normal(size=n)


def test_spearman_against_a_loop():
    for a, b in pairs():
        assert rank_correlation(a, b) == pytest.approx(loop_spearman(a, b), abs=1e-12)


def test_spearman_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    for a, b in pairs():
        assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_items_that_one_of_them_lacks_do_not_count():
    a, b = np.array([1.0, np.nan, 2.0, 3.0, 9.0]), np.array([1.0, 7.0, 2.0, 3.0, np.nan])
    assert rank_correlation(a, b) == pytest.approx(1.0)
    assert rank_correlation(a, np.array([1.0, 2.0, 3.0, np.nan, np.nan])) is None


def test_where_there_is_no_order():
    assert rank_correlation(np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0])) is None
    assert rank_correlation(np.array([1.0, 2.0]), np.array([1.0, 2.0])) is None
    assert rank_correlation(np.array([]), np.array([])) is None


def test_only_the_order_counts():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=50), rng.normal(size=50)
    assert rank_correlation(a, b) == pytest.approx(rank_correlation(np.exp(a), b**3))
    assert rank_correlation(a, b) == rank_correlation(b, a)
    assert rank_correlation(a, -a) == pytest.approx(-1)
