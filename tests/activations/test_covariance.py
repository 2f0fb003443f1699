"""Streamed covariance against numpy in float64, however the rows are cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing.activations import covariance
from diffing.activations.covariance import Covariance


def rows(n, width=5, seed=0, offset=100.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, width)) * [1, 5, 0.1, 2, 3] + offset)


def check(found, x_ND):
    x = x_ND.double().numpy()
    centred = x - x.mean(0)
    assert found.n == len(x)
    np.testing.assert_allclose(found.mean_D, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.centred_DD, centred.T @ centred / len(x), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.uncentred_DD, x.T @ x / len(x), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_it_is_that_of_numpy(dtype, monkeypatch):
    x_ND = rows(301).to(dtype)
    before = x_ND.clone()
    check(Covariance.of(x_ND), x_ND)
    monkeypatch.setattr(covariance, "_CHUNK_BYTES", 8 * 5 * 7)
    found = Covariance.of(x_ND)
    check(found, x_ND)
    assert found.m2_DD.dtype == torch.float64
    assert torch.equal(before, x_ND)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=6), seed=st.integers(0, 99))
def test_parts_in_any_cut_give_the_whole(cuts, seed):
    x_ND = rows(60, seed=seed)
    found = Covariance.empty(5)
    for part in np.split(x_ND.numpy(), sorted(cuts)):
        found = found.merge(Covariance.of(torch.from_numpy(part)))
    check(found, x_ND)


def test_constants_come_out_exactly():
    row = torch.tensor([[0.1, -3.7, 1e6, 1e-9, 2.0]], dtype=torch.float32)
    found = Covariance.of(row.expand(50, 5)).merge(Covariance.of(row.expand(13, 5)))
    assert torch.equal(found.mean_D, row[0].double())
    assert not found.m2_DD.any()


def test_no_rows_and_one():
    none = Covariance.of(torch.empty(0, 3))
    assert (none.n, none.centred_DD.any(), none.uncentred_DD.any()) == (0, False, False)
    one = none.merge(Covariance.of(torch.tensor([[1.0, 2.0, 3.0]])))
    assert one.n == 1
    assert not one.centred_DD.any()
    assert one.uncentred_DD.diag().tolist() == [1, 4, 9]


def test_a_large_mean_keeps_the_digits_of_a_small_spread():
    x = np.random.default_rng(0).normal(size=(4000, 3))
    shifted = torch.from_numpy(x + 1e8)
    exact = (shifted.numpy() - 1e8) - (shifted.numpy() - 1e8).mean(0)
    np.testing.assert_allclose(Covariance.of(shifted).centred_DD, exact.T @ exact / 4000, rtol=1e-6, atol=1e-7)
