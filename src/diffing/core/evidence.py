"""Evidence: what any method found, in one shape.

Report, comparison, agents and benchmark read this and nothing method-specific.
Lists are ranked, best first, and hold at most `LIMIT` items; unknown numbers are None, never 0.
`claimed` is None while a method is not calibrated against a null. Spans are Python character
offsets into `text`, end exclusive.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffing.core.files import finite, of_kind, versioned_json, write_json

SCHEMA = 1
LIMIT = 200


@dataclass(frozen=True)
class TokenEvidence:
    """A vocabulary token (or several merged ones) and how strongly it stands out."""

    token: str
    token_ids: tuple[int, ...]
    score: float
    stderr: float | None = None
    null_score: float | None = None
    claimed: bool | None = None


@dataclass(frozen=True)
class Span:
    """A highlighted stretch of an example: characters `start` to `end` (exclusive) and its value."""

    start: int
    end: int
    value: float | None


@dataclass(frozen=True)
class ExampleEvidence:
    """A text in which the models differ, with highlighted spans."""

    text: str
    score: float
    spans: tuple[Span, ...] = ()
    dataset: str | None = None
    claimed: bool | None = None


@dataclass(frozen=True)
class TextEvidence:
    """A text that a model wrote after a prompt (it may be empty), or a statement in words, which has none."""

    text: str
    score: float | None = None
    prompt: str | None = None
    source: str | None = None
    claimed: bool | None = None


@dataclass(frozen=True)
class ScalarEvidence:
    """A headline number with its 95 % interval and its value under a null."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    null: float | None = None
    unit: str = ""
    claimed: bool | None = None


@dataclass(frozen=True)
class Evidence:
    """Everything a method found."""

    tokens: tuple[TokenEvidence, ...] = ()
    examples: tuple[ExampleEvidence, ...] = ()
    texts: tuple[TextEvidence, ...] = ()
    scalars: tuple[ScalarEvidence, ...] = field(default=())


def to_json(evidence: Evidence) -> dict[str, Any]:
    """The form of `evidence.json`; NaN and infinities become null, spans become [start, end, value]."""
    lists = {f.name: getattr(evidence, f.name)[:LIMIT] for f in dataclasses.fields(evidence)}
    return {"schema": SCHEMA, **{k: [_item(i) for i in items] for k, items in lists.items()}}


def _item(item: Any) -> dict[str, Any]:
    out = {f.name: finite(getattr(item, f.name)) for f in dataclasses.fields(item)}
    if isinstance(item, TokenEvidence):
        out["token_ids"] = list(item.token_ids)
    if isinstance(item, ExampleEvidence):
        out["spans"] = [[s.start, s.end, finite(s.value)] for s in item.spans]
    return out


def write_evidence(path: Path, evidence: Evidence) -> None:
    """Write `evidence.json`."""
    write_json(path, to_json(evidence))


def read_evidence(path: Path) -> Evidence:
    """Read `evidence.json`.

    Raises:
        UserError: The file is missing, corrupt, or of a newer schema.
    """
    with versioned_json(path, SCHEMA, "run again with overwrite=true") as raw:
        examples = [{**e, "spans": [_span(s) for s in e["spans"]]} for e in raw["examples"]]
        lists = {"tokens": raw["tokens"], "examples": examples, "texts": raw["texts"], "scalars": raw["scalars"]}
        return of_kind(Evidence, lists)


def _span(raw: list[Any]) -> dict[str, Any]:
    start, end, value = raw
    return {"start": start, "end": end, "value": value}
