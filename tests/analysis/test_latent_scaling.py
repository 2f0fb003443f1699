"""Latent scaling against least squares over whole arrays, on equal models, and on planted features that L1 shrinks."""

from functools import cache

import numpy as np
import pytest
import torch
from latent_makers import coded, dense, random_dictionary, random_rows

from diffing.analysis.latents.coding import CodedBlock
from diffing.analysis.latents.scaling import KINDS, Scaling, ScalingSums
from diffing.analysis.latents.tags import FT_ONLY_BELOW, NU_ERROR, relative_norms, verdict
from diffing.dictionaries.initial import initial_dictionary, measure_scale
from diffing.dictionaries.planted import plant, recovery
from diffing.dictionaries.schedules import TrainingSpec
from diffing.dictionaries.spec import DictionarySpec
from diffing.dictionaries.trainer import Trainer, train


def scaling_of(dictionary, rows_N2D, kind="pair", mean_2D=None, n_parts=1):
    sums = ScalingSums(dictionary, kind, rows_N2D.mean(0) if mean_2D is None else mean_2D)
    for part in rows_N2D.tensor_split(n_parts):
        sums.add(coded(dictionary, part, kind))
    return sums.result()


def least_squares(dictionary, rows_N2D, kind):
    """β by fitting a_ij d_j to y_ij, one latent and model at a time; NaN where the latent never is active."""
    d = dense(dictionary, rows_N2D, kind)
    raw = rows_N2D.double().numpy()
    own_N2D = (raw - raw.mean(0)) * dictionary.scale_M.double().numpy().reshape(-1, 1)
    n_latents = d.acts_NF.shape[1]
    beta = {k: np.full((2, n_latents), np.nan) for k in KINDS}
    for j in range(n_latents):
        a_N = d.acts_NF[:, j]
        model_ND = np.outer(a_N, d.rows_FMD[j, -1])
        if not (model_ND**2).sum():
            continue
        for m in range(2):
            y = {"activation": own_N2D[:, m]}
            if kind == "pair":
                y["error"] = d.x_NMD[:, m] - d.made_NMD[:, m] + np.outer(a_N, d.rows_FMD[j, m])
                y["reconstruction"] = d.made_NMD[:, m] - d.bias_MD[m]
            for name, y_ND in y.items():
                beta[name][m, j] = np.vdot(model_ND, y_ND) / np.vdot(model_ND, model_ND)
    return beta


@pytest.mark.parametrize("n_parts", [1, 7])
@pytest.mark.parametrize("sparsity", ["l1", "batch_topk", "topk"])
@pytest.mark.parametrize("kind", ["pair", "difference"])
def test_beta_and_nu_are_those_of_least_squares(kind, sparsity, n_parts):
    dictionary = random_dictionary(2 if kind == "pair" else 1, sparsity)
    rows = random_rows(n=300)
    found = scaling_of(dictionary, rows, kind, n_parts=n_parts)
    expected = least_squares(dictionary, rows, kind)
    for name in KINDS:
        np.testing.assert_allclose(found.beta[name], expected[name], rtol=1e-4, atol=1e-5)
        base, finetuned = expected[name]
        usable = finetuned > 1e-3
        np.testing.assert_array_equal(np.isnan(found.nu(name)), ~usable)
        np.testing.assert_allclose(found.nu(name)[usable], (base / finetuned)[usable], rtol=2e-3)
    assert np.isnan(found.beta["activation"][:, :2]).all()  # dead, and without a row in the finetuned model
    n_known = np.isfinite(found.nu("activation")).sum()
    assert 3 < n_known < dictionary.spec.n_latents - 2
    if kind == "difference":
        assert all(np.isnan(found.beta[name]).all() for name in ("error", "reconstruction"))


def test_nu_is_unknown_up_to_a_thousandth():
    beta = np.array([[1.0, 1.0, 1.0, 1.0, np.nan, 0.0], [2.0, 1e-3, 1.1e-3, -4.0, np.nan, 0.5]])
    nu = Scaling({"error": beta}).nu("error")
    np.testing.assert_allclose(nu, [0.5, np.nan, 1 / 1.1e-3, np.nan, np.nan, 0.0])


def test_nothing_was_read():
    beta = ScalingSums(random_dictionary(), "pair", torch.zeros(2, 10)).result().beta
    assert all(np.isnan(b).all() for b in beta.values())


def test_a_latent_that_is_the_base_times_a_factor_has_that_nu():
    """One latent, no others: the base holds a third of the direction, in normalised units."""
    dictionary = random_dictionary(n_latents=3, sparsity="l1")
    with torch.no_grad():
        dictionary.encoder_bias_F[:2] = -1e3
        dictionary.decoder_bias_MD.zero_()
        dictionary.decoder_FMD[2, 0] = 0  # shrunk: the row says that the base has none of it
    size_N = torch.from_numpy(np.random.default_rng(1).uniform(1, 2, 50)).float()
    along_ND = size_N[:, None] * dictionary.decoder_FMD.detach()[2, 1]
    rows = torch.stack([along_ND / 3, along_ND], 1) / dictionary.scale_M[:, None]
    with torch.no_grad():
        dictionary.encoder_FMD[2, 0] = 0
        dictionary.encoder_FMD[2, 1] = dictionary.decoder_FMD[2, 1] / dictionary.decoder_FMD[2, 1].square().sum()
        dictionary.encoder_bias_F[2] = 0
    found = scaling_of(dictionary, rows, mean_2D=torch.zeros(2, 10))
    assert found.nu("error")[2] == pytest.approx(1 / 3, rel=1e-5)
    assert found.nu("activation")[2] == pytest.approx(1 / 3, rel=1e-5)
    assert found.nu("reconstruction")[2] == pytest.approx(0, abs=1e-6)
    assert verdict("ft_only", found.nu("error")[2], found.nu("reconstruction")[2]) == "shrunk"


@pytest.mark.parametrize("sparsity", ["batch_topk", "l1"])
def test_of_equal_models_every_live_latent_is_shared(sparsity):
    rows = random_rows(n=400)[:, :1].expand(-1, 2, -1).contiguous()
    scale = measure_scale([rows])
    spec = DictionarySpec(n_sites=2, width=10, n_latents=24, k=4, sparsity=sparsity)
    trainer = Trainer(initial_dictionary(spec, scale, 3), TrainingSpec(n_steps=60, lr=3e-3), scale.variance)
    train(trainer, (rows[i * 40 % 400 : i * 40 % 400 + 40] for i in range(60)))
    dictionary = trainer.dictionary
    np.testing.assert_allclose(relative_norms(dictionary.norms_FM().detach().double().numpy()), 0.5, atol=1e-4)
    found = scaling_of(dictionary, rows)
    for name in KINDS:
        known = np.isfinite(found.nu(name))
        assert known.sum() > 10
        np.testing.assert_allclose(found.nu(name)[known], 1, atol=1e-4)


@cache
def trained_on_planted(penalty, n_steps):
    planted = plant(6, 32, density=0.03)
    scale = measure_scale(planted.batches(4000, 1000, 1))
    spec = DictionarySpec(n_sites=2, width=32, n_latents=60, sparsity="l1")
    training = TrainingSpec(n_steps=n_steps, lr=3e-3, penalty=penalty, n_dead=20_000)
    trainer = Trainer(initial_dictionary(spec, scale, 0), training, scale.variance)
    train(trainer, planted.batches(n_steps * 256, 256, 2))
    rows = torch.cat(list(planted.batches(6000, 1000, 3)))
    return planted, trainer.dictionary, rows


@pytest.mark.slow
def test_errors_tell_shrunk_latents_from_real_ones():
    """Features that are weaker in the base (0.3) lose their base row to the penalty and look ft_only; ν tells them."""
    planted, dictionary, rows = trained_on_planted(0.5, 800)
    block: CodedBlock = coded(dictionary, rows, "pair")
    found = recovery(planted, dictionary, block.codes.active_F())
    relative_F = relative_norms(dictionary.norms_FM().detach().double().numpy())
    scaling = scaling_of(dictionary, rows)
    nu = {}
    for kind in ("stronger_in_ft", "ft_only", "shared"):
        latents = [found.latent_G[g] for g, k in enumerate(planted.kinds) if k == kind and found.cosine_G[g] > 0.8]
        assert len(latents) == 6, kind
        nu[kind] = scaling.nu("error")[latents]
        if kind != "shared":
            assert (relative_F[latents] < FT_ONLY_BELOW).all(), kind
            verdicts = {
                verdict("ft_only", *(float(scaling.nu(k)[j]) for k in ("error", "reconstruction"))) for j in latents
            }
            assert verdicts == {"specific" if kind == "ft_only" else "shrunk"}
    # Complete separation: the area under the ROC curve is 1, with the threshold between.
    assert np.abs(nu["ft_only"]).max() < 0.05 < NU_ERROR < nu["stronger_in_ft"].min()
    np.testing.assert_allclose(nu["stronger_in_ft"], 0.3, atol=0.08)
    np.testing.assert_allclose(nu["shared"], 1, atol=0.25)
