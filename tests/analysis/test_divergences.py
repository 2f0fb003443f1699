"""Divergences against hand-computed cases, a float64 computation, and their invariants."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing.analysis.divergences import delta_nll, divergences, log_probs, smoothed_log_ratio


def both(f, b, **options):
    found = log_probs(torch.tensor(f), torch.tensor(b), **options)
    return found, *divergences(found.finetuned_NV, found.base_NV)


def test_hand_computed_case():
    p, q = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
    _, found, terms, change = both([[math.log(x) for x in p]], [[math.log(x) for x in q]])
    kl = 0.5 * math.log(2) - 0.25 * math.log(2)
    m = [0.375, 0.25, 0.375]
    js = 0.5 * sum(x * math.log(x / z) for x, z in zip(p, m, strict=True))
    js += 0.5 * sum(x * math.log(x / z) for x, z in zip(q, m, strict=True))
    assert found.kl_N.item() == pytest.approx(kl, abs=1e-6)
    assert found.reverse_kl_N.item() == pytest.approx(kl, abs=1e-6)
    assert found.js_N.item() == pytest.approx(js, abs=1e-6)
    assert found.entropy_finetuned_N.item() == pytest.approx(1.5 * math.log(2), abs=1e-6)
    assert terms[0].tolist() == pytest.approx([0.5 * math.log(2), 0.0, -0.25 * math.log(2)], abs=1e-6)
    assert change[0].tolist() == pytest.approx([0.25, 0.0, -0.25], abs=1e-6)
    assert (found.top_finetuned_N.item(), found.top_base_N.item()) == (0, 2)


@given(st.integers(0, 10_000), st.floats(0.1, 40.0))
@settings(max_examples=25, deadline=None)
def test_agrees_with_float64(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    f, b = torch.randn(3, 50, generator=generator) * scale, torch.randn(3, 50, generator=generator) * scale
    _, found, _, _ = both(f.tolist(), b.tolist())
    lp, lq = f.double().log_softmax(-1), b.double().log_softmax(-1)
    m = torch.logaddexp(lp, lq) - math.log(2)
    kl = (lp.exp() * (lp - lq)).sum(-1)
    js = 0.5 * ((lp.exp() * (lp - m)).sum(-1) + (lq.exp() * (lq - m)).sum(-1))
    torch.testing.assert_close(found.kl_N.double(), kl, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.js_N.double(), js, rtol=1e-5, atol=1e-5)
    assert (found.js_N <= math.log(2) + 1e-6).all()
    assert (found.kl_N >= -1e-5).all()


def test_identical_logits_give_exactly_zero():
    logits = (torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) * 20).tolist()
    _, found, terms, change = both(logits, logits)
    for value in (found.kl_N, found.reverse_kl_N, found.js_N, terms, change):
        assert (value == 0).all()


def test_masked_ids_and_extreme_logits_stay_finite():
    _, found, _, _ = both([[0.0, 500.0, -math.inf, -math.inf]], [[500.0, 0.0, -math.inf, 3.0]])
    assert torch.isfinite(found.kl_N).all()
    assert found.js_N.item() == pytest.approx(math.log(2), abs=1e-5)


def test_swapping_the_models_swaps_the_directions():
    f, b = torch.randn(5, 30).tolist(), torch.randn(5, 30).tolist()
    _, one, _, _ = both(f, b)
    _, two, _, _ = both(b, f)
    torch.testing.assert_close(one.kl_N, two.reverse_kl_N)
    torch.testing.assert_close(one.js_N, two.js_N)


def test_temperature_divides_both_logits():
    f, b = torch.randn(2, 30), torch.randn(2, 30)
    _, warm, _, _ = both(f.tolist(), b.tolist(), temperature=2.0)
    _, plain, _, _ = both((f / 2).tolist(), (b / 2).tolist())
    torch.testing.assert_close(warm.kl_N, plain.kl_N)


def test_cut_renormalises_and_reports_the_mass_lost():
    p, q = [0.5, 0.3, 0.2], [0.2, 0.6, 0.1, 0.1]
    found, result, _, _ = both([[math.log(x) for x in p]], [[math.log(x) for x in q]], shared_ids=torch.tensor([0, 1]))
    assert found.mass_cut_finetuned_N is not None
    assert found.mass_cut_base_N is not None
    assert found.mass_cut_finetuned_N.item() == pytest.approx(0.2, abs=1e-6)
    assert found.mass_cut_base_N.item() == pytest.approx(0.2, abs=1e-6)
    expected = 0.625 * math.log(0.625 / 0.25) + 0.375 * math.log(0.375 / 0.75)
    assert result.kl_N.item() == pytest.approx(expected, abs=1e-6)


def test_delta_nll_is_negative_where_finetuning_made_the_token_likelier():
    lp, lq = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.3, 0.7]]).log()
    assert delta_nll(lp, lq, torch.tensor([0])).item() == pytest.approx(-math.log(3), abs=1e-6)
    assert delta_nll(lp, lq, torch.tensor([1])).item() == pytest.approx(math.log(7), abs=1e-5)


def test_a_floor_flattens_what_neither_model_expects():
    logits_f, logits_b = (torch.randn(6, 50, generator=torch.Generator().manual_seed(s)) * 8 for s in (0, 1))
    found = log_probs(logits_f, logits_b)
    p, q = (x.double().softmax(-1) for x in (logits_f, logits_b))
    for floor in (0.0, 1e-6, 1e-2):
        expected = ((p + floor) / (q + floor)).log()
        torch.testing.assert_close(smoothed_log_ratio(found, floor).double(), expected, atol=1e-5, rtol=1e-5)
    rare = (p < 1e-8) & (q < 1e-8)
    assert rare.any()
    assert smoothed_log_ratio(found, 1e-6)[rare].abs().max() < 0.011
    assert not smoothed_log_ratio(log_probs(logits_f, logits_f), 1e-6).any()


def test_ids_that_both_models_mask_have_no_ratio():
    logits = torch.tensor([[0.0, 1.0, float("-inf")]])
    other = torch.tensor([[0.0, 2.0, float("-inf")]])
    for floor in (0.0, 1e-6):
        assert smoothed_log_ratio(log_probs(logits, other), floor)[0, 2] == 0
