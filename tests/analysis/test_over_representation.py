"""Counting once per text, log-odds and the exact test, against the formulas written out by hand."""

import math
from itertools import combinations

import pytest

from diffing.analysis.over_representation import fisher, over_represented


def by_hand(a, b, n_a, n_b, pooled_total, prior=1000.0):
    """z of one item: counts a and b of all items' n_a and n_b."""
    alpha = prior * (a + b) / pooled_total
    delta = math.log((a + alpha) / (n_a + prior - a - alpha)) - math.log((b + alpha) / (n_b + prior - b - alpha))
    return delta, delta / math.sqrt(1 / (a + alpha) + 1 / (b + alpha))


def test_agrees_with_the_formula():
    ours = [["ash", "ash", "milk"], ["ash"], ["ash", "the"]]
    theirs = [["the"], ["the", "milk"], ["the"]]
    found = {r.item: r for r in over_represented(ours, theirs)}
    assert {k: (r.n_texts, r.n_against) for k, r in found.items()} == {"ash": (3, 0), "milk": (1, 1), "the": (1, 3)}
    for r in found.values():
        delta, z = by_hand(r.n_texts, r.n_against, 5, 4, 9)
        assert r.log_odds == pytest.approx(delta, rel=1e-12)
        assert r.z == pytest.approx(z, rel=1e-12)
    # Of six texts three hold ash: all three in the first set is one way of C(6, 3) = 20.
    assert found["ash"].p == pytest.approx(1 / 20)
    assert found["milk"].p == pytest.approx(1 - 3 / 15)
    # Four hold the: of the first set 1 (3 ways), 2 (9 ways) or 3 (3 ways), of 15.
    assert found["the"].p == pytest.approx(1.0)


@pytest.mark.parametrize(("a", "b", "n", "m"), [(4, 1, 9, 8), (0, 3, 5, 8), (5, 0, 5, 5), (1, 6, 7, 6), (0, 0, 2, 2)])
def test_the_exact_test_by_going_through_all_ways(a, b, n, m):
    ways = [sum(i < n for i in chosen) for chosen in combinations(range(n + m), a + b)]
    assert fisher(a, b, n, m) == pytest.approx(sum(k >= a for k in ways) / len(ways), rel=1e-12)


def test_most_first_and_rare_ones_left_out_before_the_test():
    ours = [["ash", "once"]] * 3 + [["ash"]] * 40
    theirs = [["the", "rare"]] + [["the"]] * 40
    found = over_represented(ours, theirs, least=3)
    assert [r.item for r in found] == ["ash", "once", "the"]
    assert found[0].is_over
    assert not found[-1].is_over


def test_equal_sets_give_exactly_zero():
    texts = [["a", "b"], ["a"], ["c"]]
    assert {(r.log_odds, r.z, r.is_over) for r in over_represented(texts, texts)} == {(0.0, 0.0, False)}


@pytest.mark.parametrize("texts", [[], [[]], [["only"]]])
def test_nothing_to_compare(texts):
    assert not any(r.is_over for r in over_represented(texts, texts))
