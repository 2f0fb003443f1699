"""Which runs there are below an output folder: finished ones by their manifests, others by their state.

A thousand runs are listed in well under a second: folders are walked at the depth where runs lie, and what was
read of a run is kept until its files change.
"""

import json
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from diffing.core.errors import UserError
from diffing.core.result import Result
from diffing.core.runs import run_status
from diffing.core.staleness import Staleness

Status = Literal["done", "running", "failed", "interrupted", "stale", "damaged"]
STATUSES: tuple[Status, ...] = ("done", "running", "failed", "interrupted", "stale", "damaged")


class Headline(NamedTuple):
    """A result's first headline number."""

    name: str
    value: float | None
    unit: str


@dataclass(frozen=True)
class Entry:
    """One run folder.

    Args:
        id: Its path below `results/`, which names it in links.
        folder: Where it is.
        model: Base model, as the folder is called.
        organism: Organism, as the folder is called, without the variant.
        variant: Variant; `default` when the folder names none.
        method: Method.
        status: `stale` is a finished run whose inputs or options have changed since.
        reason: Why it failed, is stale or damaged.
        when: When it was finished, or last heard of; seconds since 1970.
        headline: First headline number of a finished run.
        n_tokens: Tokens that were read.
        seed: Seed.
        base_id: Source of the base.
        finetuned_id: Source of the finetuned model.
        training_id: Source of the organism's training text.
        origins: Where base and finetuned model come from: hub, local, embedded, gguf.
        null_pair: Kind of null pair, or `none`.
    """

    id: str
    folder: Path
    model: str
    organism: str
    variant: str
    method: str
    status: Status
    reason: str | None = None
    when: float = 0.0
    headline: Headline | None = None
    n_tokens: int | None = None
    seed: int | None = None
    base_id: str | None = None
    finetuned_id: str | None = None
    training_id: str | None = None
    origins: tuple[str | None, str | None] = (None, None)
    null_pair: str = "none"

    @property
    def is_readable(self) -> bool:
        """Whether there is a result to look at."""
        return self.status in ("done", "stale")

    @property
    def label(self) -> str:
        """Organism and variant."""
        return self.organism if self.variant == "default" else f"{self.organism} · {self.variant}"


@dataclass
class Catalog:
    """The runs below an output folder; reads anew only what changed.

    Args:
        base_dir: The output folder; need not exist yet.
    """

    base_dir: Path
    _known: dict[Path, tuple[Any, Entry]] = field(default_factory=dict)
    _staleness: Staleness = field(default_factory=Staleness)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def entries(self) -> list[Entry]:
        """Every run folder, newest first; browser sessions ask one after the other."""
        with self._lock:
            return self._entries()

    def _entries(self) -> list[Entry]:
        self._staleness.begin()
        known: dict[Path, tuple[Any, Entry]] = {}
        for folder in _run_folders(self.base_dir / "results"):
            stamp = _stamp(folder / "manifest.json"), _stamp(folder / "summary.json")
            old = self._known.get(folder)
            if stamp[0] is not None and old is not None and old[0] == stamp:
                known[folder] = old
            elif (entry := self._read(folder, stamp[0])) is not None:
                known[folder] = (stamp, entry)
        self._known = known
        entries = [self._judged(entry) for _, entry in known.values()]
        return sorted(entries, key=lambda e: (-e.when, e.id))

    def _read(self, folder: Path, manifest: Any) -> Entry | None:
        entry = _placed(folder, self.base_dir / "results")
        if manifest is not None:
            try:
                result = Result(folder)
            except UserError as error:
                return replace(entry, reason=str(error), when=_modified(folder))
            self._staleness.learn(folder, manifest[0], result.manifest)
            return _finished(entry, result.manifest)
        status, reason = run_status(folder)
        if status in ("none", "done"):
            return None
        state = folder / "state.json"
        return replace(entry, status=status, reason=reason, when=state.stat().st_mtime if state.exists() else 0.0)

    def _judged(self, entry: Entry) -> Entry:
        if entry.status != "done":
            return entry
        reason = self._staleness.reason(entry.folder)
        return entry if reason is None else replace(entry, status="stale", reason=reason)


def newest(entries: Iterable[Entry], **wanted: str) -> Entry | None:
    """The newest entry whose fields equal `wanted`; readable ones before others."""
    fitting = [e for e in entries if all(getattr(e, k) == v for k, v in wanted.items())]
    return max(fitting, key=lambda e: (e.is_readable, e.when), default=None)


def _run_folders(results: Path) -> Iterator[Path]:
    """Folders at `results/<model>/<organism>/<method>/<fingerprint>`."""
    level = [str(results)]
    for _ in range(4):
        level = [entry.path for folder in level for entry in _folders(folder)]
    yield from map(Path, level)


def _folders(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted((e for e in found if e.is_dir() and not e.name.startswith(".")), key=lambda e: e.name)
    except OSError:
        return []


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _placed(folder: Path, results: Path) -> Entry:
    model, subject, method, fingerprint = folder.relative_to(results).parts
    organism, _, variant = subject.partition("+")
    name = f"{model}/{subject}/{method}/{fingerprint}"
    return Entry(name, folder, model, organism, variant or "default", method, "damaged")


def _finished(entry: Entry, manifest: dict[str, Any]) -> Entry:
    pair, config = manifest["pair"], manifest["config"]
    facts = pair.get("facts") or {}
    return replace(
        entry,
        organism=pair["organism"],
        variant=pair["variant"],
        status="done",
        reason=None,
        when=_seconds(manifest["created"], entry.folder),
        headline=_headline(entry.folder),
        n_tokens=manifest["data"]["n_tokens"],
        seed=manifest["seed"],
        base_id=pair["base_id"],
        finetuned_id=pair["finetuned_id"],
        training_id=_training(manifest),
        origins=tuple((facts.get(side) or {}).get("origin") for side in ("base", "finetuned")),  # type: ignore[arg-type]
        null_pair=str(config.get("null_pair", "none")),
    )


def _training(manifest: dict[str, Any]) -> str | None:
    sets = ((manifest["data"].get("spec") or {}).get("datasets")) or []
    return next((s.get("id") for s in sets if isinstance(s, dict) and s.get("name") == "training"), None)


def _headline(folder: Path) -> Headline | None:
    try:
        first = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["scalars"][0]
        return Headline(str(first["name"]), first["value"], str(first["unit"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _seconds(created: str, folder: Path) -> float:
    """When a run was finished: manifests say it to the second, their files' times order those of one second."""
    modified = _modified(folder)
    try:
        said = datetime.fromisoformat(created).timestamp()
    except ValueError:
        return modified
    return said + min(max(modified - said, 0.0), 0.999)


def _modified(folder: Path) -> float:
    try:
        return (folder / "manifest.json").stat().st_mtime
    except OSError:
        return 0.0
