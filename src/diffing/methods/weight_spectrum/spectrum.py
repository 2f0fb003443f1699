"""Singular values and vectors of one ΔW: of low-rank factors exactly, of a dense one exactly or by block Krylov.

The block Krylov method: Musco & Musco 2015, "Randomized Block Krylov Methods for Stronger and Faster Approximate
Singular Value Decomposition", algorithm 2, on ΔWᵀΔW, so that one pass over rows is one iteration; values are Ritz
values, from
below. What is left of Σσ⁴ beyond them is estimated as in Hutch++ (Meyer et al. 2021).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.models.changed_weight import Factors

LARGEST_EXACT = 1024
_OVERSAMPLING = 8
_N_PROBES = 16
_ROWS = 2**14  # in float64 at a time
_LEAST = 1e-7  # of the largest: below it is rounding
Pass = Callable[[], Iterator[tuple[int, Tensor]]]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The largest singular values of a matrix, and what all of them sum to.

    Args:
        values_K: Singular values, float64, falling.
        left_RK: Left singular vectors, one a column; rows as in the files.
        right_CK: Right singular vectors.
        square: Σσ² over all of them, ‖ΔW‖².
        fourth: Σσ⁴ over all of them.
        is_exact: Whether nothing was approximated.
    """

    values_K: Tensor
    left_RK: Tensor
    right_CK: Tensor
    square: float
    fourth: float
    is_exact: bool


def factored_spectrum(factors: Factors, n_values: int) -> Spectrum:
    """All of scale · L Rᵀ from QR of both factors and the decomposition of the small core, in float64.

    Args:
        factors: Of ΔW.
        n_values: Values and vectors that are kept.
    """
    left_RK, core_left = torch.linalg.qr(factors.left_OR.double())
    right_CK, core_right = torch.linalg.qr(factors.right_IR.double())
    u, values, vh = torch.linalg.svd(factors.scale * core_left @ core_right.T)
    n = _n_kept(values, n_values)
    square, fourth = float(values.pow(2).sum()), float(values.pow(4).sum())
    return Spectrum(values[:n], left_RK @ u[:, :n], right_CK @ vh[:n].T, square, fourth, True)


def exact_spectrum(matrix: Tensor, n_values: int) -> Spectrum:
    """Of a matrix with a small side: eigenvectors of the Gram matrix of that side, float64."""
    is_tall = matrix.shape[0] >= matrix.shape[1]
    tall = matrix if is_tall else matrix.T
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
    for part in tall.split(_ROWS):
        gram += part.double().T @ part.double()
    squares, vectors = torch.linalg.eigh(gram)
    values, vectors = squares.clamp_min(0).sqrt().flip(0), vectors.flip(1)
    n = _n_kept(values, n_values)
    right = vectors[:, :n]
    left = torch.cat([part.double() @ right for part in tall.split(_ROWS)]) / values[:n]
    left, right = (left, right) if is_tall else (right, left)
    return Spectrum(values[:n], left, right, float(gram.trace()), float(gram.square().sum()), True)


def krylov_spectrum(
    rows: Pass, shape: tuple[int, int], n_values: int, n_iterations: int, rng: np.random.Generator
) -> Spectrum:
    """The largest of a matrix that is read in chunks of rows, `n_iterations` + 1 times.

    Args:
        rows: Gives chunks of rows, float32, each with the number of its first row.
        shape: Of the matrix.
        n_values: Values and vectors that are wanted.
        n_iterations: Products with ΔWᵀΔW.
        rng: Draws the first block.
    """
    size = min(n_values + _OVERSAMPLING, *shape)
    drawn = torch.from_numpy(rng.standard_normal((shape[1], size + _N_PROBES)))
    product = _gram_times(rows, drawn.float()).double()
    block, probes_CP = product[:, :size], product[:, size:]
    basis = torch.empty(shape[1], 0, dtype=torch.float64)
    for i in range(n_iterations):
        fresh = _orthonormal(basis, block)
        basis = torch.cat([basis, fresh], 1)[:, : min(shape)]
        if i + 1 < n_iterations and fresh.shape[1] and basis.shape[1] < min(shape):
            block = _gram_times(rows, fresh.float()).double()
        else:
            break
    return _ritz(rows, shape, basis, probes_CP, n_values)


def _gram_times(rows: Pass, block_CB: Tensor) -> Tensor:
    total = torch.zeros_like(block_CB)
    for _, chunk in rows():
        total += chunk.T @ (chunk @ block_CB)
    return total


def _orthonormal(basis: Tensor, block: Tensor) -> Tensor:
    """An orthonormal basis of what a block adds; directions that are rounding alone are dropped."""
    size = torch.linalg.vector_norm(block, dim=0).max()
    for _ in range(2):
        block = block - basis @ (basis.T @ block)
    u, values, _ = torch.linalg.svd(block, full_matrices=False)
    fresh = u[:, values > _LEAST * size]
    fresh = fresh - basis @ (basis.T @ fresh)
    return torch.linalg.qr(fresh)[0]


def _ritz(rows: Pass, shape: tuple[int, int], basis_CP: Tensor, probes_CP: Tensor, n_values: int) -> Spectrum:
    """Singular values of the matrix within a space of right vectors."""
    image_RP, square = torch.empty(shape[0], basis_CP.shape[1]), 0.0
    for start, chunk in rows():
        square += float(chunk.square().sum(dtype=torch.float64))
        image_RP[start : start + len(chunk)] = chunk @ basis_CP.float()
    gram = torch.zeros(basis_CP.shape[1], basis_CP.shape[1], dtype=torch.float64)
    for part in image_RP.split(_ROWS):
        gram += part.double().T @ part.double()
    squares, vectors = torch.linalg.eigh(gram)
    values, vectors = squares.clamp_min(0).sqrt().flip(0), vectors.flip(1)
    n = _n_kept(values, n_values)
    found = vectors[:, :n]
    right_CK = basis_CP @ found
    left_RK = (image_RP @ found.float()).double() / values[:n]
    beyond = probes_CP - right_CK @ (right_CK.T @ probes_CP)
    fourth = float(values[:n].pow(4).sum() + beyond.square().sum() / beyond.shape[1])
    return Spectrum(values[:n], left_RK, right_CK, square, fourth, False)


def _n_kept(values: Tensor, n_values: int) -> int:
    """How many are asked for and more than rounding."""
    if not len(values) or not values[0] > 0:
        return 0
    return min(n_values, int((values > _LEAST * values[0]).sum()))
