"""Figures of quality against loops in float64."""

import math

import numpy as np
import pytest
import torch

from diffing.dictionaries.codes import Codes
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.metrics import Meter, evaluate
from diffing.dictionaries.spec import DictionarySpec


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(n_sites=2, sparsity="batch_topk", n_latents=12):
    spec = DictionarySpec(n_sites=n_sites, width=4, n_latents=n_latents, k=3, sparsity=sparsity)
    dictionary = Dictionary(spec, torch.linspace(0.3, 4, n_sites))
    with torch.no_grad():
        for number, weight in enumerate(dictionary.parameters()):
            weight.copy_(normal(*weight.shape, seed=number) * 0.5)
        dictionary.encoder_bias_F[2] = -1e6
        if sparsity == "batch_topk":
            dictionary.threshold.fill_(0.7)
    return dictionary


def by_loop(dictionary, raw_NMD):
    """(FVE by site, explained difference, L0, frequencies) with nothing but loops over float64 numbers."""
    scale = dictionary.scale_M.double().numpy()
    w, d, b_e, b_d = (
        getattr(dictionary, n).detach().double().numpy()
        for n in ("encoder_FMD", "decoder_FMD", "encoder_bias_F", "decoder_bias_MD")
    )
    n_latents, n_sites, _ = d.shape
    raw = raw_NMD.double().numpy()
    made_up, counts = np.empty_like(raw), np.zeros(n_latents)
    for i, row in enumerate(raw):
        x = row * scale[:, None]
        rebuilt = b_d.copy()
        for j in range(n_latents):
            a = np.sum(w[j] * (x - b_d)) + b_e[j]
            length = sum(math.sqrt(np.sum(d[j, m] ** 2)) for m in range(n_sites))
            if a > 0 and a * length > float(dictionary.threshold):
                rebuilt += a * d[j]
                counts[j] += 1
        made_up[i] = rebuilt / scale[:, None]

    def explained(y, rebuilt):
        return 1 - np.sum((y - rebuilt) ** 2) / np.sum((y - y.mean(0)) ** 2)

    fve = [explained(raw[:, m], made_up[:, m]) for m in range(n_sites)]
    gap = explained(raw[:, -1] - raw[:, 0], made_up[:, -1] - made_up[:, 0]) if n_sites > 1 else None
    return fve, gap, counts.sum() / len(raw), counts / len(raw)


@pytest.mark.parametrize("n_sites", [1, 2, 3])
@pytest.mark.parametrize("sizes", [[60], [1, 30, 29], [59, 1]])
def test_quality_is_that_of_a_loop(n_sites, sizes):
    dictionary = made(n_sites)
    raw = normal(60, n_sites, 4, seed=7) + torch.linspace(-3, 3, 4)
    fve, gap, l0, frequency = by_loop(dictionary, raw)
    found = evaluate(dictionary, raw.split(sizes))
    assert found.n_tokens == 60
    assert found.fve_M == pytest.approx(fve, rel=1e-4)
    assert found.explained_difference == (None if n_sites == 1 else pytest.approx(gap, rel=1e-4))
    assert found.l0 == pytest.approx(l0)
    assert found.frequency_F == pytest.approx(frequency)
    assert found.dead_share == (frequency == 0).mean() > 0


def test_a_perfect_and_an_empty_reconstruction():
    dictionary, x = made(), normal(50, 2, 4)
    codes = Codes.of_dense(torch.zeros(50, 12))
    perfect, empty = Meter(dictionary), Meter(dictionary)
    perfect.add(x, codes, x)
    empty.add(x, codes, x.mean(0).expand_as(x))
    assert perfect.quality().fve_M.tolist() == [1, 1]
    assert perfect.quality().explained_difference == 1
    assert empty.quality().fve_M == pytest.approx([0, 0], abs=1e-6)
    assert empty.quality().explained_difference == pytest.approx(0, abs=1e-6)
    assert (empty.quality().l0, empty.quality().dead_share) == (0, 1)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4, 1 / 3])
def test_data_that_do_not_vary_have_no_fve(value):
    raw = normal(40, 2, 4)
    raw[:, 0] = value
    found = evaluate(made(), raw.split(16))
    assert math.isnan(found.fve_M[0])
    assert math.isfinite(found.fve_M[1])
    assert math.isfinite(found.explained_difference)


def test_equal_sites_have_no_explained_difference():
    dictionary = made()
    dictionary.scale_M.fill_(0.7)
    found = evaluate(dictionary, [normal(40, 1, 4).expand(-1, 2, -1)])
    assert math.isnan(found.explained_difference)
    assert np.isfinite(found.fve_M).all()


def test_a_large_offset_does_not_change_the_fve():
    dictionary, x = made(1), normal(500, 1, 4)
    codes, noise = Codes.of_dense(torch.zeros(500, 12)), normal(500, 1, 4, seed=3) * 0.1
    near, far = Meter(dictionary), Meter(dictionary)
    for part in range(0, 500, 100):
        rows = slice(part, part + 100)
        near.add(x[rows], codes.at(torch.arange(500) // 100 == part // 100), (x + noise)[rows])
        shifted = x[rows].double() + 1e7
        far.add(shifted, codes.at(torch.arange(500) // 100 == part // 100), shifted + noise[rows])
    assert far.quality().fve_M == pytest.approx(near.quality().fve_M, rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_left_out_and_counted(value):
    dictionary, raw = made(), normal(60, 2, 4, seed=7)
    bad = raw.clone()
    bad[[0, 7, 31], 1, 2] = value
    keep = torch.ones(60, dtype=torch.bool)
    keep[[0, 7, 31]] = False
    found, clean = evaluate(dictionary, bad.split(20)), evaluate(dictionary, [raw[keep]])
    assert (found.n_tokens, found.n_not_finite) == (57, 3)
    assert found.fve_M == pytest.approx(clean.fve_M)
    assert found.frequency_F == pytest.approx(clean.frequency_F)


def test_without_a_finite_row_nothing_is_known():
    found = evaluate(made(), [torch.full((5, 2, 4), float("nan"))])
    assert (found.n_tokens, found.n_not_finite, found.l0) == (0, 5, 0)
    assert np.isnan(found.fve_M).all()
    assert math.isnan(found.explained_difference)
    assert evaluate(made(1), []).explained_difference is None
