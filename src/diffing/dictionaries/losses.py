"""Terms of the training loss, each a function of what a step has at hand; all are means over the batch."""

from typing import Any

import torch
from torch import Tensor

from diffing.dictionaries.codes import Codes
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.products import SparseEncode
from diffing.dictionaries.selection import row_topk


def reconstruction(made_NMD: Tensor, x_NMD: Tensor, variance: float) -> Tensor:
    """Σ_m ‖x̂^m − x̃^m‖² over Σ_m tr Cov(x̃^m): 1 − FVE."""
    return (made_NMD - x_NMD).square().sum() / (len(x_NMD) * variance)


def dead_reconstruction(
    dictionary: Dictionary, x_NMD: Tensor, left_NMD: Tensor, scores_NF: Tensor, dead_F: Tensor, k_aux: int
) -> Tensor:
    """AuxK: dead latents rebuild what the others left, over that residual's own variance.

    They are taken without their bias: it may be what keeps them silent. The residual carries no gradient.

    Args:
        dictionary: The dictionary.
        x_NMD: The batch.
        left_NMD: x̃ − x̂.
        scores_NF: Scores of all latents.
        dead_F: Which latents are dead.
        k_aux: Dead latents used per token.

    Source: Gao et al. 2024, Scaling and evaluating sparse autoencoders, section 2.4.
    """
    dead_A = dead_F.nonzero().squeeze(1)
    left_NMD = left_NMD.detach()
    if not len(dead_A):
        return left_NMD.new_zeros(())
    with torch.no_grad():
        bias_A = (dictionary.encoder_bias_F * dictionary.score_scale_F())[dead_A]
        flat, _ = row_topk(scores_NF[:, dead_A].float() - bias_A, min(k_aux, len(dead_A)))
        row_P, latent_P = flat // len(dead_A), dead_A[flat % len(dead_A)]
    weight_FE = dictionary.encoder_FMD.flatten(1)
    no_bias_F = torch.zeros_like(dictionary.encoder_bias_F)
    centre_E = dictionary.decoder_bias_MD.detach().flatten()
    value_P = SparseEncode.apply(x_NMD.flatten(1), centre_E, weight_FE, no_bias_F, (row_P, latent_P), None)
    codes = Codes(row_P, latent_P, value_P, len(x_NMD), dictionary.spec.n_latents)
    made_NMD = dictionary.decode(codes, bias=False)
    spread = (left_NMD - left_NMD.mean(0)).square().sum()
    return (made_NMD - left_NMD).square().sum() / spread.clamp_min(1e-12)


def length_penalty(dictionary: Dictionary, acts_NF: Tensor, variance: float) -> Tensor:
    """Σ_j a_j Σ_m ‖d_j^m‖ over √(Σ_m tr Cov(x̃^m)), shared latents at their reduced weight.

    Source: Lindsey et al. 2024, Sparse crosscoders for cross-layer features and model diffing.
    """
    weight_F = dictionary.norms_FM().sum(1) * _penalty_weights(dictionary)
    return (acts_NF @ weight_F).sum() / (len(acts_NF) * variance**0.5)


def count_penalty(dictionary: Dictionary, pre_NF: Tensor) -> Tensor:
    """How many latents are above their thresholds, differentiable in the thresholds alone, over the width D.

    Source: Rajamanoharan et al. 2024, Jumping ahead: improving reconstruction fidelity with JumpReLU SAEs, section 4.
    """
    counts_NF = Step.apply(pre_NF, dictionary.log_threshold_F.exp(), dictionary.spec.bandwidth)
    return (counts_NF @ _penalty_weights(dictionary)).sum() / (len(pre_NF) * dictionary.spec.width)


def _penalty_weights(dictionary: Dictionary) -> Tensor:
    weight_F = torch.ones_like(dictionary.encoder_bias_F)
    weight_F[: dictionary.spec.n_shared] = dictionary.spec.shared_ratio
    return weight_F


class Step(torch.autograd.Function):
    """H(z − θ); the gradient reaches θ through a rectangular kernel: −1/ε where |z − θ| < ε/2."""

    @staticmethod
    def forward(ctx: Any, pre_NF: Tensor, threshold_F: Tensor, bandwidth: float) -> Tensor:
        """1 above the threshold, else 0."""
        ctx.save_for_backward(pre_NF, threshold_F)
        ctx.bandwidth = bandwidth
        return (pre_NF > threshold_F).to(pre_NF.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Towards the thresholds."""
        pre_NF, threshold_F = ctx.saved_tensors
        near_NF = (pre_NF - threshold_F).abs() < ctx.bandwidth / 2
        return None, -(grads[0] * near_NF).sum(0) / ctx.bandwidth, None


class Jump(torch.autograd.Function):
    """z · H(z − θ), z ≥ 0; the gradient towards θ is −θ/ε where |z − θ| < ε/2, the one towards z that of the kept z."""

    @staticmethod
    def forward(ctx: Any, pre_NF: Tensor, threshold_F: Tensor, bandwidth: float) -> Tensor:
        """The pre-activation above the threshold, else 0."""
        ctx.save_for_backward(pre_NF, threshold_F)
        ctx.bandwidth = bandwidth
        return pre_NF * (pre_NF > threshold_F)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Towards pre-activations and thresholds."""
        pre_NF, threshold_F = ctx.saved_tensors
        near_NF = (pre_NF - threshold_F).abs() < ctx.bandwidth / 2
        grad_F = -(grads[0] * near_NF).sum(0) * threshold_F / ctx.bandwidth
        return grads[0] * (pre_NF > threshold_F), grad_F, None
