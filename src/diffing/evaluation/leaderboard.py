"""The leaderboard: rows for every method on every pair, as typed values that are written as JSON and read back."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffing.core.files import finite, versioned_json, write_json
from diffing.evaluation.scores import Score
from diffing.evaluation.scoring import Count, Counts, Detection

SCHEMA = 1
NAME = "leaderboard.json"
KINDS = ("tokens", "documents", "excess", "texts")


@dataclass(frozen=True)
class Cost:
    """What a run took."""

    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Row:
    """A method on a pair, for one seed.

    Args:
        method: The method.
        pair: Label of the pair in the suite.
        role: Its part: organism, judge, second judge or null.
        seed: Of the run.
        reason: Why there is no result; empty where there is one.
        detection: What it shows of the organism; None without a result, and for nulls.
        on_null: The same scores of the null that judged it: what this text gives where nothing was trained in.
        counts: What it claims.
        cost: What the run took when it was computed.
        folder: Run folder, relative to the output folder's `results`.
        version: Of the package that made it.
    """

    method: str
    pair: str
    role: str
    seed: int
    reason: str = ""
    detection: Detection | None = None
    on_null: Detection | None = None
    counts: Counts | None = None
    cost: Cost | None = None
    folder: str | None = None
    version: str | None = None

    @property
    def is_found(self) -> bool:
        """Whether a score lies, with all of its interval, above both chance and the null's own score.

        Where no null was run nothing is found: training text is odd to any model.
        """
        return any(self.exceeds(kind) for kind in KINDS)

    def exceeds(self, kind: str) -> bool:
        """Whether one score does: one of `KINDS`."""
        if self.detection is None:
            return False
        score: Score = getattr(self.detection, kind)
        null: Score | None = None if self.on_null is None else getattr(self.on_null, kind)
        if null is None or null.high is None or score.low is None:
            return False
        return score.low > max(null.high, score.chance_high or 0.0)

    def has_null(self, kind: str) -> bool:
        """Whether the null has such a score."""
        return self.on_null is not None and getattr(self.on_null, kind).value is not None


@dataclass(frozen=True)
class Leaderboard:
    """All rows, and what a reader must know of them.

    Args:
        size: Of the suite.
        model: Base model.
        rows: By pair and method.
        notes: Sentences.
        n_found: Runs that were finished before.
        n_run: Runs that were computed.
        max_tokens: Tokens a dataset.
        command: That made it.
    """

    size: str
    model: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    n_found: int
    n_run: int
    max_tokens: int | None
    command: str | None


def write_leaderboard(path: Path, board: Leaderboard) -> None:
    """Write it as JSON."""
    write_json(path, {"schema": SCHEMA, **finite(dataclasses.asdict(board))})


def read_leaderboard(path: Path) -> Leaderboard:
    """Read it back.

    Raises:
        UserError: It is missing, corrupt or of a newer schema.
    """
    with versioned_json(path, SCHEMA, "run pipeline.mode=benchmark again") as raw:
        rows = tuple(_row(r) for r in raw["rows"])
        rest = {k: v for k, v in raw.items() if k not in ("schema", "rows", "notes")}
        return Leaderboard(rows=rows, notes=tuple(raw["notes"]), **rest)


def _row(raw: dict[str, Any]) -> Row:
    return Row(
        **{
            **raw,
            "detection": _detection(raw["detection"]),
            "on_null": _detection(raw["on_null"]),
            "counts": _counts(raw["counts"]),
            "cost": None if raw["cost"] is None else Cost(**raw["cost"]),
        }
    )


def _detection(raw: dict[str, Any] | None) -> Detection | None:
    return None if raw is None else Detection(**{k: Score(**v) for k, v in raw.items()})


def _counts(raw: dict[str, Any] | None) -> Counts | None:
    return None if raw is None else Counts(**{k: None if v is None else Count(**v) for k, v in raw.items()})


def over_seeds(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of the same method and pair together, in the order of their first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.pair), []).append(row)
    return list(groups.values())
