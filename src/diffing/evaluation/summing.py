"""Sums over the rows of a leaderboard: means over seeds, false claims, the faintest change that was found."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from diffing.core.sensitivity import Sensitivity
from diffing.evaluation.leaderboard import Leaderboard, Row, over_seeds
from diffing.evaluation.scores import Score
from diffing.evaluation.scoring import Count, Counts
from diffing.evaluation.suite import LADDER


def mean_score(rows: Sequence[Row], kind: str, of_null: bool = False) -> Score:
    """A score over seeds: the mean, and from the lowest to the highest of the ends of their intervals.

    Args:
        rows: Of one method and pair, one for each seed.
        kind: `tokens`, `documents`, `excess`, `texts` or `right`.
        of_null: The null's score instead.
    """
    sides = [r.on_null if of_null else r.detection for r in rows]
    scores = [s for side in sides if side is not None and (s := getattr(side, kind)).value is not None]
    if not scores:
        return Score(None)
    return Score(
        _mean([s.value for s in scores]),
        min((s.low for s in scores if s.low is not None), default=None),
        max((s.high for s in scores if s.high is not None), default=None),
        _mean([s.chance for s in scores]),
        _mean([s.chance_high for s in scores]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


@dataclass(frozen=True)
class Rates:
    """What a method claims on a null, over all seeds."""

    method: str
    null: str
    counts: Counts


def false_claims(board: Leaderboard) -> list[Rates]:
    """Claims on nulls that were judged, by method and null."""
    nulls = [r for r in board.rows if r.role == "null" and r.counts is not None]
    return sorted(
        (Rates(g[0].method, g[0].pair, added([r.counts for r in g if r.counts])) for g in over_seeds(nulls)),
        key=lambda r: (r.method, r.null),
    )


def added(several: Sequence[Counts]) -> Counts:
    """Claims and judgements over several results."""
    return Counts(**{f.name: _sum([getattr(c, f.name) for c in several]) for f in fields(Counts)})


def _sum(counts: Sequence[Count | None]) -> Count | None:
    known = [c for c in counts if c is not None]
    return Count(sum(c.n_claimed for c in known), sum(c.n_tested for c in known)) if known else None


def faintest(board: Leaderboard, method: str) -> Sensitivity | None:
    """Sensitivity of a method; None where it was not run on the ladder, or without a null to hold a rung against."""
    by_rung: dict[str, str] = {}
    last = None
    is_unbroken = True
    for rung in LADDER:
        rows = [r for r in board.rows if r.method == method and r.pair == rung and (r.detection is None or r.on_null)]
        is_unbroken = is_unbroken and bool(rows)
        if rows:
            has_failed = any(r.detection is None for r in rows)
            is_found = all(r.is_found for r in rows)
            by_rung[rung] = "failed" if has_failed else "found" if is_found else "not found"
            is_unbroken = is_unbroken and is_found
            last = rung if is_unbroken else last
    return Sensitivity(method, by_rung, last) if by_rung else None
