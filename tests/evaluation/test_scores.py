"""Scores against scikit-learn, pairs one by one, exact and large-sample intervals; chance on planted truth."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score

from diffing.evaluation.scores import (
    Order,
    Score,
    auroc,
    document_score,
    frequency_groups,
    matched_sets,
    share_score,
    token_score,
)


def drawn(rng, n, n_levels, share_unknown):
    scores = rng.normal(size=n) if n_levels is None else rng.integers(0, n_levels, n).astype(float)
    scores[rng.random(n) < share_unknown] = np.nan
    return scores


@pytest.mark.parametrize("share_unknown", [0.0, 0.4])
@pytest.mark.parametrize("n_levels", [None, 40, 3])
def test_average_precision_agrees_with_scikit_learn(n_levels, share_unknown):
    rng = np.random.default_rng(0)
    for n_relevant in (1, 7, 60, 200):
        scores = drawn(rng, 200, n_levels, share_unknown)
        relevant = rng.permutation(200)[:n_relevant]
        expected = average_precision_score(np.isin(np.arange(200), relevant), np.nan_to_num(scores, nan=-99.0))
        assert Order(scores).average_precision(relevant) == pytest.approx(expected, abs=1e-12)


def test_a_ranking_that_says_nothing_has_the_precision_of_its_one_tie():
    assert Order(np.full(10, np.nan)).average_precision(np.array([3, 8])) == pytest.approx(0.2)
    assert Order(np.zeros(10)).average_precision(np.array([3, 8])) == pytest.approx(0.2)
    assert Order(np.zeros(10)).average_precision(np.array([], dtype=int)) is None


@pytest.mark.parametrize("share_unknown", [0.0, 0.3])
@pytest.mark.parametrize("n_levels", [None, 4])
def test_auroc_is_the_share_of_pairs_in_order(n_levels, share_unknown):
    rng = np.random.default_rng(1)
    scores, is_true = drawn(rng, 90, n_levels, share_unknown), rng.random(90) < 0.3
    ours = [s for s, t in zip(scores, is_true, strict=True) if t and not math.isnan(s)]
    theirs = [s for s, t in zip(scores, is_true, strict=True) if not t and not math.isnan(s)]
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ours for b in theirs]
    assert auroc(scores, is_true) == pytest.approx(math.fsum(pairs) / len(pairs))


def test_auroc_needs_both_kinds_with_a_score():
    scores = np.array([1.0, 2.0, np.nan])
    assert auroc(scores, np.array([True, True, True])) is None
    assert auroc(scores, np.array([False, False, False])) is None
    assert auroc(scores, np.array([True, True, False])) is None
    assert auroc(scores, np.array([False, True, True])) == 1.0
    assert auroc(np.array([]), np.array([], dtype=bool)) is None


def test_frequency_groups_are_deciles_of_the_tokens_that_occur():
    rng = np.random.default_rng(2)
    counts = rng.zipf(1.3, 300).clip(max=10**6) - 1
    group = frequency_groups(counts)
    seen = [c for c in counts.tolist() if c]
    expected = [1 + 10 * sum(s < c for s in seen) // len(seen) if c else 0 for c in counts.tolist()]
    assert group.tolist() == expected
    order = np.argsort(counts, kind="stable")
    assert (np.diff(group[order]) >= 0).all()
    assert len(set(zip(counts.tolist(), group.tolist(), strict=True))) == len(set(counts.tolist()))


def test_frequency_groups_of_different_counts_are_equally_large():
    group = frequency_groups(np.concatenate([np.zeros(7, dtype=int), np.random.default_rng(3).permutation(250) + 1]))
    assert np.bincount(group).tolist() == [7, *[25] * 10]


def test_frequency_groups_without_any_difference():
    assert frequency_groups(np.array([4, 0, 4, 4])).tolist() == [1, 0, 1, 1]
    assert frequency_groups(np.zeros(3, dtype=int)).tolist() == [0, 0, 0]
    assert frequency_groups(np.zeros(0, dtype=int)).tolist() == []


def test_matched_sets_have_as_many_of_each_group():
    rng = np.random.default_rng(4)
    group, relevant = rng.integers(0, 11, 400), rng.permutation(400)[:60]
    sets = matched_sets(relevant, group, 20, np.random.default_rng(5))
    assert len(sets) == 20
    for each in sets:
        assert np.bincount(group[each], minlength=11).tolist() == np.bincount(group[relevant], minlength=11).tolist()
        assert len(set(each.tolist())) == 60
    assert len({frozenset(each.tolist()) for each in sets}) == 20


def test_matched_sets_come_from_the_seed():
    group, relevant = np.repeat([0, 1, 2], 30), np.array([0, 31, 32, 70])
    one, same, other = (matched_sets(relevant, group, 5, np.random.default_rng(seed)) for seed in (6, 6, 7))
    assert [s.tolist() for s in one] == [s.tolist() for s in same]
    assert [s.tolist() for s in one] != [s.tolist() for s in other]


def test_a_whole_group_can_only_be_itself():
    group = np.array([0, 0, 0, 1, 1, 2, 2])
    drawn = matched_sets(np.array([0, 1, 3, 4, 5]), group, 40, np.random.default_rng(8))
    assert {frozenset(each.tolist()) & {3, 4} for each in drawn} == {frozenset({3, 4})}
    assert {i for each in drawn for i in each.tolist()} == set(range(7))


def test_nothing_to_match():
    empty = matched_sets(np.array([], dtype=int), np.array([0, 1]), 3, np.random.default_rng(9))
    assert [s.tolist() for s in empty] == [[], [], []]


def test_a_perfect_ranking_of_tokens():
    rng = np.random.default_rng(10)
    relevant, counts = np.arange(0, 100, 10), rng.integers(1, 50, 100)
    scores = rng.normal(size=100)
    scores[relevant] += 100
    score = token_score(scores, relevant, counts, np.random.default_rng(11))
    assert (score.value, score.low, score.high) == (1.0, 1.0, 1.0)
    assert score.is_above_chance


def test_tokens_that_nobody_knows_have_no_score():
    empty = token_score(np.arange(5.0), np.array([], dtype=int), np.ones(5, dtype=int), np.random.default_rng(12))
    assert empty == Score(None)
    assert not empty.is_above_chance


def test_tokens_without_others_as_frequent_are_never_above_chance():
    score = token_score(np.array([3.0, 2.0, 1.0]), np.arange(3), np.ones(3, dtype=int), np.random.default_rng(13))
    assert (score.value, score.chance, score.chance_high) == (1.0, 1.0, 1.0)
    assert not score.is_above_chance


def precisions(scores, relevant):
    """Of each token to be found, among all tokens that are scored as high as it."""
    ours = [scores[i] for i in relevant]
    return [sum(o >= s for o in ours) / sum(a >= s for a in scores) for s in ours]


@pytest.mark.parametrize("n_levels", [None, 12])
def test_average_precision_is_a_mean_whose_interval_is_that_of_a_mean(n_levels):
    rng = np.random.default_rng(14)
    scores, relevant = drawn(rng, 600, n_levels, 0.0), rng.permutation(600)[:80]
    scores[relevant] += rng.exponential(1.5, 80) if n_levels is None else rng.integers(0, 6, 80)
    each = precisions(scores.tolist(), relevant.tolist())
    score = token_score(scores, relevant, rng.integers(0, 50, 600), np.random.default_rng(15), n_draws=3000)
    half_width = 1.96 * np.std(each) / math.sqrt(len(each))
    assert score.value == pytest.approx(np.mean(each), abs=1e-12)
    assert score.low < score.value < score.high
    assert score.low == pytest.approx(score.value - half_width, abs=0.15 * half_width)
    assert score.high == pytest.approx(score.value + half_width, abs=0.15 * half_width)


def test_of_two_tokens_the_interval_is_their_two_precisions():
    score = token_score(np.array([9.0, 8, 7, 6, 5]), np.array([0, 3]), np.ones(5, dtype=int), np.random.default_rng(16))
    assert (score.value, score.low, score.high) == (0.75, 0.5, 1.0)


def frequent_truth(rng, n_tokens=500, n_relevant=40):
    """Counts of a vocabulary, and tokens to be found: of frequent groups more, and within a group any."""
    counts = rng.zipf(1.4, n_tokens).clip(max=10**5) - 1
    weights = 1.0 + frequency_groups(counts) ** 2
    return counts, rng.choice(n_tokens, n_relevant, replace=False, p=weights / weights.sum())


@pytest.mark.slow
@pytest.mark.parametrize(("n_tokens", "n_relevant"), [(2000, 40), (500, 80)], ids=["few of a group", "half of a group"])
def test_a_ranking_by_frequency_alone_is_no_better_than_chance(n_tokens, n_relevant):
    n, above, chances = 60, [], []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        counts, relevant = frequent_truth(rng, n_tokens, n_relevant)
        score = token_score(counts.astype(float), relevant, counts, rng, n_draws=120)
        above.append(score.is_above_chance)
        chances.append(score.chance)
    assert np.mean(chances) > 1.5 * n_relevant / n_tokens
    assert np.mean(above) <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / n)


def test_a_ranking_of_the_planted_tokens_is_better_than_chance():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        counts, relevant = frequent_truth(rng)
        scores = rng.normal(size=500)
        scores[relevant] += 2
        score = token_score(scores, relevant, counts, rng, n_draws=120)
        assert score.low <= score.value <= score.high
        assert score.is_above_chance


def test_scores_come_from_the_seed():
    rng = np.random.default_rng(17)
    counts, relevant = frequent_truth(rng)
    scores = rng.normal(size=500)
    one, same, other = (token_score(scores, relevant, counts, np.random.default_rng(seed), 50) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert one.value == other.value


def test_separated_documents_are_above_chance():
    rng = np.random.default_rng(18)
    is_true = np.arange(80) < 30
    score = document_score(rng.normal(size=80) + 2 * is_true, is_true, np.random.default_rng(19))
    assert score.chance == 0.5
    assert 0.5 < score.chance_high < score.low <= score.value <= score.high <= 1
    assert score.is_above_chance


def test_shuffled_documents_are_not_above_chance():
    n, above = 25, []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        score = document_score(rng.normal(size=60), rng.permutation(60) < 25, rng, n_draws=60)
        assert score.low <= score.value <= score.high
        above.append(score.is_above_chance)
    assert np.mean(above) <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / n)


def test_the_interval_of_documents_is_that_of_two_means_of_placements():
    rng = np.random.default_rng(20)
    is_true = np.arange(300) < 120
    scores = np.round(rng.normal(size=300) + is_true, 1)
    ours, theirs = scores[is_true], scores[~is_true]
    beats = (ours[:, None] > theirs).astype(float) + 0.5 * (ours[:, None] == theirs)
    spread = 1.96 * math.sqrt(beats.mean(1).var() / len(ours) + beats.mean(0).var() / len(theirs))
    score = document_score(scores, is_true, np.random.default_rng(21), n_draws=500)
    assert score.value == pytest.approx(beats.mean())
    assert score.low == pytest.approx(beats.mean() - spread, abs=0.25 * spread)
    assert score.high == pytest.approx(beats.mean() + spread, abs=0.25 * spread)


@pytest.mark.parametrize("is_true", [[True] * 3, [False] * 3, [True, True, False]])
def test_documents_of_one_kind_have_no_score(is_true):
    assert document_score(np.array([1.0, 2.0, np.nan]), np.array(is_true), np.random.default_rng(22)) == Score(None)


@pytest.mark.parametrize("n_known", [2, 60])
def test_documents_without_a_score_do_not_change_what_chance_gives(n_known):
    known, is_true = np.random.default_rng(23).permutation(n_known).astype(float), np.arange(n_known) % 2 == 0
    alone = document_score(known, is_true, np.random.default_rng(24), n_draws=200)
    scores, truth = np.append(known, np.full(1000, np.nan)), np.append(is_true, np.zeros(1000, dtype=bool))
    among_unknown = document_score(scores, truth, np.random.default_rng(24), n_draws=200)
    assert among_unknown.value == alone.value
    assert among_unknown.chance_high == pytest.approx(alone.chance_high, abs=0.05)


@pytest.mark.parametrize(("n_shown", "n"), [(30, 100), (0, 7), (7, 7), (1, 1), (3, 50)])
def test_the_interval_of_a_share_is_wilsons(n_shown, n):
    score = share_score([True] * n_shown + [False] * (n - n_shown))
    expected = binomtest(n_shown, n).proportion_ci(method="wilson")
    assert score.value == n_shown / n
    assert (score.low, score.high) == (pytest.approx(expected.low, abs=1e-6), pytest.approx(expected.high, abs=1e-6))
    assert (score.chance, score.chance_high, score.is_above_chance) == (None, None, False)


def test_a_share_of_nothing():
    assert share_score([]) == Score(None)
