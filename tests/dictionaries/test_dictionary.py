"""The module: units, constraints, the same codes in whatever batch, and degenerate shapes."""

import numpy as np
import pytest
import torch

from diffing.core.config import parse
from diffing.core.errors import UserError
from diffing.dictionaries import dictionary as module
from diffing.dictionaries.codes import Codes
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.initial import initial_dictionary, measure_scale
from diffing.dictionaries.planted import plant
from diffing.dictionaries.schedules import TrainingSpec
from diffing.dictionaries.spec import DictionarySpec
from diffing.dictionaries.trainer import Trainer, train

SPARSITIES = ("batch_topk", "topk", "jumprelu", "l1")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(seed=0, **options):
    """A dictionary of random weights, θ and thresholds."""
    spec = DictionarySpec(**{"n_sites": 2, "width": 6, "n_latents": 20, "k": 3, **options})
    dictionary = Dictionary(spec, torch.linspace(0.5, 2, spec.n_sites))
    with torch.no_grad():
        for number, weight in enumerate(dictionary.parameters()):
            weight.copy_(normal(*weight.shape, seed=seed + number) * 0.5)
        if spec.sparsity == "batch_topk":
            dictionary.threshold.fill_(0.4)
    return dictionary


def trained(data, n_steps=30, seed=0, batch_rows=64, lr=3e-3, training=None, **options):
    """A short training on raw rows (N, M, D)."""
    scale = measure_scale([data])
    spec = DictionarySpec(n_sites=data.shape[1], width=data.shape[2], **{"n_latents": 24, "k": 3, **options})
    dictionary = initial_dictionary(spec, scale, seed)
    trainer = Trainer(dictionary, TrainingSpec(n_steps=n_steps, lr=lr, **(training or {})), scale.variance)
    draw = np.random.default_rng(seed)
    train(trainer, (data[torch.from_numpy(draw.integers(0, len(data), batch_rows))] for _ in range(n_steps)))
    return dictionary


def test_raw_and_normalised_units_are_inverse():
    dictionary = made()
    raw = normal(7, 2, 6)
    assert torch.equal(dictionary.normalised(raw), raw * torch.tensor([0.5, 2.0])[None, :, None])
    torch.testing.assert_close(dictionary.raw(dictionary.normalised(raw)), raw)
    assert dictionary.normalised(raw.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(4, 6), (4, 1, 6), (4, 2, 5), (4, 3, 6)])
def test_activations_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match=r"do not fit a dictionary of 2 sites of width 6\."):
        made().normalised(torch.zeros(shape))


def by_hand(dictionary, x_NMD):
    """Codes as outside training, by loops in float64."""
    spec = dictionary.spec
    w, d, b_e, b_d = (
        getattr(dictionary, n).detach().double().numpy()
        for n in ("encoder_FMD", "decoder_FMD", "encoder_bias_F", "decoder_bias_MD")
    )
    acts = np.zeros((len(x_NMD), spec.n_latents))
    scores = np.zeros_like(acts)
    for i, x in enumerate(x_NMD.double().numpy()):
        for j in range(spec.n_latents):
            acts[i, j] = max(0.0, np.sum(w[j] * (x - b_d)) + b_e[j])
            length = sum(np.linalg.norm(d[j, m]) for m in range(spec.n_sites))
            scores[i, j] = acts[i, j] * length / (spec.shared_ratio if j < spec.n_shared else 1)
    if spec.sparsity == "topk":
        return acts * (scores >= np.sort(scores, axis=1)[:, -spec.k][:, None])
    if spec.sparsity == "batch_topk":
        return acts * (scores > float(dictionary.threshold))
    if spec.sparsity == "jumprelu":
        return acts * (acts > np.exp(dictionary.log_threshold_F.detach().double().numpy()))
    return acts


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize(("n_sites", "n_shared"), [(1, 0), (2, 0), (2, 5), (3, 2)])
def test_codes_are_those_of_a_loop(sparsity, n_sites, n_shared):
    dictionary = made(n_sites=n_sites, sparsity=sparsity, n_shared=n_shared)
    x = normal(30, n_sites, 6, seed=9)
    found = dictionary.encode(x)
    expected = torch.from_numpy(by_hand(dictionary, x))
    assert torch.equal(found.dense() > 0, expected > 0)
    torch.testing.assert_close(found.dense().double(), expected, rtol=1e-5, atol=1e-6)
    rebuilt = torch.einsum("nf,fmd->nmd", expected, dictionary.decoder_FMD.double()) + dictionary.decoder_bias_MD
    torch.testing.assert_close(dictionary.decode(found).double(), rebuilt, rtol=1e-5, atol=1e-5)
    without = dictionary.decode(found, bias=False) + dictionary.decoder_bias_MD
    torch.testing.assert_close(without, dictionary.decode(found))


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_a_token_has_the_same_codes_in_whatever_batch(sparsity, monkeypatch):
    dictionary, x = made(sparsity=sparsity), normal(50, 2, 6, seed=9)
    whole = dictionary.encode(x).dense()
    for size in (1, 7, 49):
        parts = torch.cat([dictionary.encode(part).dense() for part in x.split(size)])
        assert torch.equal(parts > 0, whole > 0)
        torch.testing.assert_close(parts, whole)
    mixed = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dictionary.encode(x[mixed]).dense(), whole[mixed])
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * 20 * 9)
    chunked = dictionary.encode(x)
    assert (chunked.row_P.diff() >= 0).all()
    torch.testing.assert_close(chunked.dense(), whole)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_no_rows_have_no_codes(sparsity):
    dictionary = made(sparsity=sparsity)
    codes = dictionary.encode(torch.zeros(0, 2, 6))
    assert (len(codes), codes.n_rows, codes.n_latents) == (0, 0, 20)
    assert dictionary.decode(codes).shape == (0, 2, 6)


def test_thresholds_of_latents_are_the_one_on_scores():
    dictionary = made(n_shared=4, shared_ratio=0.2)
    lengths = dictionary.decoder_FMD.double().norm(dim=2).sum(1)
    expected = 0.4 / torch.where(torch.arange(20) < 4, lengths / 0.2, lengths)
    torch.testing.assert_close(dictionary.latent_thresholds().double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("width", [7, 16])
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_rows_of_unit_length_stay_so(sparsity, width):
    dictionary = trained(normal(500, 1, width) + 1, sparsity=sparsity, unit_decoder=True)
    torch.testing.assert_close(dictionary.norms_FM(), torch.ones(24, 1), rtol=0, atol=1e-6)


def test_the_gradient_of_a_unit_row_is_at_right_angles_to_it():
    dictionary = made(n_sites=1, unit_decoder=True)
    dictionary.constrain_()
    dictionary.decoder_FMD.grad = normal(20, 1, 6)
    dictionary.constrain_grads_()
    along = (dictionary.decoder_FMD.grad * dictionary.decoder_FMD.detach()).sum(2)
    torch.testing.assert_close(along, torch.zeros(20, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", [1, 5, 7, 16])
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("n_sites", [2, 3])
def test_shared_latents_stay_tied_to_the_bit(n_sites, sparsity, width):
    data = normal(500, n_sites, width) * torch.linspace(1, 3, n_sites)[:, None] + 1
    dictionary = trained(data, n_steps=20, sparsity=sparsity, n_shared=7, n_latents=23)
    rows = dictionary.decoder_FMD[:7]
    assert all(torch.equal(rows[:, 0], rows[:, m]) for m in range(1, n_sites))
    others = dictionary.decoder_FMD[7:]
    assert not torch.equal(others[:, 0], others[:, 1])


def test_the_gradient_of_a_shared_row_is_the_sum_over_sites():
    dictionary = made(n_shared=3)
    dictionary.decoder_FMD.grad = normal(20, 2, 6)
    summed = dictionary.decoder_FMD.grad.sum(1)
    apart = dictionary.decoder_FMD.grad[3:].clone()
    dictionary.constrain_grads_()
    assert torch.equal(dictionary.decoder_FMD.grad[:3], summed[:3, None].expand(-1, 2, -1))
    assert torch.equal(dictionary.decoder_FMD.grad[3:], apart)


def test_a_shared_latent_is_chosen_at_a_fraction_of_the_score():
    """Two latents of equal rows; the designated one wins until its share of the score is too small."""
    spec = DictionarySpec(n_sites=2, width=1, n_latents=2, k=1, n_shared=1, shared_ratio=0.2, sparsity="topk")
    dictionary = Dictionary(spec)
    with torch.no_grad():
        dictionary.decoder_FMD.fill_(1.0)
        dictionary.encoder_FMD[:, 0] = torch.tensor([[0.21], [1.0]])
    x = torch.ones(1, 2, 1)
    assert dictionary.encode(x).latent_P.tolist() == [0]
    assert dictionary.select(x, 1)[0].latent_P.tolist() == [0]
    assert dictionary.encode(x).value_P.item() == pytest.approx(0.21)
    with torch.no_grad():
        dictionary.encoder_FMD[0, 0] = 0.19
    assert dictionary.encode(x).latent_P.tolist() == [1]
    assert dictionary.select(x, 1)[0].latent_P.tolist() == [1]


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("n_sites", [2, 3])
def test_dedicated_latents_stay_zero_at_other_sites(n_sites, sparsity):
    dictionary = trained(normal(500, n_sites, 6) + 1, sparsity=sparsity, n_dedicated=4, n_shared=2)
    first = 24 - 4 * n_sites
    for weights in (dictionary.decoder_FMD, dictionary.encoder_FMD):
        for site in range(n_sites):
            mine = torch.zeros(24, dtype=torch.bool)
            mine[first + 4 * site : first + 4 * (site + 1)] = True
            assert not weights[first:][~mine[first:], site].any()
            assert (weights[mine, site].norm(dim=1) > 0).all()
        assert (weights[:first].norm(dim=2) > 0).all()


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_identical_sites_give_identical_rows_to_the_bit(sparsity, width):
    """For widths that the vectors of the processor divide, as those of models do; others are equal but for rounding."""
    data = (normal(800, 1, width) + 0.5).expand(-1, 2, -1)
    dictionary = trained(data, sparsity=sparsity, training={"n_dead": 500})
    for weights in (dictionary.decoder_FMD, dictionary.encoder_FMD, dictionary.decoder_bias_MD[None]):
        assert torch.equal(weights[:, 0], weights[:, 1])
    base_F, finetuned_F = dictionary.norms_FM().detach().double().unbind(1)
    assert ((base_F - finetuned_F) / torch.maximum(base_F, finetuned_F) / 2 + 0.5 == 0.5).all()


@pytest.mark.parametrize("width", [3, 37, 40])
def test_identical_sites_of_any_width_give_rows_equal_but_for_rounding(width):
    dictionary = trained((normal(800, 1, width) + 0.5).expand(-1, 2, -1), training={"n_dead": 500})
    torch.testing.assert_close(dictionary.decoder_FMD[:, 0], dictionary.decoder_FMD[:, 1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize(
    ("n_latents", "k", "width", "batch_rows"), [(1, 1, 1, 1), (5, 5, 3, 1), (5, 5, 3, 16), (8, 2, 1, 16), (3, 1, 4, 1)]
)
@pytest.mark.parametrize("n_sites", [1, 2])
def test_degenerate_shapes_train_and_encode(n_sites, n_latents, k, width, batch_rows, sparsity):
    data = normal(60, n_sites, width) + 1
    dictionary = trained(
        data, 12, batch_rows=batch_rows, sparsity=sparsity, n_latents=n_latents, k=k, training={"n_dead": 4}
    )
    assert all(torch.isfinite(weight).all() for weight in dictionary.state_dict().values())
    codes = dictionary.encode(dictionary.normalised(data))
    assert dictionary.decode(codes).shape == data.shape
    assert codes.n_latents == n_latents


def test_with_k_of_all_latents_every_positive_one_is_kept():
    dictionary = made(k=20)
    x = normal(10, 2, 6, seed=9)
    codes, _, _ = dictionary.select(x, 20)
    assert torch.equal(codes.dense() > 0, dictionary.pre_activations(x) > 0)


def test_more_active_latents_at_the_start_than_there_are_means_all():
    for sparsity in ("topk", "batch_topk"):
        trained(normal(60, 1, 4), 12, sparsity=sparsity, n_latents=6, k=2, training={"k_start": 50, "k_anneal": 0.5})


@pytest.mark.parametrize("sparsity", ["batch_topk", "topk"])
def test_more_active_latents_than_there_are_are_refused(sparsity):
    values = {"n_sites": 1, "width": 4, "n_latents": 16, "k": 17, "sparsity": sparsity}
    with pytest.raises(UserError, match=r"k=17 is more than the 16 latents; lower k or take more latents\.$"):
        parse(DictionarySpec, values)
    assert parse(DictionarySpec, {**values, "sparsity": "l1"}).k == 17


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"n_shared": 10, "n_dedicated": 4}, r"10 shared and 2·4 dedicated latents are more than the 16"),
        ({"n_sites": 1, "n_shared": 1}, "need two sites or more"),
        ({"n_sites": 1, "n_dedicated": 1}, "need two sites or more"),
        ({"unit_decoder": True}, "unit_decoder needs one site"),
    ],
)
def test_variants_that_do_not_fit_are_refused(values, said):
    with pytest.raises(UserError, match=said):
        parse(DictionarySpec, {"n_sites": 2, "width": 4, "n_latents": 16, "k": 2, **values})


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 4, 8])
def test_the_threshold_keeps_as_many_as_training_did(k):
    """After a short training with the default decay: on new rows within 5 % of k."""
    planted = plant(n_per_kind=12, width=32)
    scale = measure_scale(planted.batches(4096, 512, 1))
    spec = DictionarySpec(n_sites=2, width=32, n_latents=128, k=k)
    trainer = Trainer(initial_dictionary(spec, scale, 0), TrainingSpec(n_steps=200), scale.variance)
    train(trainer, planted.batches(200 * 512, 512, 2))
    assert [row.l0 for row in trainer.history[-5:]] == [k] * 5
    fresh = trainer.dictionary.normalised(torch.cat(list(planted.batches(8192, 512, 3))))
    codes = trainer.dictionary.encode(fresh)
    assert len(codes) / 8192 == pytest.approx(k, rel=0.05)
    alone = [trainer.dictionary.encode(x).latent_P.tolist() for x in fresh[:20].split(1)]
    assert [codes.latent_P[codes.row_P == i].tolist() for i in range(20)] == alone


def sample_codes():
    return Codes.of_dense(torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 0.0], [3.0, 0.0, 4.0], [0.0, 5.0, 0.0]]))


def test_codes_of_a_dense_tensor_are_its_nonzero_numbers():
    codes = sample_codes()
    assert (codes.row_P.tolist(), codes.latent_P.tolist()) == ([0, 0, 2, 2, 3], [1, 2, 0, 2, 1])
    assert codes.dense().tolist() == [[0, 2, 1], [0, 0, 0], [3, 0, 4], [0, 5, 0]]


@pytest.mark.parametrize("keep", [[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
def test_codes_at_some_tokens_are_those_rows(keep):
    keep_N = torch.tensor(keep, dtype=torch.bool)
    found = sample_codes().at(keep_N)
    assert found.dense().tolist() == sample_codes().dense()[keep_N].tolist()
    assert (found.row_P.diff() >= 0).all()


def test_quantities_of_pairs_are_summed_by_latent_in_float64():
    codes = sample_codes()
    assert codes.sum_by_latent(codes.value_P).tolist() == [3, 7, 5]
    many = Codes(torch.arange(10**5), torch.ones(10**5, dtype=torch.int64), torch.full((10**5,), 0.1), 10**5, 3)
    assert many.sum_by_latent(many.value_P)[1].item() == pytest.approx(10**5 * float(np.float32(0.1)), rel=1e-12)
    assert many.sum_by_latent(many.value_P).dtype == torch.float64


def test_a_latent_is_active_where_its_value_is_positive():
    codes = Codes(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 3]), torch.tensor([1.0, 0.0, 2.0]), 2, 4)
    assert codes.active_F().tolist() == [True, False, False, True]
