"""Sparse activations of a batch: which latents are active at which token, and how strongly."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Codes:
    """The active latents of N tokens, sorted by token; P pairs of a token and a latent.

    Args:
        row_P: Token of each pair, ascending.
        latent_P: Latent of each pair.
        value_P: Its activation, at least 0.
        n_rows: Tokens, N.
        n_latents: Latents, F.
    """

    row_P: Tensor
    latent_P: Tensor
    value_P: Tensor
    n_rows: int
    n_latents: int

    def __len__(self) -> int:
        return len(self.row_P)

    @classmethod
    def of_dense(cls, acts_NF: Tensor) -> "Codes":
        """What is not 0 in a dense tensor."""
        row_P, latent_P = acts_NF.nonzero(as_tuple=True)
        return cls(row_P, latent_P, acts_NF[row_P, latent_P], *acts_NF.shape)

    def dense(self) -> Tensor:
        """All activations, (N, F)."""
        out_NF = self.value_P.new_zeros(self.n_rows, self.n_latents)
        return out_NF.index_put((self.row_P, self.latent_P), self.value_P)

    def at(self, keep_N: Tensor) -> "Codes":
        """Of some of the tokens, marked in (N,) bool."""
        kept_P = keep_N[self.row_P]
        place_N = keep_N.cumsum(0) - 1
        return Codes(
            place_N[self.row_P[kept_P]], self.latent_P[kept_P], self.value_P[kept_P], int(keep_N.sum()), self.n_latents
        )

    def sum_by_latent(self, weight_P: Tensor) -> Tensor:
        """Σ of a quantity of the pairs by latent, (F,), float64."""
        found = np.bincount(
            self.latent_P.cpu().numpy(), weights=weight_P.detach().double().cpu().numpy(), minlength=self.n_latents
        )
        return torch.from_numpy(found)

    def active_F(self) -> Tensor:
        """Which latents are active at any token, (F,) bool."""
        seen_F = torch.zeros(self.n_latents, dtype=torch.bool, device=self.latent_P.device)
        seen_F[self.latent_P[self.value_P > 0]] = True
        return seen_F
