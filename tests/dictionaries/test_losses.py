"""Each term of the loss moves what it should and nothing else; gradients against differences and dense autograd."""

import pytest
import torch

from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.losses import (
    Jump,
    Step,
    count_penalty,
    dead_reconstruction,
    length_penalty,
    reconstruction,
)
from diffing.dictionaries.spec import DictionarySpec

VARIANCE = 7.0


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(**options):
    dictionary = Dictionary(DictionarySpec(**{"n_sites": 2, "width": 5, "n_latents": 16, "k": 3, **options}))
    with torch.no_grad():
        for number, weight in enumerate(dictionary.parameters()):
            weight.copy_(normal(*weight.shape, seed=number) * 0.5)
    return dictionary


def grads(dictionary, loss):
    """Largest gradient of every parameter after `loss`; 0 where there is none."""
    dictionary.zero_grad()
    loss.backward()
    return {n: 0.0 if p.grad is None else float(p.grad.abs().max()) for n, p in dictionary.named_parameters()}


def slope(dictionary, name, direction, loss, step=1e-3):
    """Difference quotient of `loss()` along a direction in one parameter."""
    weight = getattr(dictionary, name)
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * step)
            found.append(float(loss()))
            weight.sub_(direction, alpha=sign * step)
    return (found[0] - found[1]) / (2 * step)


def agree(dictionary, loss, names, step=1e-3, rel=1e-5):
    """Difference quotients in float64 equal the gradients."""
    dictionary.double().zero_grad()
    loss().backward()
    for number, name in enumerate(names):
        direction = normal(*getattr(dictionary, name).shape, seed=50 + number).double()
        wanted = float((getattr(dictionary, name).grad * direction).sum())
        assert slope(dictionary, name, direction, loss, step) == pytest.approx(wanted, rel=rel, abs=1e-9)


def test_reconstruction_is_a_share_of_the_variance():
    x = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [3.0, 0.0]]])
    assert reconstruction(torch.zeros_like(x), x, VARIANCE).item() == pytest.approx((1 + 4 + 9) / (2 * VARIANCE))
    rows = normal(500, 2, 5).double()
    centred = rows - rows.mean(0)
    variance = float(centred.square().sum() / 500)
    assert reconstruction(rows.mean(0).expand_as(rows), rows, variance).item() == pytest.approx(1)


def test_reconstruction_moves_everything():
    dictionary = made()
    x = normal(20, 2, 5, seed=9)
    codes, _, _ = dictionary.select(x, 3)
    moved = grads(dictionary, reconstruction(dictionary.decode(codes), x, VARIANCE))
    assert all(moved.values())


@pytest.mark.parametrize("n_sites", [1, 2])
def test_gradients_of_the_sparse_reconstruction_are_its_slopes(n_sites):
    """With the pairs held fixed: selection itself is not differentiable."""
    dictionary = made(n_sites=n_sites).double()
    x = normal(20, n_sites, 5, seed=9).double()
    kept = dictionary.select(x, 3, torch.float64)[0]
    pair = (kept.row_P, kept.latent_P)

    def loss():
        pre = dictionary.pre_activations(x, torch.float64)
        acts = torch.zeros_like(pre).index_put(pair, torch.relu(pre[pair]))
        made_NMD = torch.einsum("nf,fmd->nmd", acts, dictionary.decoder_FMD) + dictionary.decoder_bias_MD
        return reconstruction(made_NMD, x, VARIANCE)

    names = [n for n, _ in dictionary.named_parameters()]
    found = grads(dictionary, reconstruction(dictionary.decode(kept), x, VARIANCE))
    ours = {n: p.grad.clone() for n, p in dictionary.named_parameters()}
    assert all(found.values())
    for number, name in enumerate(names):
        direction = normal(*ours[name].shape, seed=50 + number).double()
        assert slope(dictionary, name, direction, loss, 1e-5) == pytest.approx(
            float((ours[name] * direction).sum()), rel=1e-5
        )


def aux_setting(dead=(1, 4, 5, 11), **options):
    dictionary = made(**options)
    n_sites = dictionary.spec.n_sites
    x = normal(20, n_sites, 5, seed=9)
    codes, _, scores_NF = dictionary.select(x, 3)
    dead_F = torch.zeros(16, dtype=torch.bool)
    dead_F[list(dead)] = True
    return dictionary, x, x - dictionary.decode(codes), scores_NF, dead_F


def dense_aux(dictionary, x, left, dead_F, k_aux):
    """AuxK by a loop over tokens, in float64."""
    w, d = dictionary.encoder_FMD.double(), dictionary.decoder_FMD.double()
    left = left.detach().double()
    centred = x.double() - dictionary.decoder_bias_MD.detach().double()
    lengths = d.detach().norm(dim=2).sum(1)
    made_up = []
    for row in centred:
        pre = (w * row).sum((1, 2))
        scores = torch.where(dead_F, pre.detach() * lengths, -1.0)
        best = [j for j in scores.argsort(descending=True)[:k_aux].tolist() if scores[j] > 0]
        made_up.append(sum((pre[j] * d[j] for j in best), torch.zeros_like(row)))
    error = (torch.stack(made_up) - left).square().sum()
    return error / (left - left.mean(0)).square().sum()


@pytest.mark.parametrize("n_sites", [1, 2])
@pytest.mark.parametrize("k_aux", [1, 2, 4, 100])
def test_aux_is_that_of_a_loop_in_value_and_gradient(k_aux, n_sites):
    dictionary, x, left, scores_NF, dead_F = aux_setting(n_sites=n_sites)
    ours = dead_reconstruction(dictionary, x, left, scores_NF, dead_F, k_aux)
    grads(dictionary, ours)
    mine = {n: p.grad.clone() for n, p in dictionary.named_parameters() if p.grad is not None}
    theirs = dense_aux(dictionary, x, left, dead_F, k_aux)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    grads(dictionary, theirs)
    for name in ("encoder_FMD", "decoder_FMD"):
        torch.testing.assert_close(mine[name], getattr(dictionary, name).grad, rtol=1e-4, atol=1e-5)


def test_aux_moves_rows_of_dead_latents_alone():
    dictionary, x, left, scores_NF, dead_F = aux_setting()
    moved = grads(dictionary, dead_reconstruction(dictionary, x, left, scores_NF, dead_F, 3))
    assert moved["encoder_bias_F"] == moved["decoder_bias_MD"] == 0
    for weights in (dictionary.encoder_FMD, dictionary.decoder_FMD):
        per_latent = weights.grad.abs().amax((1, 2))
        assert (per_latent[dead_F] > 0).all()
        assert not per_latent[~dead_F].any()


def test_nothing_flows_through_the_residual():
    dictionary, x, left, scores_NF, dead_F = aux_setting()
    left = left.detach().requires_grad_()
    dead_reconstruction(dictionary, x, left, scores_NF, dead_F, 3).backward()
    assert left.grad is None


@pytest.mark.parametrize("shift", [-1e3, -10.0, 5.0])
def test_aux_does_not_depend_on_the_bias_of_the_dead(shift):
    found = []
    for bias in (0.0, shift):
        dictionary, x, left, _, dead_F = aux_setting()
        with torch.no_grad():
            dictionary.encoder_bias_F[dead_F] = bias
        _, _, scores_NF = dictionary.select(x, 3)
        found.append(dead_reconstruction(dictionary, x, left, scores_NF, dead_F, 2).item())
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_aux_without_dead_latents_is_zero():
    dictionary, x, left, scores_NF, _ = aux_setting()
    none = torch.zeros(16, dtype=torch.bool)
    assert dead_reconstruction(dictionary, x, left, scores_NF, none, 3).item() == 0


def test_aux_of_dead_latents_that_are_nowhere_positive_is_the_whole_residual():
    """Σ‖r‖² over Σ‖r − r̄‖²: at least 1, and no gradient."""
    dictionary, x, left, _, dead_F = aux_setting()
    bias_F = dictionary.encoder_bias_F.detach() * dictionary.score_scale_F()
    loss = dead_reconstruction(dictionary, x, left, (bias_F - 1).expand(20, -1), dead_F, 3)
    expected = left.square().sum() / (left - left.mean(0)).square().sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert not any(grads(dictionary, loss).values())


def test_the_length_penalty_is_a_sum_of_activations_times_lengths():
    dictionary = made(n_shared=3, shared_ratio=0.25, sparsity="l1")
    acts = normal(20, 16).relu().double()
    lengths = dictionary.decoder_FMD.detach().double().norm(dim=2).sum(1)
    lengths[:3] *= 0.25
    by_loop = sum(float(acts[i, j] * lengths[j]) for i in range(20) for j in range(16)) / (20 * VARIANCE**0.5)
    assert length_penalty(dictionary, acts.float(), VARIANCE).item() == pytest.approx(by_loop, rel=1e-5)


def test_the_length_penalty_moves_what_makes_activations_and_lengths():
    dictionary = made(sparsity="l1")
    x = normal(20, 2, 5, seed=9)

    def loss():
        dtype = dictionary.decoder_FMD.dtype
        acts = dictionary.pre_activations(x.to(dtype), dtype).clamp_min(0)
        return length_penalty(dictionary, acts, VARIANCE)

    assert all(grads(dictionary, loss()).values())
    agree(dictionary, loss, ["encoder_FMD", "encoder_bias_F", "decoder_FMD", "decoder_bias_MD"], 1e-7)


def test_the_length_penalty_is_differentiable_where_a_row_is_zero():
    dictionary = made(sparsity="l1", n_dedicated=3)
    with torch.no_grad():
        dictionary.decoder_FMD.mul_(dictionary.lives_FM[:, :, None])
    length_penalty(dictionary, torch.ones(4, 16), VARIANCE).backward()
    assert torch.isfinite(dictionary.decoder_FMD.grad).all()
    assert (dictionary.decoder_FMD.grad[:10].norm(dim=2) > 0).all()


def test_the_count_penalty_counts_latents_above_their_thresholds():
    dictionary = made(sparsity="jumprelu", n_shared=2, shared_ratio=0.5)
    pre = normal(20, 16).relu()
    over = pre > dictionary.log_threshold_F.exp()
    expected = (over[:, 2:].sum() + 0.5 * over[:, :2].sum()).item() / (20 * 5)
    assert count_penalty(dictionary, pre).item() == pytest.approx(expected, rel=1e-6)


def test_the_count_penalty_moves_thresholds_alone():
    dictionary = made(sparsity="jumprelu")
    x = normal(200, 2, 5, seed=9)
    moved = grads(dictionary, count_penalty(dictionary, dictionary.pre_activations(x).clamp_min(0)))
    assert moved.pop("log_threshold_F") > 0
    assert not any(moved.values())
    assert (dictionary.log_threshold_F.grad <= 0).all()


def wide(n=200_000):
    """Pre-activations dense enough around the threshold that differences over the kernel's width are smooth."""
    return torch.linspace(0, 2, n, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("bandwidth", [0.02, 0.1, 0.4])
def test_the_kernel_gradient_is_the_slope_of_the_mean_count(bandwidth):
    """The mean of H(z − θ) over uniform z falls at the density of z: the kernel estimates that."""
    pre, theta = wide(), torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    Step.apply(pre, theta, bandwidth).mean().backward()
    step = 0.01
    higher, lower = (float((pre > 0.7 + s * step).double().mean()) for s in (1, -1))
    assert theta.grad.item() == pytest.approx((higher - lower) / (2 * step), rel=1e-3)


@pytest.mark.parametrize("bandwidth", [0.02, 0.1])
def test_the_kernel_gradient_of_a_jump_is_the_slope_of_its_mean(bandwidth):
    pre, theta = wide(), torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    Jump.apply(pre, theta, bandwidth).mean().backward()
    step = 0.01
    higher, lower = (float((pre * (pre > 0.7 + s * step)).mean()) for s in (1, -1))
    assert theta.grad.item() == pytest.approx((higher - lower) / (2 * step), rel=1e-3)


def test_a_jump_passes_the_gradient_of_what_it_keeps():
    pre = torch.tensor([[0.1, 0.6, 3.0]], requires_grad=True)
    theta = torch.tensor([0.5, 0.5, 0.5], requires_grad=True)
    out = Jump.apply(pre, theta, 0.3)
    assert out.tolist() == [[0, pytest.approx(0.6), 3]]
    (out * torch.tensor([1.0, 2.0, 5.0])).sum().backward()
    assert pre.grad.tolist() == [[0, 2, 5]]
    assert theta.grad.tolist() == [0, pytest.approx(-2 * 0.5 / 0.3), 0]
