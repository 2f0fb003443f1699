"""Claims against a null: p-values by rank, the false discovery rate on simulated nulls, excess over two, and lists."""

import math

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from diffing.analysis.calibration import LEVEL, Ranking, calibrate, claims_of, excess_claims, null_p_values
from diffing.core.claims import with_claims
from diffing.core.evidence import Evidence, ExampleEvidence, ScalarEvidence, TextEvidence, TokenEvidence


def test_p_values_count_the_null_scores_that_are_as_high():
    rng = np.random.default_rng(0)
    scores, null = rng.integers(0, 6, 40).astype(float), rng.integers(0, 6, 25).astype(float)
    expected = [(1 + sum(n >= s for n in null)) / 26 for s in scores]
    assert null_p_values(scores, null) == pytest.approx(expected)
    assert null_p_values(scores, np.array([])).tolist() == [1.0] * 40


def test_claims_agree_with_scipy():
    rng = np.random.default_rng(1)
    scores = np.concatenate([rng.normal(0, 1, 900), rng.normal(5, 1, 100)])
    null = rng.normal(0, 1, 1000)
    adjusted = false_discovery_control(null_p_values(scores, null), method="bh")
    assert claims_of(scores, null).tolist() == ((adjusted <= LEVEL) & (scores > 0)).tolist()
    assert 80 <= claims_of(scores, null)[900:].sum() <= 100


@pytest.mark.parametrize("draw", ["normal", "exponential", "standard_cauchy"])
def test_the_false_discovery_rate_is_kept_on_simulated_nulls(draw):
    rng = np.random.default_rng(2)
    any_claim, proportions = [], []
    for _ in range(400):
        null, same = (getattr(rng, draw)(size=300) for _ in range(2))
        any_claim.append(claims_of(same, null).any())
        planted = np.concatenate([getattr(rng, draw)(size=250), np.full(50, 1e6)])
        claimed = claims_of(planted, null)
        proportions.append(claimed[:250].sum() / max(claimed.sum(), 1))
    assert np.mean(any_claim) <= LEVEL + 0.03
    assert np.mean(proportions) <= LEVEL + 0.015
    assert np.mean(proportions) > 0.01


def ranking(scores):
    return Ranking(np.arange(len(scores)), np.array(scores, dtype=float))


def test_a_merged_token_is_claimed_when_one_of_its_ids_is():
    scores, null = np.full(200, 0.1), np.linspace(0, 1, 200)
    scores[:30] = np.linspace(9, 6, 30)
    tokens = (TokenEvidence("a", (0, 150), 9.0), TokenEvidence("b", (150, 151), 0.2), TokenEvidence("c", (3,), 8.0))
    claims = calibrate(Evidence(tokens=tokens), Evidence(), ranking(scores), ranking(null))
    assert claims.tokens.flags == (True, False, True)
    assert (claims.tokens.n_tested, claims.tokens.n_null, claims.tokens.n_claimed) == (200, 200, 30)
    assert claims.tokens.threshold == pytest.approx(6.0)
    assert claims.token_nulls == (None, None, pytest.approx(null[3]))
    judged = with_claims(Evidence(tokens=tokens), claims)
    assert [t.claimed for t in judged.tokens] == [True, False, True]
    assert judged.tokens[2].null_score == pytest.approx(null[3])


def test_without_full_rankings_tokens_stay_uncalibrated():
    tokens = (TokenEvidence("a", (0,), 9.0),)
    claims = calibrate(Evidence(tokens=tokens), Evidence(), None, ranking([1.0]))
    assert claims.tokens.flags == (None,)
    unknown = calibrate(Evidence(tokens=tokens), Evidence(), ranking([np.nan] * 40), ranking([1.0] * 40))
    assert (unknown.tokens.flags, unknown.tokens.n_tested) == ((False,), 0)


@pytest.mark.parametrize(
    ("scores", "null", "claimed"),
    [
        (range(100, 130), range(1, 31), 30),
        (range(1, 31), range(100, 130), 0),
        (range(100, 110), range(1, 31), 0),
        (range(1, 31), range(1, 31), 0),
        ([0.0] * 30, [], 0),
        (range(1, 31), [], 30),
    ],
    ids=["all above", "all below", "too few to be sure", "identical", "zero", "empty null"],
)
def test_texts_and_examples_are_judged_as_lists_of_the_best(scores, null, claimed):
    found = Evidence(
        examples=tuple(ExampleEvidence("x", float(s)) for s in scores),
        texts=(TextEvidence("in words"), *(TextEvidence("y", float(s)) for s in scores)),
    )
    other = Evidence(
        examples=tuple(ExampleEvidence("x", float(s)) for s in null),
        texts=tuple(TextEvidence("y", float(s)) for s in null),
    )
    claims = calibrate(found, other, None, None)
    assert claims.examples.n_claimed == sum(bool(f) for f in claims.examples.flags) == claimed
    assert claims.texts.flags[0] is None
    assert claims.texts.flags[1:] == claims.examples.flags


@pytest.mark.parametrize(
    ("mine", "null", "claimed"),
    [
        ((0.5, 0.4, 0.6), (0.1, 0.05, 0.2), True),
        ((-0.5, -0.6, -0.4), (0.1, 0.05, 0.2), True),
        ((0.1, 0.05, 0.2), (0.5, 0.4, 0.6), False),
        ((0.15, 0.1, 0.3), (0.1, 0.05, 0.2), False),
        ((0.5, -0.1, 0.6), (0.0, 0.0, 0.0), False),
        ((0.5, None, None), (0.1, 0.05, 0.2), None),
        ((0.5, 0.4, 0.6), None, None),
    ],
)
def test_a_number_is_claimed_when_its_interval_lies_beyond_the_nulls(mine, null, claimed):
    found = Evidence(scalars=(ScalarEvidence("mean KL", *mine),))
    other = Evidence(scalars=(ScalarEvidence("mean KL", *null),) if null else ())
    claims = calibrate(found, other, None, None)
    assert claims.scalars == (claimed,)
    assert claims.scalar_nulls == (null[0] if null else None,)


def test_agreement_counts_away_from_one():
    found = Evidence(scalars=(ScalarEvidence("top-1 agreement", 0.7, 0.65, 0.75),))
    near, far = (Evidence(scalars=(ScalarEvidence("top-1 agreement", v, v, v),)) for v in (0.98, 0.5))
    assert calibrate(found, near, None, None).scalars == (True,)
    assert calibrate(found, far, None, None).scalars == (False,)


EVERYWHERE, MINE_ALONE = range(15), range(20, 35)


def two_nulls(seed=0):
    """A result and two nulls: some tokens high in all three, some as high in the result alone."""
    rng = np.random.default_rng(seed)
    means = np.ones((3, 400))
    means[:, EVERYWHERE] = 50
    means[0, MINE_ALONE] = 50
    return [ranking(scores) for scores in means * rng.lognormal(0, 0.05, means.shape)]


def test_excess_tells_tokens_that_no_null_favours_from_those_that_all_do():
    mine, first, second = two_nulls()
    claimed = excess_claims(mine, first, second)
    assert claimed.ids_V.tolist() == list(MINE_ALONE)
    assert claimed.scores_V.tolist() == mine.scores_V[MINE_ALONE].tolist()
    assert not claims_of(mine.scores_V, first.scores_V).any()


@pytest.mark.parametrize("factor", [1e-6, 0.3, 7.0, 1e9])
def test_excess_is_that_of_shares_whatever_the_size_of_the_change(factor):
    mine, first, second = two_nulls(1)
    ids = excess_claims(mine, first, second).ids_V.tolist()
    assert ids
    scaled = excess_claims(ranking(factor * mine.scores_V), first, second)
    assert scaled.ids_V.tolist() == ids
    assert scaled.scores_V == pytest.approx(factor * mine.scores_V[ids])
    assert (
        excess_claims(mine, ranking(factor * first.scores_V), ranking(second.scores_V / factor)).ids_V.tolist() == ids
    )


@pytest.mark.parametrize(("n_planted", "n_claimed"), [(9, 0), (10, 10)])
def test_excess_needs_as_many_tokens_as_two_nulls_can_resolve(n_planted, n_claimed):
    n = 200
    first, second = 1 + 0.1 * np.random.default_rng(2).random((2, n))
    mine = first.copy()
    mine[:n_planted] = 100
    assert (1 / (1 + 2 * n) <= LEVEL * n_planted / n) == (n_claimed > 0)
    assert len(excess_claims(ranking(mine), ranking(first), ranking(second)).ids_V) == n_claimed


@pytest.mark.parametrize("means", ["equal", "pareto", "one of most"])
@pytest.mark.parametrize("spread", [0.2, 1.0])
def test_excess_of_a_third_null_is_seldom_claimed(means, spread):
    rng = np.random.default_rng(3)
    n_runs, n = 250, 150
    mean = {"equal": np.ones(n), "pareto": rng.pareto(1.5, n), "one of most": np.append(np.ones(n - 1), 10.0 * n)}[
        means
    ]
    any_claim = [
        len(excess_claims(*(ranking(s) for s in mean * rng.lognormal(0, spread, (3, n)))).ids_V) > 0
        for _ in range(n_runs)
    ]
    assert np.mean(any_claim) <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / n_runs)


def test_of_tokens_in_excess_few_are_claimed_wrongly():
    rng = np.random.default_rng(4)
    n_runs, proportions, powers = 200, [], []
    for _ in range(n_runs):
        scores = rng.exponential(size=200) * rng.lognormal(0, 0.2, (3, 200))
        scores[0, :25] += rng.exponential(10, 25)
        claimed = excess_claims(*(ranking(s) for s in scores)).ids_V
        proportions.append((claimed >= 25).sum() / max(len(claimed), 1))
        powers.append((claimed < 25).mean() if len(claimed) else 0.0)
    assert np.mean(proportions) <= LEVEL + 3 * np.std(proportions) / math.sqrt(n_runs)
    assert np.mean(powers) > 0.3


def test_a_token_that_a_ranking_lacks_has_no_share_there():
    mine, first, second = two_nulls(5)
    lacking = [[20, 21, 399], [22, 0], [23, 1]]
    rng = np.random.default_rng(6)
    some, filled = [], []
    for each, left_out in zip((mine, first, second), lacking, strict=True):
        ids = rng.permutation(np.setdiff1d(np.arange(400), left_out))
        some.append(Ranking(ids, each.scores_V[ids]))
        scores = each.scores_V.copy()
        scores[left_out] = 0.0
        filled.append(ranking(scores))
    expected, found = (sorted(excess_claims(*r).ids_V.tolist()) for r in (filled, some))
    assert found == expected
    assert not {20, 21, 399} & set(found)


def test_words_that_no_null_writes_are_claimed():
    rng = np.random.default_rng(15)
    common = rng.exponential(size=300)
    nulls = [Ranking(np.arange(300), common * rng.lognormal(0, 0.1, 300)) for _ in range(2)]
    mine = Ranking(np.arange(330), np.concatenate([common * rng.lognormal(0, 0.1, 300), np.full(30, 5.0)]))
    assert set(excess_claims(mine, *nulls).ids_V.tolist()) == set(range(300, 330))


@pytest.mark.parametrize("zero", [(0,), (1,), (2,), (0, 1, 2)])
def test_without_any_change_there_is_no_excess(zero):
    rankings = two_nulls(7)
    for i in zero:
        rankings[i] = ranking(np.zeros(400))
    assert excess_claims(*rankings).ids_V.tolist() == []
    rankings[zero[0]] = ranking(-np.ones(400))
    assert excess_claims(*rankings).ids_V.tolist() == []


def test_scores_below_zero_are_not_in_excess():
    mine, first, second = (r.scores_V.copy() for r in two_nulls(8))
    mine[100:140] = -0.01
    first[100:140] = second[100:140] = -1000
    assert excess_claims(ranking(mine), ranking(first), ranking(second)).ids_V.tolist() == list(MINE_ALONE)


def test_tokens_that_may_not_be_claimed_make_no_room_for_others():
    rng = np.random.default_rng(12)
    n_runs, any_claim = 200, []
    for _ in range(n_runs):
        scores = rng.exponential(size=300) * rng.lognormal(0, 0.4, (3, 300))
        scores[0, :60] = -0.01
        scores[1:, :60] = -30 - 0.01 * rng.random((2, 60))
        any_claim.append(len(excess_claims(*(ranking(s) for s in scores)).ids_V) > 0)
    assert np.mean(any_claim) <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / n_runs)


TOKENS = (TokenEvidence("a", (22,), 50.0), TokenEvidence("b", (3,), 50.0), TokenEvidence("c", (3, 22), 50.0))


def test_a_second_null_judges_tokens_by_their_excess():
    mine, first, second = two_nulls(9)
    first.scores_V[399] = np.nan
    found = Evidence(tokens=TOKENS)
    alone = calibrate(found, Evidence(), mine, first)
    assert alone.tokens.flags == (False, False, False)
    assert (alone.tokens.n_null, alone.tokens.threshold) == (399, None)
    both = calibrate(found, Evidence(), mine, first, second)
    assert both.tokens.flags == (True, False, True)
    assert (both.tokens.n_tested, both.tokens.n_null, both.tokens.n_claimed) == (400, 800, len(MINE_ALONE))
    assert both.tokens.threshold == pytest.approx(mine.scores_V[MINE_ALONE].min())
    assert both.tokens.p_values[0] == both.tokens.p_values[2] == pytest.approx(1 / 801)
    assert alone.tokens.p_values[0] == null_p_values(mine.scores_V[[22]], first.known.scores_V)[0]
    assert both.token_nulls == alone.token_nulls == (*first.scores_V[[22, 3]].tolist(), None)


def scalars(*values):
    return tuple(ScalarEvidence(name, value) for name, value in values)


@pytest.mark.parametrize(
    ("mine", "null", "is_faint"),
    [
        ([("mean KL", 0.009)], [("mean KL", 0.1)], True),
        ([("mean KL", -0.009)], [("mean KL", 0.1)], True),
        ([("mean KL", 0.011)], [("mean KL", 0.1)], False),
        ([("mean KL", 0.5)], [("mean KL", 0.1)], False),
        ([("mean KL", 0.0)], [("mean KL", 0.1)], True),
        ([("mean KL · a", 0.009), ("mean KL · b", 0.2)], [("mean KL · a", 0.1), ("mean KL · b", 1.0)], False),
        ([("mean KL · a", 0.009), ("mean KL · b", 0.02)], [("mean KL · a", 0.1), ("mean KL · b", 1.0)], True),
        ([("mean KL", 0.009), ("norm", 0.2)], [("mean KL", 0.1), ("norm", 1.0)], True),
        ([("mean KL", 0.009), ("norm", 0.2)], [("mean KL", 0.1), ("norm", None)], True),
        ([("mean KL", 0.009), ("norm", 0.2)], [("mean KL", 0.1), ("norm", 0.0)], True),
        ([("mean KL", 0.009), ("norm", 0.2)], [("mean KL", 0.1)], True),
        ([("mean KL", None)], [("mean KL", 0.1)], False),
        ([("mean KL", 0.0)], [("mean KL", 0.0)], False),
        ([("mean KL", 0.0)], [("norm", 0.1)], False),
        ([("top-1 agreement", 0.995)], [("top-1 agreement", 0.9)], False),
        ([], [], False),
    ],
)
@pytest.mark.parametrize("n_nulls", [1, 2])
def test_a_change_below_a_tenth_of_the_nulls_has_no_claimed_tokens_and_examples(mine, null, is_faint, n_nulls):
    result, first, second = two_nulls(10)
    if n_nulls == 1:
        result, second = ranking(result.scores_V + 1000.0), None
    examples, theirs = (tuple(ExampleEvidence("x", float(s)) for s in range(*r)) for r in ((100, 130), (1, 31)))
    found = Evidence(tokens=TOKENS, examples=examples, scalars=scalars(*mine))
    other = Evidence(examples=theirs, scalars=scalars(*null))
    claims = calibrate(found, other, result, first, second, "mean KL")
    assert claims.examples.n_claimed == (0 if is_faint else 30)
    assert claims.examples.flags == (not is_faint,) * 30
    assert claims.tokens.flags == ((False,) * 3 if is_faint else (True, n_nulls == 1, True))
    assert (claims.tokens.n_claimed == 0) is is_faint
    assert (claims.tokens.threshold is None) is is_faint


def test_a_faint_change_leaves_texts_and_numbers_as_they_are():
    texts, nulls = ([TextEvidence("y", float(s)) for s in range(*r)] for r in ((100, 130), (1, 31)))
    found = Evidence(texts=tuple(texts), scalars=(ScalarEvidence("mean KL", 0.009, 0.008, 0.01),))
    other = Evidence(texts=tuple(nulls), scalars=(ScalarEvidence("mean KL", 0.1, -0.001, 0.002),))
    claims = calibrate(found, other, *two_nulls(11), "mean KL")
    assert (claims.tokens.n_claimed, claims.texts.n_claimed, claims.scalars) == (0, 30, (True,))
