"""Whether a finished result still speaks of what is there: its inputs, its options, its schema.

Only what is cheap to see is compared: files on this disk by their modification time, options by parsing them with
the method that is installed now. Sources on a hub are named by commit in the fingerprint and do not change.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from diffing.core.errors import UserError
from diffing.core.method import load_method
from diffing.core.runs import SCHEMA
from diffing.core.specs import is_embedded, is_local

_READ = (".safetensors", ".gguf", ".json", ".jinja", ".model", ".jsonl", ".parquet", ".csv", ".txt")


@dataclass(frozen=True)
class _Inputs:
    """What of a manifest decides whether it is stale."""

    created: float
    schema: int
    method: str
    options: dict[str, Any]
    paths: tuple[tuple[str, str], ...]


@dataclass
class Staleness:
    """Judges results; looks at each path once per listing."""

    _inputs: dict[Path, tuple[int, _Inputs | None]] = field(default_factory=dict)
    _changed: dict[str, float | None] = field(default_factory=dict)
    _options: dict[str, str | None] = field(default_factory=dict)

    def begin(self) -> None:
        """Start a listing: files are looked at anew."""
        self._changed = {}

    def learn(self, folder: Path, modified_ns: int, manifest: dict[str, Any]) -> None:
        """Take from a manifest that was read anyway, not older than `modified_ns`, what `reason` would read again."""
        self._inputs[folder] = (modified_ns, _inputs(manifest))

    def reason(self, folder: Path) -> str | None:
        """Why the result in `folder` is stale, in one sentence; None when it is not."""
        inputs = self._of(folder)
        if inputs is None:
            return None
        if inputs.schema < SCHEMA:
            return f"It was written with results schema {inputs.schema}; this version writes {SCHEMA}."
        if (problem := self._unfit(inputs)) is not None:
            return problem
        for what, path in inputs.paths:
            changed = self._last_change(path)
            if changed is not None and changed > inputs.created + 1:
                return f"Files of the {what} {path} have changed since this run."
        return None

    def _of(self, folder: Path) -> _Inputs | None:
        path = folder / "manifest.json"
        try:
            stamp = path.stat().st_mtime_ns
            if folder not in self._inputs or self._inputs[folder][0] != stamp:
                self._inputs[folder] = (stamp, _inputs(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError):
            return None
        return self._inputs[folder][1]

    def _unfit(self, inputs: _Inputs) -> str | None:
        key = json.dumps([inputs.method, inputs.options], sort_keys=True, default=str)
        if key not in self._options:
            self._options[key] = _options_problem(inputs.method, inputs.options)
        return self._options[key]

    def _last_change(self, path: str) -> float | None:
        if path not in self._changed:
            self._changed[path] = _last_change(Path(path).expanduser())
        return self._changed[path]


def _inputs(manifest: dict[str, Any]) -> _Inputs | None:
    try:
        created = datetime.fromisoformat(manifest["created"]).timestamp()
        method = manifest["config"]["diffing"]["method"]
        return _Inputs(created, manifest["schema"], manifest["method"], method, tuple(_local_paths(manifest)))
    except (LookupError, TypeError, ValueError):
        return None


def _local_paths(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    pair, facts = manifest["pair"], manifest["pair"].get("facts") or {}
    named = [
        (what, "/".join(filter(None, (pair[f"{side}_id"], (facts.get(side) or {}).get("subfolder")))))
        for side, what in (("base", "base model"), ("finetuned", "finetuned model"))
    ]
    named += [("text", dataset["id"]) for dataset in (manifest["data"].get("spec") or {}).get("datasets") or ()]
    return [(what, path) for what, path in named if path and not is_embedded(path) and is_local(path)]


def _last_change(path: Path) -> float | None:
    """When the newest of the files that are read was modified; None when there are none."""
    try:
        if path.is_file():
            return path.stat().st_mtime
        times = [p.stat().st_mtime for p in path.iterdir() if p.suffix in _READ]
    except OSError:
        return None
    return max(times, default=None)


def _options_problem(method: str, options: dict[str, Any]) -> str | None:
    try:
        config = load_method(method).config
    except UserError:
        return f"The method {method} is not installed; only what it wrote in the shared shape can be shown."
    unknown = sorted(set(options) - set(config.model_fields))
    missing = sorted(set(config.model_fields) - set(options))
    if unknown or missing:
        changed = ", ".join([*(f"{n} is gone" for n in unknown), *(f"{n} is new" for n in missing)])
        return f"The options of {method} have changed since this run: {changed}."
    return None
