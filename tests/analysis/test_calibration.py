"""Claims against a null: p-values by rank, the false discovery rate on simulated nulls, and lists."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from diffing.analysis.calibration import LEVEL, Ranking, calibrate, claims_of, null_p_values
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
