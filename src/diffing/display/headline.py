"""The headline scalars and top tokens as the page shows them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffing.core.evidence import TokenEvidence

TOP_TOKENS = 20
_CLAIMS = {True: "claimed", False: "not claimed", None: "not calibrated"}


@dataclass(frozen=True)
class Strip:
    """Where an interval lies on the axis its unit shares, in percent of the axis."""

    value: float
    low: float
    high: float
    null: float | None
    zero: float


@dataclass(frozen=True)
class Scalar:
    """One headline number."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    null: float | None
    unit: str
    claim: str
    strip: Strip | None


@dataclass(frozen=True)
class TopTokens:
    """The first tokens; `state` is the claim they all share, None when they differ."""

    tokens: tuple[TokenEvidence, ...]
    has_error: bool
    has_null: bool
    state: str | None


def claim(claimed: bool | None) -> str:
    """The state of a finding in words."""
    return _CLAIMS[claimed]


def scalars(summary: list[dict[str, Any]]) -> list[Scalar]:
    """Scalars in their order, each with its place on an axis shared by all of its unit."""
    ranges = {s["unit"]: _range([t for t in summary if t["unit"] == s["unit"]]) for s in summary}
    return [
        Scalar(
            s["name"],
            s["value"],
            s["low"],
            s["high"],
            s["null"],
            s["unit"],
            claim(s["claimed"]),
            _strip(s, ranges[s["unit"]]),
        )
        for s in summary
    ]


def top_tokens(tokens: tuple[TokenEvidence, ...]) -> TopTokens:
    """The first tokens, and what their table needs to say."""
    shown = tokens[:TOP_TOKENS]
    states = {claim(t.claimed) for t in shown}
    return TopTokens(
        shown,
        any(t.stderr is not None for t in shown),
        any(t.null_score is not None for t in shown),
        states.pop() if len(states) == 1 else None,
    )


def _range(rows: list[dict[str, Any]]) -> tuple[float, float]:
    known = [r[k] for r in rows for k in ("value", "low", "high", "null") if r[k] is not None]
    return min([0.0, *known]), max([0.0, *known])


def _strip(row: Mapping[str, Any], axis: tuple[float, float]) -> Strip | None:
    start, end = axis
    if row["value"] is None or not end > start:
        return None

    def at(value: float) -> float:
        return round(100 * (value - start) / (end - start), 2)

    value = row["value"]
    low = value if row["low"] is None else row["low"]
    high = value if row["high"] is None else row["high"]
    return Strip(at(value), at(low), at(high), None if row["null"] is None else at(row["null"]), at(0.0))
