"""Decompositions: which components there are, which exceed the null, and what rows are projected on."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.core.layers import Slot
from diffing.methods.pca.config import CENTRINGS, Centring, Target
from diffing.methods.pca.moments import Moments
from diffing.methods.pca.null import NullSpectra, above_null
from diffing.methods.pca.spectrum import decompose


@dataclass(frozen=True, eq=False)
class Space:
    """One decomposition.

    Args:
        slot: Where the activations were read.
        target: What was decomposed.
        centring: Whether the mean was taken out.
        n_tokens: Tokens it rests on.
        n_not_finite: Kept tokens left out because they are not finite,
        n_unusual: and for their norm.
        mean_D: Mean of the target, float64.
        total: Sum of all eigenvalues.
        participation_ratio: (Σλ)² / Σλ².
        values_K: Eigenvalues, descending.
        null_K: 95th percentile of the null at each rank.
        above_K: Which eigenvalues are above it.
        vectors_CD: The components that are listed, float64.
        subspace_AD: All components above the null, float32.
        n_null_tokens: Tokens the null was drawn from.
        n_null_documents: Documents of these.
        is_exact: Whether all eigenvalues were computed.
    """

    slot: Slot
    target: Target
    centring: Centring
    n_tokens: int
    n_not_finite: int
    n_unusual: int
    mean_D: Tensor
    total: float
    participation_ratio: float | None
    values_K: np.ndarray
    null_K: np.ndarray
    above_K: np.ndarray
    vectors_CD: Tensor
    subspace_AD: Tensor
    n_null_tokens: int
    n_null_documents: int
    is_exact: bool

    @property
    def key(self) -> str:
        """`layer_14/residual/delta/centred`."""
        return f"{self.slot.name}/{self.target}/{self.centring}"

    @property
    def n_above(self) -> int:
        """Components above the null, A."""
        return int(self.above_K.sum())

    @property
    def n_listed(self) -> int:
        """Components that are listed, C."""
        return len(self.vectors_CD)

    @property
    def offset_D(self) -> Tensor:
        """What is subtracted from a row before it is projected."""
        return self.mean_D if self.centring == "centred" else torch.zeros_like(self.mean_D)

    @property
    def mean_norm(self) -> float:
        """‖E x‖."""
        return float(self.mean_D.norm())


def spaces_of(
    slot: Slot, moments: Moments, nulls: Mapping[Target, NullSpectra], n_components: int
) -> tuple[Space, ...]:
    """The centred and the uncentred space of each target at one slot."""
    return tuple(
        _space(slot, target, centring, moments, nulls[target], n_components)
        for target in moments.covariances
        for centring in CENTRINGS
    )


def _space(
    slot: Slot, target: Target, centring: Centring, moments: Moments, null: NullSpectra, n_components: int
) -> Space:
    covariance = moments.covariances[target]
    found = decompose(covariance.centred_DD if centring == "centred" else covariance.uncentred_DD)
    values_K, null_K = found.values_K.numpy(), null.shares[centring] * found.total
    above_K = above_null(values_K, null_K, null.n_documents)
    return Space(
        slot=slot, target=target, centring=centring, n_tokens=covariance.n, n_not_finite=moments.n_not_finite,
        n_unusual=moments.n_unusual, mean_D=covariance.mean_D, total=found.total,
        participation_ratio=found.participation_ratio, values_K=values_K,
        null_K=null_K, above_K=above_K, vectors_CD=found.vectors_KD[: min(n_components, found.rank)].clone(),
        subspace_AD=found.vectors_KD[torch.from_numpy(above_K)].float(), n_null_tokens=null.n_tokens,
        n_null_documents=null.n_documents, is_exact=found.is_exact,
    )  # fmt: skip
