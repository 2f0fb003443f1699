"""How well a dictionary does on rows it was not trained on; sums in float64, one pass."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.dictionaries.codes import Codes
from diffing.dictionaries.dictionary import Dictionary


@dataclass(frozen=True, eq=False)
class Quality:
    """Of N tokens.

    Args:
        n_tokens: N, rows that are finite.
        n_not_finite: Rows left out.
        fve_M: 1 − Σ‖x^m − x̂^m‖² / Σ‖x^m − x̄^m‖² of each site; NaN where the data do not vary.
        explained_difference: 1 − Σ‖δ − δ̂‖² / Σ‖δ − δ̄‖² of the last site minus the first, in raw units; None for one
            site, NaN where δ does not vary.
        l0: Active latents per token.
        frequency_F: Share of the tokens at which each latent is active.
    """

    n_tokens: int
    n_not_finite: int
    fve_M: np.ndarray
    explained_difference: float | None
    l0: float
    frequency_F: np.ndarray

    @property
    def dead_share(self) -> float:
        """Share of latents that are active nowhere."""
        return float((self.frequency_F == 0).mean())


class _Spread:
    """Σ‖y − ŷ‖² and Σ‖y − ȳ‖² of a stream of rows."""

    def __init__(self) -> None:
        self.n, self.left, self.squares = 0, 0.0, 0.0
        self.first_D: Tensor | None = None
        self.total_D: Tensor | None = None

    def add(self, y_ND: Tensor, made_ND: Tensor) -> None:
        """Take in rows and what was made of them."""
        y_ND = y_ND.double()
        if self.first_D is None:
            self.first_D, self.total_D = y_ND[0].clone(), torch.zeros_like(y_ND[0])
        assert self.total_D is not None
        shifted_ND = y_ND - self.first_D
        self.n += len(y_ND)
        self.total_D += shifted_ND.sum(0)
        self.squares += float(shifted_ND.square().sum())
        self.left += float((y_ND - made_ND.double()).square().sum())

    @property
    def fve(self) -> float:
        if self.total_D is None:
            return float("nan")
        spread = self.squares - float(self.total_D.square().sum()) / self.n
        return 1 - self.left / spread if spread > 1e-12 * max(self.squares, 1e-300) else float("nan")


class Meter:
    """Gathers `Quality` from rows as they come.

    Args:
        dictionary: What is measured.
    """

    def __init__(self, dictionary: Dictionary) -> None:
        n_sites = dictionary.spec.n_sites
        self._dictionary = dictionary
        self._spreads, self._gap = [_Spread() for _ in range(n_sites)], _Spread()
        self._n = self._n_not_finite = self._n_pairs = 0
        self._counts_F = np.zeros(dictionary.spec.n_latents, dtype=np.int64)

    def lost(self, n: int) -> None:
        """Count rows that are not finite."""
        self._n_not_finite += n

    def add(self, x_NMD: Tensor, codes: Codes, made_NMD: Tensor) -> None:
        """Take in finite rows in normalised units, their codes, and what these make of them."""
        if not len(x_NMD):
            return
        self._n += len(x_NMD)
        self._n_pairs += len(codes)
        self._counts_F += np.bincount(codes.latent_P.cpu().numpy(), minlength=len(self._counts_F))
        for site, spread in enumerate(self._spreads):
            spread.add(x_NMD[:, site], made_NMD[:, site])
        if len(self._spreads) > 1:
            raw_NMD, raw_made_NMD = (self._dictionary.raw(x.double()) for x in (x_NMD, made_NMD))
            self._gap.add(raw_NMD[:, -1] - raw_NMD[:, 0], raw_made_NMD[:, -1] - raw_made_NMD[:, 0])

    def quality(self) -> Quality:
        """Of what was taken in so far."""
        return Quality(
            n_tokens=self._n,
            n_not_finite=self._n_not_finite,
            fve_M=np.array([s.fve for s in self._spreads]),
            explained_difference=self._gap.fve if len(self._spreads) > 1 else None,
            l0=self._n_pairs / max(self._n, 1),
            frequency_F=self._counts_F / max(self._n, 1),
        )


@torch.no_grad()
def evaluate(dictionary: Dictionary, batches: Iterable[Tensor]) -> Quality:
    """Measure on batches (N, M, D) of raw activations, as the dictionary is used outside training."""
    meter = Meter(dictionary)
    for raw_NMD in batches:
        x_NMD = dictionary.normalised(raw_NMD)
        fine_N = torch.isfinite(x_NMD).flatten(1).all(1)
        meter.lost(int((~fine_N).sum()))
        x_NMD = x_NMD[fine_N]
        codes = dictionary.encode(x_NMD)
        meter.add(x_NMD, codes, dictionary.decode(codes))
    return meter.quality()
