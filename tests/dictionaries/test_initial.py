"""The scale of the data against NumPy in float64, and the weights before the first step."""

import numpy as np
import pytest
import torch

from diffing.core.errors import UserError
from diffing.dictionaries.initial import initial_dictionary, measure_scale, refuse_constant
from diffing.dictionaries.spec import DictionarySpec


def data(n=400, n_sites=2, width=6, offset=2.0, seed=0):
    rng = torch.Generator().manual_seed(seed)
    size = torch.linspace(0.5, 20, n_sites)[:, None]
    return (torch.randn(n, n_sites, width, generator=rng) + offset * torch.linspace(-1, 1, width)) * size


def spec(**options):
    return DictionarySpec(**{"n_sites": 2, "width": 6, "n_latents": 30, "k": 3, **options})


@pytest.mark.parametrize("n_sites", [1, 2, 3])
@pytest.mark.parametrize("offset", [0.0, 2.0, 1e3])
@pytest.mark.parametrize("norm", ["per_model", "shared"])
def test_normalised_rows_have_the_mean_square_of_their_width(norm, offset, n_sites):
    raw = data(n_sites=n_sites, offset=offset)
    scale = measure_scale(raw.split(130), norm)
    x = raw.double().numpy() * scale.scale_M.double().numpy()[:, None]
    mean_square = (x**2).sum(2).mean(0)
    if norm == "per_model":
        assert mean_square == pytest.approx([6] * n_sites, rel=1e-5)
    else:
        assert mean_square.mean() == pytest.approx(6, rel=1e-5)
        assert torch.equal(scale.scale_M, scale.scale_M[0].expand(n_sites))
    assert scale.mean_MD.numpy() == pytest.approx(x.mean(0), rel=1e-4, abs=1e-5)
    assert scale.variance_M.numpy() == pytest.approx(x.var(0).sum(1), rel=1e-4)
    assert scale.variance == pytest.approx(x.var(0).sum(), rel=1e-4)


def test_a_shared_norm_keeps_the_relative_size_of_the_sites():
    raw = data()
    scale = measure_scale([raw], "shared").scale_M.numpy()
    sizes = np.sqrt((raw.double().numpy() ** 2).sum(2).mean(0))
    assert (sizes * scale)[1] / (sizes * scale)[0] == pytest.approx(sizes[1] / sizes[0], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_wider_than_the_data(dtype):
    raw = (data(5000, offset=20.0) / 10).to(dtype)
    scale = measure_scale(raw.split(700))
    exact = raw.double().numpy()
    assert scale.scale_M.numpy() == pytest.approx(np.sqrt(6 / (exact**2).sum(2).mean(0)), rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_left_out(value):
    raw = data()
    bad = raw.clone()
    bad[[0, 17, 399], 1, 2] = value
    keep = torch.ones(400, dtype=torch.bool)
    keep[[0, 17, 399]] = False
    found, clean = measure_scale(bad.split(1)), measure_scale([raw[keep]])
    for name in ("scale_M", "mean_MD", "variance_M"):
        torch.testing.assert_close(getattr(found, name), getattr(clean, name))


@pytest.mark.parametrize("batches", [[], [torch.full((4, 2, 6), float("nan"))], [torch.zeros(0, 2, 6)]])
def test_no_finite_row_is_told(batches):
    with pytest.raises(
        UserError, match=r"^No activation is finite: nothing can be learned; check the weights, or .+\.$"
    ):
        measure_scale(batches)


@pytest.mark.parametrize("value", [0.0, 3.7, 1e-6, 1e6])
@pytest.mark.parametrize("site", [0, 1])
def test_constant_activations_of_a_site_are_refused_by_name(site, value):
    raw = data()
    raw[:, site] = value
    scale = measure_scale(raw.split(100))
    named = ("base", "finetuned")[site]
    with pytest.raises(UserError, match=rf"^The activations \({named}\) are the same at every token: there is nothing"):
        refuse_constant(scale, ("base", "finetuned"))
    assert scale.is_zero == (value == 0)
    assert torch.isfinite(scale.scale_M).all()


def test_data_that_vary_are_not_refused():
    refuse_constant(measure_scale([data(offset=1e3)]), ("base", "finetuned"))
    with pytest.raises(UserError, match=r"\(base, finetuned\)"):
        refuse_constant(measure_scale([torch.ones(9, 2, 6)]), ("base", "finetuned"))


@pytest.mark.parametrize("n_sites", [1, 2, 3])
@pytest.mark.parametrize("row_norm", [1.0, 0.1])
def test_rows_begin_equal_at_every_site_with_one_length_in_all(n_sites, row_norm):
    scale = measure_scale([data(n_sites=n_sites)])
    dictionary = initial_dictionary(spec(n_sites=n_sites), scale, 0, row_norm)
    rows = dictionary.decoder_FMD
    torch.testing.assert_close(rows.flatten(1).norm(dim=1), torch.full((30,), row_norm))
    assert all(torch.equal(rows[:, 0], rows[:, m]) for m in range(n_sites))
    assert torch.equal(dictionary.encoder_FMD, rows)
    assert dictionary.encoder_FMD.data_ptr() != rows.data_ptr()
    assert torch.equal(dictionary.decoder_bias_MD, scale.mean_MD)
    assert torch.equal(dictionary.scale_M, scale.scale_M)
    assert not dictionary.encoder_bias_F.any()


def test_rows_of_a_unit_decoder_begin_at_length_one():
    dictionary = initial_dictionary(spec(n_sites=1, unit_decoder=True), measure_scale([data(n_sites=1)]), 0, 0.1)
    torch.testing.assert_close(dictionary.norms_FM(), torch.ones(30, 1))


def test_dedicated_rows_begin_at_their_site_alone_with_the_same_length_in_all():
    dictionary = initial_dictionary(spec(n_dedicated=4), measure_scale([data()]), 0)
    norms = dictionary.norms_FM()
    torch.testing.assert_close(norms[22:26], torch.tensor([[1.0, 0.0]]).expand(4, 2))
    torch.testing.assert_close(norms[26:], torch.tensor([[0.0, 1.0]]).expand(4, 2))
    torch.testing.assert_close(norms[:22], torch.full((22, 2), 0.5**0.5))
    torch.testing.assert_close(dictionary.decoder_FMD.flatten(1).norm(dim=1), torch.ones(30))


def test_the_seed_determines_the_rows():
    scale = measure_scale([data()])
    first, again, other = (initial_dictionary(spec(), scale, seed).decoder_FMD for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (torch.cosine_similarity(first.flatten(1), other.flatten(1)).abs() < 0.999).all()
