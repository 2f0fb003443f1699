"""The numbers of one weight's change: norms, spectrum, and how the base itself uses its directions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.methods.weight_spectrum.config import WeightSpectrumConfig
from diffing.methods.weight_spectrum.spectrum import (
    LARGEST_EXACT,
    Spectrum,
    exact_spectrum,
    factored_spectrum,
    krylov_spectrum,
)
from diffing.models.changed_weight import Rows, WeightChange
from diffing.models.weight_files import row_cuts

LARGEST_HELD = 2**28  # numbers of one matrix, 1 GiB in float32


@dataclass(frozen=True, eq=False)
class Measured:
    """Numbers of one change; what is not known is None.

    Args:
        square: ‖ΔW‖².
        n_moved: Entries that differ; None of factors.
        base_square: ‖W‖².
        fourth: Σσ⁴; None of what is no matrix.
        is_exact: Whether the spectrum is.
        values_K: The largest singular values.
        base_out_K: ‖uᵀW‖ / (‖W‖/√n_out) of each left singular vector (on the side of the output).
        base_in_K: ‖W v‖ / (‖W‖/√n_in) of each right one.
        vectors_KD: Leading output vectors of a matrix that writes into the residual stream; the largest entry positive.
        random_ND: What the base's own matrix writes there at random inputs, at length 1; None where it is not read.
    """

    square: float
    n_moved: int | None
    base_square: float | None
    fourth: float | None
    is_exact: bool
    values_K: np.ndarray
    base_out_K: np.ndarray | None
    base_in_K: np.ndarray | None
    vectors_KD: np.ndarray | None
    random_ND: np.ndarray | None


def measure(
    change: WeightChange, config: WeightSpectrumConfig, reads_base: bool, writes: bool, rng: np.random.Generator
) -> Measured:
    """Read one change and decompose it.

    Args:
        change: Of which weight.
        config: How many values and vectors.
        reads_base: Whether the base's weight is read too, where it is at hand.
        writes: Whether its output vectors are those of the residual stream.
        rng: For matrices too large for an exact decomposition.
    """
    base = change.base if reads_base else None
    if change.factors is not None:
        spectrum = factored_spectrum(change.factors(), config.n_values)
        return _measured(change, spectrum, spectrum.square, None, base, config, writes, rng)
    assert change.rows is not None
    matrix = _held(change) if _is_held(change) else None
    rows = change.rows if matrix is None else _rows_of(matrix)
    square, n_moved = _size(rows)
    spectrum = None
    if change.is_matrix and square > 0:
        if matrix is not None and min(change.shape) <= LARGEST_EXACT:
            spectrum = exact_spectrum(matrix, config.n_values)
        else:
            shape = (change.shape[0], change.shape[1])
            spectrum = krylov_spectrum(rows, shape, config.n_values, config.n_iterations, rng)
    del matrix, rows
    return _measured(change, spectrum, square, n_moved, base, config, writes, rng)


def _is_held(change: WeightChange) -> bool:
    return change.is_matrix and change.shape[0] * change.shape[1] <= LARGEST_HELD


def _held(change: WeightChange) -> Tensor:
    assert change.rows is not None
    matrix = torch.empty(change.shape)
    for start, chunk in change.rows():
        matrix[start : start + len(chunk)] = chunk
    return matrix


def _rows_of(matrix: Tensor) -> Rows:
    def rows() -> Iterator[tuple[int, Tensor]]:
        for start, stop in row_cuts(tuple(matrix.shape)):
            yield start, matrix[start:stop]

    return rows


def _size(rows: Rows) -> tuple[float, int]:
    """Sum of squares, and entries that are not 0."""
    square, n_moved = 0.0, 0
    for _, chunk in rows():
        square += float(chunk.square().sum(dtype=torch.float64))
        n_moved += int(chunk.count_nonzero())
    return square, n_moved


def _measured(
    change: WeightChange, spectrum: Spectrum | None, square: float, n_moved: int | None, base: Rows | None,
    config: WeightSpectrumConfig, writes: bool, rng: np.random.Generator,
) -> Measured:  # fmt: skip
    if spectrum is None or not len(spectrum.values_K):
        base_square = None if base is None else _size(base)[0]
        fourth = 0.0 if spectrum is not None else None
        return Measured(square, n_moved, base_square, fourth, True, np.zeros(0), None, None, None, None)
    base_square, along_left, along_right = _along(base, spectrum) if base else (None, None, None)
    is_first = change.out_axis == 0
    out_RK = spectrum.left_RK if is_first else spectrum.right_CK
    return Measured(
        square, n_moved, base_square, spectrum.fourth, spectrum.is_exact, spectrum.values_K.numpy(),
        along_left if is_first else along_right, along_right if is_first else along_left,
        _fixed(out_RK[:, : config.n_vectors].T) if writes and config.n_vectors else None,
        _written(base, change, config.n_random, rng) if base and writes and config.n_vectors else None,
    )  # fmt: skip


def _along(base: Rows, spectrum: Spectrum) -> tuple[float, np.ndarray, np.ndarray]:
    """‖W‖², and how long W is along the left and the right singular vectors of ΔW, beside a random direction."""
    left_RK, right_CK = spectrum.left_RK.float(), spectrum.right_CK.float()
    square = 0.0
    onto_left_KC = torch.zeros(left_RK.shape[1], right_CK.shape[0])
    right_K = torch.zeros(right_CK.shape[1], dtype=torch.float64)
    for start, chunk in base():
        square += float(chunk.square().sum(dtype=torch.float64))
        onto_left_KC += left_RK[start : start + len(chunk)].T @ chunk
        right_K += (chunk @ right_CK).square().sum(0, dtype=torch.float64)
    left_K = onto_left_KC.square().sum(1, dtype=torch.float64)
    scale = max(square, torch.finfo(torch.float64).tiny)
    n_left, n_right = len(left_RK), len(right_CK)
    return square, (left_K * n_left / scale).sqrt().numpy(), (right_K * n_right / scale).sqrt().numpy()


def _written(base: Rows, change: WeightChange, n: int, rng: np.random.Generator) -> np.ndarray:
    """What the base's matrix gives for normal inputs, at length 1; float32."""
    is_first = change.out_axis == 0
    inputs_IN = torch.from_numpy(rng.standard_normal((change.shape[1 - change.out_axis], n))).float()
    out_ON = torch.zeros(change.out_width, n)
    for start, chunk in base():
        if is_first:
            out_ON[start : start + len(chunk)] = chunk @ inputs_IN
        else:
            out_ON += chunk.T @ inputs_IN[start : start + len(chunk)]
    return (out_ON / out_ON.norm(dim=0).clamp_min(1e-30)).T.contiguous().numpy()


def _fixed(vectors_KD: Tensor) -> np.ndarray:
    """Unit vectors whose largest entry is positive, so that their sign is fixed; float32."""
    largest_K1 = vectors_KD.gather(1, vectors_KD.abs().argmax(1, keepdim=True))
    return (vectors_KD * largest_K1.sign()).float().contiguous().numpy()
