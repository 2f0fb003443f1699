"""The depth up to which states must be the other model's for half of the difference to follow them."""

from collections.abc import Sequence

import numpy as np

from diffing.analysis.bootstrap import RESAMPLES, Interval


def half_point(
    upstream_SP: np.ndarray, effect_S: np.ndarray, rng: np.random.Generator, points: Sequence[int]
) -> Interval:
    """The first point at which the upstream main effect is half of the whole, between points on a straight line.

    Args:
        upstream_SP: Main effect of each divergence at each point; at the last point the whole effect.
        effect_S: The whole effect of each divergence.
        rng: Explicit generator; divergences are resampled.
        points: Numbers of the points, ascending.

    Returns:
        A point, NaN without divergences, with its 95 % percentile interval (None for fewer than two).
    """
    n = len(effect_S)
    if n == 0:
        return Interval(float("nan"), None, None)
    value = float(_crossing(upstream_SP.sum(0)[None], effect_S.sum()[None], points)[0])
    if n == 1:
        return Interval(value, None, None)
    picks = rng.integers(0, n, size=(RESAMPLES, n))
    weights_RS = np.stack([np.bincount(p, minlength=n) for p in picks]).astype(np.float64)
    found_R = _crossing(weights_RS @ upstream_SP, weights_RS @ effect_S, points)
    low, high = np.nanpercentile(found_R, [2.5, 97.5]) if not np.isnan(found_R).all() else (None, None)
    return Interval(value, None if low is None else float(low), None if high is None else float(high))


def _crossing(upstream_RP: np.ndarray, effect_R: np.ndarray, points: Sequence[int]) -> np.ndarray:
    """Where each row's share first reaches ½; NaN where it never does."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share_RP = upstream_RP / effect_R[:, None]
    reached_RP = share_RP >= 0.5
    at_R = reached_RP.argmax(1)
    before_R = np.maximum(at_R - 1, 0)
    rows, places = np.arange(len(at_R)), np.asarray(points, dtype=np.float64)
    below, above = share_RP[rows, before_R], share_RP[rows, at_R]
    with np.errstate(invalid="ignore", divide="ignore"):
        part_R = np.where(at_R > 0, (0.5 - below) / (above - below), 1.0)
    found_R = places[before_R] + part_R * (places[at_R] - places[before_R])
    return np.where(reached_RP.any(1), found_R, np.nan)
