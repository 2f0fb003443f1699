"""Paired activations whose features are known: what a crosscoder ought to find, and how much of it it found.

Each row is a sparse sum of unit directions plus noise; a feature has a strength in each of the two models, and 0 where
it does not live.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffing.core.seeds import generator
from diffing.dictionaries.dictionary import Dictionary

Kind = Literal["shared", "base_only", "ft_only", "stronger_in_base", "stronger_in_ft"]
KINDS: tuple[Kind, ...] = ("shared", "base_only", "ft_only", "stronger_in_base", "stronger_in_ft")
_STRENGTHS: dict[Kind, tuple[float, float]] = {
    "shared": (1.0, 1.0), "base_only": (1.0, 0.0), "ft_only": (0.0, 1.0), "stronger_in_base": (1.0, 0.3),
    "stronger_in_ft": (0.3, 1.0),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Planted:
    """Known features.

    Args:
        direction_GD: Unit directions of the G features.
        strength_GM: Of each in the base and the finetuned model.
        kinds: Kind of each.
        partner_G: A feature that is active together with it half of the time; −1: none.
        density: Share of the rows at which a feature is active.
        noise: Standard deviation of the noise in each dimension.
    """

    direction_GD: Tensor
    strength_GM: Tensor
    kinds: tuple[Kind, ...]
    partner_G: np.ndarray
    density: float
    noise: float

    def batches(self, n_rows: int, batch_rows: int, seed: int) -> Iterator[Tensor]:
        """`n_rows` rows in batches (B, 2, D)."""
        for number, start in enumerate(range(0, n_rows, batch_rows)):
            rng = generator(seed, "planted rows", number)
            n = min(batch_rows, n_rows - start)
            yield self._rows(n, rng)

    def _rows(self, n: int, rng: np.random.Generator) -> Tensor:
        g, d = self.direction_GD.shape
        active_NG = rng.random((n, g)) < self.density
        has = self.partner_G >= 0
        with_partner_NG = active_NG[:, self.partner_G[has]] & (rng.random((n, int(has.sum()))) < 0.5)
        active_NG[:, has] |= with_partner_NG
        size_NG = torch.from_numpy(active_NG * rng.uniform(1, 2, (n, g))).float()
        noise_N2D = torch.from_numpy(rng.standard_normal((n, 2, d), dtype=np.float32)) * self.noise
        sides = [(size_NG * self.strength_GM[:, m]) @ self.direction_GD for m in range(2)]
        return torch.stack(sides, 1) + noise_N2D


def plant(n_per_kind: int = 24, width: int = 64, density: float = 0.02, noise: float = 0.02, seed: int = 0) -> Planted:
    """Random features, `n_per_kind` of each kind; a quarter of each is correlated with the one before it.

    Sizes are uniform in [1, 2] at active rows.
    """
    rng = generator(seed, "planted features")
    kinds: tuple[Kind, ...] = tuple(kind for kind in KINDS for _ in range(n_per_kind))
    directions = torch.from_numpy(rng.standard_normal((len(kinds), width), dtype=np.float32))
    partner_G = np.full(len(kinds), -1)
    second = np.arange(1, len(kinds), 4)
    partner_G[second] = second - 1
    strengths = torch.tensor([_STRENGTHS[kind] for kind in kinds])
    return Planted(directions / directions.norm(dim=1, keepdim=True), strengths, kinds, partner_G, density, noise)


@dataclass(frozen=True, eq=False)
class Recovery:
    """Which latent stands for each planted feature.

    Args:
        latent_G: The latent whose decoder row is most similar, in the model where the feature is strongest.
        cosine_G: That cosine.
    """

    latent_G: np.ndarray
    cosine_G: np.ndarray


def recovery(planted: Planted, dictionary: Dictionary, alive_F: Tensor) -> Recovery:
    """Match features to latents by the cosine of their directions.

    Args:
        planted: The truth.
        dictionary: Trained on its rows.
        alive_F: Latents that are active at all; others do not count.
    """
    with torch.no_grad():
        rows_FMD = dictionary.raw(dictionary.decoder_FMD)
        total_F1 = rows_FMD.flatten(1).norm(dim=1, keepdim=True)
        rows_FMD = rows_FMD / torch.maximum(rows_FMD.norm(dim=2), 0.05 * total_F1).clamp_min(1e-12)[:, :, None]
        cosine_GFM = torch.einsum("gd,fmd->gfm", planted.direction_GD, rows_FMD)
        strongest_G = planted.strength_GM.argmax(1)
        cosine_GF = cosine_GFM.gather(2, strongest_G[:, None, None].expand(-1, len(rows_FMD), 1)).squeeze(2)
        best = cosine_GF.masked_fill(~alive_F, -2).max(1)
    return Recovery(best.indices.numpy(), best.values.numpy())
