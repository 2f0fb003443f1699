"""What a change of no structure would give: a random ΔW of the same shape, Frobenius norm and rank.

Entries are independent and normal; of a low-rank change, those of its two factors.
"""

from dataclasses import dataclass

import numpy as np

_N_DRAWS = 20


@dataclass(frozen=True, eq=False)
class RandomChange:
    """What is expected of it.

    Args:
        stable_rank: ‖ΔW‖² / σ₁².
        effective_rank: (Σσ²)² / Σσ⁴.
        shares_K: σᵢ² / ‖ΔW‖², as far as known.
    """

    stable_rank: float
    effective_rank: float
    shares_K: tuple[float, ...]


def random_factors(shape: tuple[int, int], rank: int, rng: np.random.Generator) -> RandomChange | None:
    """Of a product of two normal factors: means over draws.

    The triangular factor of a normal matrix is drawn itself (Bartlett 1933): χ on the diagonal, normal above it. None
    where a factor has fewer rows than columns.
    """
    if rank > min(shape):
        return None
    values_DK = np.stack([_draw(shape, rank, rng) for _ in range(_N_DRAWS)])
    squares_DK = values_DK**2
    shares_DK = squares_DK / squares_DK.sum(1, keepdims=True)
    stable_D, effective_D = 1 / shares_DK[:, 0], 1 / (shares_DK**2).sum(1)
    return RandomChange(float(stable_D.mean()), float(effective_D.mean()), tuple(shares_DK.mean(0).tolist()))


def _draw(shape: tuple[int, int], rank: int, rng: np.random.Generator) -> np.ndarray:
    left, right = (_triangular(n, rank, rng) for n in shape)
    return np.linalg.svd(left @ right.T, compute_uv=False)


def _triangular(n_rows: int, rank: int, rng: np.random.Generator) -> np.ndarray:
    upper = np.triu(rng.standard_normal((rank, rank)), 1)
    return upper + np.diag(np.sqrt(rng.chisquare(n_rows - np.arange(rank))))


def random_matrix(shape: tuple[int, int]) -> RandomChange:
    """Of a normal matrix, in the limit of large ones (Marchenko & Pastur 1967): σ₁ = √m + √n of unit entries."""
    m, n = shape
    stable = m * n / (m**0.5 + n**0.5) ** 2
    return RandomChange(stable, m * n / (m + n), (1 / stable,))
