"""Products with sparse activations, forward and backward, at the cost of the active pairs alone.

Decoding Σ_j a_ij d_j and both weight gradients (Σ_i g_ij x_i by latent) are weighted sums of rows, which
`embedding_bag` computes at memory speed on CPU and GPU; gradients towards activations ⟨g_i, d_j⟩ are what its own
backward computes for per-sample weights. Equal to the dense products; no tensor of shape (N, F) is made.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def weighted_row_sums(table_RE: Tensor, index_P: Tensor, bag_P: Tensor, weight_P: Tensor, n_bags: int) -> Tensor:
    """Σ over the pairs of each bag of weight · table[index], (n_bags, E).

    Args:
        table_RE: Rows to sum.
        index_P: Row of each pair.
        bag_P: Bag of each pair, ascending.
        weight_P: Weight of each pair.
        n_bags: Bags; those without pairs give 0.
    """
    offsets_B = torch.searchsorted(bag_P, torch.arange(n_bags, device=bag_P.device))
    if not len(index_P):
        return table_RE.new_zeros(n_bags, table_RE.shape[1])
    return embedding_bag(index_P, table_RE, offsets_B, mode="sum", per_sample_weights=weight_P)


def sums_by_bag(weight_P: Tensor, bag_P: Tensor, n_bags: int) -> Tensor:
    """Σ of the weights of each bag, (n_bags,); in a fixed order on every device, which `index_add_` is not on GPUs."""
    one_R1 = weight_P.new_ones(1, 1)
    return weighted_row_sums(one_R1, torch.zeros_like(bag_P), bag_P, weight_P, n_bags).squeeze(1)


def pair_products(left_NE: Tensor, row_P: Tensor, right_FE: Tensor, latent_P: Tensor) -> Tensor:
    """⟨left[row], right[latent]⟩ of each pair, (P,); `row_P` ascending."""
    if not len(row_P):
        return left_NE.new_zeros(0)
    offsets_N = torch.searchsorted(row_P, torch.arange(len(left_NE), device=row_P.device))
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left_NE.contiguous(), right_FE, latent_P, offsets_N, row_P, 0
    )


def order_by_latent(latent_P: Tensor, n_latents: int) -> Tensor:
    """Positions of the pairs in the order of their latents, pairs of a latent in theirs.

    NumPy sorts 16-bit integers by counting, some hundred times faster than torch sorts 64-bit ones on the CPU.
    """
    if latent_P.device.type != "cpu":
        return torch.sort(latent_P, stable=True).indices
    wide_P = latent_P.numpy()
    order_P = np.argsort(wide_P.astype(np.uint16), kind="stable")
    if n_latents > 2**16:
        order_P = order_P[np.argsort((wide_P[order_P] >> 16).astype(np.uint16), kind="stable")]
    return torch.from_numpy(order_P)


class SparseEncode(torch.autograd.Function):
    """ReLU(W (x − b_d) + b_e) at given pairs; the gradient reaches W, b_e and b_d, not x."""

    @staticmethod
    def forward(
        ctx: Any, x_NE: Tensor, centre_E: Tensor, weight_FE: Tensor, bias_F: Tensor, pair: tuple[Tensor, Tensor],
        value_P: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Values of the pairs; `value_P` are W (x − b_d) + b_e there where they are known already."""
        row_P, latent_P = pair
        centred_NE = x_NE - centre_E
        if value_P is None:
            value_P = pair_products(centred_NE, row_P, weight_FE, latent_P) + bias_F[latent_P]
        ctx.save_for_backward(centred_NE, weight_FE, row_P, latent_P, value_P)
        return value_P.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Σ_i g_ij (x_i − b_d) by latent; Σ_i g_ij; and −Σ_j (Σ_i g_ij) W_j."""
        centred_NE, weight_FE, row_P, latent_P, value_P = ctx.saved_tensors
        grad_P = grads[0] * (value_P > 0)
        n_latents = len(weight_FE)
        order_P = order_by_latent(latent_P, n_latents)
        latents_P = latent_P[order_P]
        grad_FE = weighted_row_sums(centred_NE, row_P[order_P], latents_P, grad_P[order_P], n_latents)
        grad_F = sums_by_bag(grad_P[order_P], latents_P, n_latents)
        return None, -(grad_F @ weight_FE), grad_FE, grad_F, None, None


class SparseDecode(torch.autograd.Function):
    """Σ_j a_ij d_j over the pairs of each token, (N, E)."""

    @staticmethod
    def forward(ctx: Any, value_P: Tensor, decoder_FE: Tensor, row_P: Tensor, latent_P: Tensor, n_rows: int) -> Tensor:
        """The weighted sums of decoder rows."""
        ctx.save_for_backward(value_P, decoder_FE, row_P, latent_P)
        return weighted_row_sums(decoder_FE, latent_P, row_P, value_P, n_rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """⟨g_i, d_j⟩ for the activations, Σ_i a_ij g_i by latent for the decoder."""
        value_P, decoder_FE, row_P, latent_P = ctx.saved_tensors
        grad_NE = grads[0].contiguous()
        grad_P = pair_products(grad_NE, row_P, decoder_FE, latent_P)
        grad_FE = None
        if ctx.needs_input_grad[1]:
            order_P = order_by_latent(latent_P, len(decoder_FE))
            grad_FE = weighted_row_sums(grad_NE, row_P[order_P], latent_P[order_P], value_P[order_P], len(decoder_FE))
        return grad_P, grad_FE, None, None, None
