"""How a result was made: rows for people, and the whole record as text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from diffing.display.numbers import duration, number, size

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """A titled group of label–value rows."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Record:
    """A part of the manifest as YAML."""

    title: str
    text: str


def facts(manifest: Manifest) -> list[Facts]:
    """Models, data and run; what the manifest does not say is left out."""
    groups = [
        Facts("Base model", _source(manifest, "base")),
        Facts("Finetuned model", _source(manifest, "finetuned")),
        Facts("Text", _text(manifest)),
        Facts("Run", _run(manifest)),
    ]
    return [g for g in groups if g.rows]


def records(manifest: Manifest) -> list[Record]:
    """The configuration, and everything known of the pair, the data and the method's own facts."""
    rest = {k: manifest[k] for k in ("pair", "data", "facts", "machine") if manifest.get(k)}
    return [
        Record("The full configuration", yaml.safe_dump(manifest["config"], sort_keys=False, allow_unicode=True)),
        Record("All facts on record", yaml.safe_dump(rest, sort_keys=False, allow_unicode=True)),
    ]


def _source(manifest: Manifest, side: str) -> tuple[tuple[str, str], ...]:
    pair = manifest["pair"]
    known = _at(pair, "facts", side) or {}
    return _rows(
        ("id", pair.get(f"{side}_id")),
        ("kind", _at(pair, "facts", "kind") if side == "finetuned" else None),
        ("revision", known.get("revision")),
        ("subfolder", known.get("subfolder")),
        ("origin", known.get("origin")),
        ("licence", _at(known, "card", "licence")),
        ("content hash", known.get("content_hash")),
        ("computed in", _at(pair, "facts", "dtype", side)),
        ("parameters", _count(_at(pair, "facts", "n_params", side))),
        ("weights held", _at(pair, "facts", "sharing") if side == "finetuned" else None),
    )


def _text(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    data = manifest["data"]
    sets = [(name, _dataset(data, name)) for name in data.get("datasets", ())]
    return _rows(*sets, ("tokens in all", _count(data.get("n_tokens"))), ("fingerprint", data.get("fingerprint")))


def _dataset(data: Manifest, name: str) -> str:
    counts = [(_at(data, key, name), key) for key in ("documents", "sequences", "tokens")]
    return ", ".join(f"{number(n)} {what}" for n, what in counts if n is not None) or "used"


def _run(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    versions = manifest.get("versions") or {}
    machine = manifest.get("machine") or {}
    return _rows(
        ("method", manifest["method"]),
        ("seed", manifest["seed"]),
        ("made", str(manifest["created"]).replace("T", " ").replace("+00:00", " UTC")),
        ("took", duration(manifest.get("wall_seconds"))),
        ("peak memory", size(manifest.get("peak_memory_bytes"))),
        ("machine", ", ".join(f"{k} {v}" for k, v in machine.items()) or None),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items()) or None),
        ("git", manifest.get("git")),
        ("pair fingerprint", manifest["pair"].get("fingerprint")),
        ("run fingerprint", manifest.get("fingerprint")),
    )


def _at(mapping: Any, *keys: str) -> Any:
    for key in keys:
        mapping = mapping.get(key) if isinstance(mapping, Mapping) else None
    return mapping


def _count(n: int | None) -> str | None:
    return None if n is None else number(n)


def _rows(*rows: tuple[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((label, str(value)) for label, value in rows if value is not None)
