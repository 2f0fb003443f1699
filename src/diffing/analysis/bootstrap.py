"""Percentile bootstrap over sequences: tokens of one sequence are not independent of each other."""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
_BLOCK = 2**22


@dataclass(frozen=True)
class Interval:
    """A ratio of sums with its 95 % interval; the bounds are None when a single sequence leaves nothing to resample."""

    value: float
    low: float | None
    high: float | None


def ratio_interval(
    sums_S: np.ndarray, counts_S: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Interval:
    """Σ sums / Σ counts with a 95 % percentile interval from resampling sequences.

    Args:
        sums_S: Sum of the quantity over each sequence's tokens.
        counts_S: Number of those tokens.
        rng: Explicit generator.
        resamples: Number of resamples.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    kept = counts_S > 0
    sums, counts = sums_S[kept].astype(np.float64), counts_S[kept].astype(np.float64)
    if counts.size == 0:
        return Interval(float("nan"), None, None)
    value = float(sums.sum() / counts.sum())
    if counts.size == 1:
        return Interval(value, None, None)
    low, high = np.percentile(_resampled(sums, counts, rng, resamples), [2.5, 97.5])
    return Interval(value, float(low), float(high))


def _resampled(sums: np.ndarray, counts: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    n = counts.size
    ratios = []
    for start in range(0, resamples, step := max(1, _BLOCK // n)):
        picks = rng.integers(0, n, size=(min(step, resamples - start), n))
        ratios.append(sums[picks].sum(1) / counts[picks].sum(1))
    return np.concatenate(ratios)


def mean_stderr(total: np.ndarray, total_of_squares: np.ndarray, n_tokens: int, n_sequences: int) -> np.ndarray:
    """Standard error of a per-token mean from Σc and Σc², c being each sequence's sum.

    Treats sequences as the independent units and their lengths as alike; NaN for fewer than two.
    """
    if n_sequences < 2:
        return np.full(np.shape(total), np.nan)
    spread = np.maximum(total_of_squares - total**2 / n_sequences, 0) * n_sequences / (n_sequences - 1)
    return np.sqrt(spread) / n_tokens


@dataclass(frozen=True, eq=False)
class Intervals:
    """Ratios of sums with their 95 % intervals, one per column; NaN where unknown."""

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def ratio_intervals(
    sums_SM: np.ndarray, counts_SM: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Intervals:
    """`ratio_interval` for many quantities of the same sequences at once, on the same resamples.

    Args:
        sums_SM: Sum of each quantity over each sequence's tokens, 0 where there are none.
        counts_SM: Number of those tokens.
        rng: Explicit generator.
        resamples: Number of resamples.
    """
    n = len(sums_SM)
    sums, counts = sums_SM.astype(np.float64), counts_SM.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = sums.sum(0) / counts.sum(0)
        ratios = []
        for start in range(0, resamples, step := max(1, _BLOCK // max(n, 1))):
            m = min(step, resamples - start)
            picks = rng.integers(0, n, size=(m, n)) + n * np.arange(m)[:, None]
            weights = np.bincount(picks.ravel(), minlength=m * n).reshape(m, n).astype(np.float64)
            ratios.append((weights @ sums) / (weights @ counts))
    low, high = _percentiles(np.concatenate(ratios))
    alone = (counts > 0).sum(0) < 2
    low[alone], high[alone] = np.nan, np.nan
    return Intervals(values, low, high)


def _percentiles(ratios_RM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.full(ratios_RM.shape[1], np.nan), np.full(ratios_RM.shape[1], np.nan)
    known = ~np.isnan(ratios_RM).all(0)
    if known.any():
        low[known], high[known] = np.nanpercentile(ratios_RM[:, known], [2.5, 97.5], axis=0)
    return low, high
