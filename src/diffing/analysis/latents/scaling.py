"""Latent scaling: how strongly each model's activations hold a latent's direction where the latent is active.

β_j^m = ⟨d_j, Σ_i a_ij y_i^m⟩ / (‖d_j‖² Σ_i a_ij²), one direction d_j for both models, normalised units, no biases;
ν = β^base / β^ft. Small: the direction is in the finetuned model alone. Which y is asked decides what a large ν means:

- `error`: what the other latents leave of model m (its error, with a_j d_j^m put back). Large: complete shrinkage; the
  base holds the direction, and the decoder row only lost it.
- `reconstruction`: what the dictionary makes of model m, j included. Large: latent decoupling; in the base other
  latents stand for the same.
- `activation`: the model's own centred activation.

Source: Minder, Dumas et al. 2025, Robustly identifying concepts introduced during chat fine-tuning using crosscoders,
section 3.2.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.analysis.latents.coding import CodedBlock
from diffing.analysis.latents.sites import Input
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.products import pair_products

_LEAST = 1e-3
KINDS = ("error", "reconstruction", "activation")


@dataclass(frozen=True, eq=False)
class Scaling:
    """β and ν by the three kinds of y; NaN where unknown.

    Args:
        beta: By kind, (2, F) for the base and the finetuned model.
    """

    beta: dict[str, np.ndarray]

    def nu(self, kind: str) -> np.ndarray:
        """β^base / β^ft, (F,); NaN where the latent is dead or β^ft is not above 0.001."""
        base_F, finetuned_F = self.beta[kind]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(finetuned_F > _LEAST, base_F / finetuned_F, np.nan)


class ScalingSums:
    """The sums that β is made of, from one pass; never a tensor of tokens by latents by width.

    Args:
        dictionary: Of one site (a difference) or two (base, finetuned).
        kind: What it reads. Of a difference, an error or a reconstruction of one model alone there is none.
        mean_2D: Means of both models' raw activations; they are centred by these for `activation`.
    """

    def __init__(self, dictionary: Dictionary, kind: Input, mean_2D: Tensor) -> None:
        f = dictionary.spec.n_latents
        self._dictionary, self._kind, self._mean_2D = dictionary, kind, mean_2D
        self._direction_FD = dictionary.decoder_FMD.detach()[:, -1].contiguous()
        self._squares_F = torch.zeros(f, dtype=torch.float64)
        self._sums = {k: torch.zeros(2, f, dtype=torch.float64) for k in KINDS}

    def add(self, block: CodedBlock) -> None:
        """Take in a block."""
        codes = block.codes
        self._squares_F += codes.sum_by_latent(codes.value_P.double().square())
        scale_2 = self._dictionary.scale_M.expand(2)
        own_N2D = (block.pair_N2D - self._mean_2D) * scale_2[:, None]
        for m in range(2):
            self._project("activation", m, block, own_N2D[:, m])
            if self._kind == "pair":
                self._project("error", m, block, block.x_NMD[:, m] - block.made_NMD[:, m])
                made_ND = block.made_NMD[:, m] - self._dictionary.decoder_bias_MD[m]
                self._project("reconstruction", m, block, made_ND)

    def _project(self, kind: str, model: int, block: CodedBlock, y_ND: Tensor) -> None:
        codes = block.codes
        product_P = pair_products(y_ND.contiguous(), codes.row_P, self._direction_FD, codes.latent_P)
        self._sums[kind][model] += codes.sum_by_latent(product_P.double() * codes.value_P.double())

    def result(self) -> Scaling:
        """β from the sums so far."""
        rows_FMD = self._dictionary.decoder_FMD.detach().double().cpu()
        direction_FD = rows_FMD[:, -1]
        norm_F = direction_FD.square().sum(1) * self._squares_F
        beta = {}
        for kind in KINDS:
            if kind != "activation" and self._kind == "difference":
                beta[kind] = np.full((2, len(norm_F)), np.nan)
                continue
            sums_2F = self._sums[kind].clone()
            if kind == "error":
                sums_2F += torch.einsum("fd,fmd->mf", direction_FD, rows_FMD) * self._squares_F
            beta[kind] = torch.where(norm_F > 0, sums_2F / norm_F, torch.nan).numpy()
        return Scaling(beta)
