"""Eigenvalues and eigenvectors of a covariance, largest first, with the sign that the method uses."""

from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_WIDTH = 4096
_RANDOMISED_RANK = 256
_OVERSAMPLING = 32
_POWER_ITERATIONS = 8


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A decomposition of a symmetric, positive semidefinite matrix.

    Args:
        values_K: Eigenvalues, descending, float64; what rounding cannot tell from 0 is 0.
        vectors_KD: Unit eigenvectors, one a row; the largest |loading| of each is positive.
        total: Sum of all eigenvalues, those that were not computed too.
        squares: Sum of their squares.
        is_exact: Whether all were computed.
    """

    values_K: Tensor
    vectors_KD: Tensor
    total: float
    squares: float
    is_exact: bool

    @property
    def rank(self) -> int:
        """Eigenvalues above 0."""
        return int((self.values_K > 0).sum())

    @property
    def participation_ratio(self) -> float | None:
        """(Σλ)² / Σλ²: the number of equal eigenvalues that would be as concentrated; None of a matrix of zeros."""
        return self.total**2 / self.squares if self.squares > 0 else None


def decompose(matrix_DD: Tensor) -> Spectrum:
    """The spectrum of a covariance; above width `EXACT_WIDTH` the leading part, by a randomised solver.

    Source of the solver: Halko, Martinsson and Tropp, Finding Structure with Randomness (2011), algorithm 5.1, as in
    `torch.svd_lowrank`.
    """
    width = len(matrix_DD)
    if width <= EXACT_WIDTH:
        values, vectors = torch.linalg.eigh(matrix_DD)
        values_K, vectors_KD = values.flip(0), vectors.T.flip(0)
    else:
        values_K, vectors_KD = _leading(matrix_DD)
    return Spectrum(
        _without_noise(values_K, width), _signed(vectors_KD), float(matrix_DD.trace()),
        float(matrix_DD.square().sum()), width <= EXACT_WIDTH,
    )  # fmt: skip


def eigenvalues(matrix_DD: Tensor) -> Tensor:
    """The eigenvalues that `decompose` gives."""
    if len(matrix_DD) > EXACT_WIDTH:
        return _without_noise(_leading(matrix_DD)[0], len(matrix_DD))
    return _without_noise(torch.linalg.eigvalsh(matrix_DD).flip(0), len(matrix_DD))


def _leading(matrix_DD: Tensor) -> tuple[Tensor, Tensor]:
    """Leading eigenvalues and vectors; the same whatever was drawn before, and no generator but its own moves."""
    rank = min(_RANDOMISED_RANK, len(matrix_DD))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, values, vectors = torch.svd_lowrank(
            matrix_DD, min(rank + _OVERSAMPLING, len(matrix_DD)), niter=_POWER_ITERATIONS
        )
    return values[:rank], vectors.T[:rank]


def _without_noise(values_K: Tensor, width: int) -> Tensor:
    floor = width * torch.finfo(values_K.dtype).eps * values_K[:1].clamp_min(0)
    return torch.where(values_K > floor, values_K, torch.zeros_like(values_K))


def _signed(vectors_KD: Tensor) -> Tensor:
    largest = vectors_KD.gather(1, vectors_KD.abs().argmax(1, keepdim=True))
    return vectors_KD * torch.where(largest < 0, -1.0, 1.0)
