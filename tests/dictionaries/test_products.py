"""The sparse path against plain dense PyTorch: values and every gradient, whatever pairs there are."""

import pytest
import torch

from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.products import order_by_latent, pair_products, sums_by_bag, weighted_row_sums
from diffing.dictionaries.spec import DictionarySpec

WEIGHTS = ("encoder_FMD", "encoder_bias_F", "decoder_FMD", "decoder_bias_MD")


def made(n_sites=2, width=12, n_latents=40, seed=0, dtype=torch.float32, **options):
    """A dictionary with random weights, all different."""
    rng = torch.Generator().manual_seed(seed)
    options = {"k": 4, **options}
    dictionary = Dictionary(DictionarySpec(n_sites=n_sites, width=width, n_latents=n_latents, **options))
    with torch.no_grad():
        for name, weight in dictionary.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=rng) * (0.3 if "bias" in name else 1 / width**0.5))
        dictionary.constrain_()
    return dictionary.to(dtype)


def rows(n, dictionary, seed=1):
    spec = dictionary.spec
    return torch.randn(n, spec.n_sites, spec.width, generator=torch.Generator().manual_seed(seed))


def doubled(dictionary):
    """Its weights in float64, leaves of their own."""
    return {n: getattr(dictionary, n).detach().double().requires_grad_() for n in WEIGHTS}


def dense_path(weights, x_NMD, keep_NF):
    """Reconstruction by what any autograd knows, in float64, with the pairs of `keep_NF`."""
    centred = x_NMD.double() - weights["decoder_bias_MD"]
    pre = torch.einsum("nmd,fmd->nf", centred, weights["encoder_FMD"]) + weights["encoder_bias_F"]
    acts = torch.relu(pre) * keep_NF
    made = torch.einsum("nf,fmd->nmd", acts, weights["decoder_FMD"]) + weights["decoder_bias_MD"]
    return acts, made


def dense_choice(weights, x_NMD, k, per_row):
    """Which pairs a full sort of all scores keeps."""
    with torch.no_grad():
        acts, _ = dense_path(weights, x_NMD, torch.ones(()))
        scores = acts * weights["decoder_FMD"].norm(dim=2).sum(1)
        if per_row:
            least = scores.sort(dim=1, descending=True).values[:, k - 1 : k]
        else:
            least = scores.flatten().sort(descending=True).values[k * len(scores) - 1]
        return (scores >= least) & (scores > 0)


def target_loss(made_NMD):
    """A loss whose gradient differs at every number."""
    weight = torch.linspace(0.5, 1.5, made_NMD.numel(), dtype=made_NMD.dtype).view_as(made_NMD)
    return (weight * (made_NMD - 0.3).square()).sum() / len(made_NMD)


def close(ours, theirs):
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5 * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sparsity", ["batch_topk", "topk"])
@pytest.mark.parametrize(("n_sites", "unit"), [(1, True), (1, False), (2, False), (3, False)])
def test_values_and_gradients_are_those_of_the_dense_path(n_sites, unit, sparsity, dtype):
    dictionary = made(n_sites, sparsity=sparsity, unit_decoder=unit)
    x = rows(33, dictionary)
    codes, score_P, _ = dictionary.select(x, 4, dtype)
    loss = target_loss(dictionary.decode(codes))
    loss.backward()
    theirs = doubled(dictionary)
    keep_NF = dense_choice(theirs, x, 4, sparsity == "topk")
    acts_NF, made_NMD = dense_path(theirs, x, keep_NF)
    target_loss(made_NMD).backward()
    assert torch.equal(codes.dense() > 0, keep_NF)
    close(codes.dense(), acts_NF.detach())
    close(score_P, (acts_NF * theirs["decoder_FMD"].norm(dim=2).sum(1)).detach()[codes.row_P, codes.latent_P])
    close(loss.detach(), target_loss(made_NMD).detach())
    for name in WEIGHTS:
        close(getattr(dictionary, name).grad, theirs[name].grad)


@pytest.mark.parametrize("sparsity", ["batch_topk", "topk"])
def test_with_nothing_selected_only_the_bias_rebuilds(sparsity):
    dictionary = made(sparsity=sparsity)
    with torch.no_grad():
        dictionary.encoder_bias_F.fill_(-1e3)
    codes, score_P, _ = dictionary.select(rows(5, dictionary), 4)
    made_NMD = dictionary.decode(codes)
    assert len(codes) == len(score_P) == 0
    assert torch.equal(made_NMD, dictionary.decoder_bias_MD.expand(5, -1, -1))
    made_NMD.square().sum().backward()
    close(dictionary.decoder_bias_MD.grad, 10 * dictionary.decoder_bias_MD.detach().double())
    for name in ("encoder_FMD", "encoder_bias_F", "decoder_FMD"):
        assert not getattr(dictionary, name).grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_row_is_a_batch(dtype):
    dictionary = made(n_latents=7, k=2)
    x = rows(1, dictionary)
    codes, _, _ = dictionary.select(x, 2, dtype)
    target_loss(dictionary.decode(codes)).backward()
    theirs = doubled(dictionary)
    target_loss(dense_path(theirs, x, dense_choice(theirs, x, 2, True))[1]).backward()
    for name in WEIGHTS:
        close(getattr(dictionary, name).grad, theirs[name].grad)


def test_gradients_are_right_beyond_65536_latents():
    dictionary = made(1, 2, 70_001, k=3)
    x = rows(40, dictionary)
    codes, _, _ = dictionary.select(x, 300)
    assert codes.latent_P.max() > 2**16 > codes.latent_P.min()
    target_loss(dictionary.decode(codes)).backward()
    theirs = doubled(dictionary)
    keep_NF = codes.dense().detach() > 0
    target_loss(dense_path(theirs, x, keep_NF)[1]).backward()
    for name in WEIGHTS:
        close(getattr(dictionary, name).grad, theirs[name].grad)


@pytest.mark.parametrize("latents", [[], [5], [69_999, 3, 3 + 2**16, 3, 2**16, 0, 65_535, 3 + 2**16]])
def test_pairs_of_a_latent_keep_their_order(latents):
    order = order_by_latent(torch.tensor(latents, dtype=torch.int64), 70_000).tolist()
    assert order == sorted(range(len(latents)), key=lambda i: latents[i])


def test_rows_are_summed_by_bag_and_empty_bags_are_zero():
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    index, bag, weight = torch.tensor([2, 0, 2]), torch.tensor([1, 1, 3]), torch.tensor([10.0, 1.0, -1.0])
    summed = weighted_row_sums(table, index, bag, weight, 5)
    assert summed.tolist() == [[0, 0], [51, 62], [0, 0], [-5, -6], [0, 0]]
    assert sums_by_bag(weight, bag, 5).tolist() == [0, 11, 0, -1, 0]


def test_no_pairs_sum_to_zero():
    none, nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    assert not weighted_row_sums(torch.ones(3, 2), none, none, nothing, 4).any()
    assert sums_by_bag(nothing, none, 4).tolist() == [0, 0, 0, 0]
    assert pair_products(torch.ones(3, 2), none, torch.ones(4, 2), none).shape == (0,)


def test_pair_products_are_dot_products():
    rng = torch.Generator().manual_seed(0)
    left, right = torch.randn(6, 9, generator=rng), torch.randn(11, 9, generator=rng)
    row, latent = torch.tensor([0, 0, 3, 3, 3, 5]), torch.tensor([10, 2, 0, 0, 7, 4])
    by_hand = [float(left[i].double() @ right[j].double()) for i, j in zip(row, latent, strict=True)]
    close(pair_products(left, row, right, latent), torch.tensor(by_hand, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_backward_gives_the_same_to_the_bit(dtype):
    grads = []
    for _ in range(2):
        dictionary = made(n_latents=200, k=8)
        codes, _, _ = dictionary.select(rows(64, dictionary), 8, dtype)
        target_loss(dictionary.decode(codes)).backward()
        grads.append([getattr(dictionary, name).grad for name in WEIGHTS])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
