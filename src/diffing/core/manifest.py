"""The shape of a result's `manifest.json`, as far as anything reads it.

It is checked once, where the file is read; readers then take values by key. What has a default here was not written by
every version, or is left out of some results.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffing.core.files import of_kind, versioned_json
from diffing.core.runs import SCHEMA

REMEDY = "run again with overwrite=true"


@dataclass(frozen=True)
class _Method:
    method: dict[str, Any]


@dataclass(frozen=True)
class _Config:
    """The settings of the run; parsed again only where they are run again."""

    null_pair: str = "none"
    skip_first_tokens: int = 1
    model: dict[str, Any] = field(default_factory=dict)
    organism: dict[str, Any] = field(default_factory=dict)
    diffing: _Method | None = None


@dataclass(frozen=True)
class _Side:
    """What is known of one of both models."""

    origin: str | None = None
    subfolder: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class _PairFacts:
    base: _Side | None = None
    finetuned: _Side | None = None
    n_params: dict[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pair:
    model: str
    organism: str
    variant: str
    base_id: str
    finetuned_id: str
    fingerprint: str | None = None
    facts: _PairFacts | None = None


@dataclass(frozen=True)
class _Dataset:
    name: str
    id: str


@dataclass(frozen=True)
class _Spec:
    datasets: tuple[_Dataset, ...] = ()
    max_tokens: int | None = None


@dataclass(frozen=True)
class _Data:
    n_tokens: int
    spec: _Spec
    fingerprint: str | None = None
    datasets: tuple[str, ...] = ()
    tokens: dict[str, int] = field(default_factory=dict)
    sequences: dict[str, int] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Manifest:
    method: str
    created: str
    seed: int
    config: _Config
    pair: _Pair
    data: _Data
    fingerprint: str
    wall_seconds: float
    peak_memory_bytes: int
    facts: dict[str, Any]
    notes: tuple[str, ...]
    command: str | None = None
    comparison: str | None = None
    git: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder; every value that is read from one is of the kind it should be.

    Raises:
        UserError: There is none, it is corrupt, or it has a newer schema.
    """
    path = folder / "manifest.json"
    remedy = REMEDY if path.exists() else "the run is not finished, or this is no result folder"
    with versioned_json(path, SCHEMA, remedy) as raw:
        of_kind(_Manifest, raw)
        return raw
