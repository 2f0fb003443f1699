"""All caches below an output folder: what they are, whether they are whole, and removing them."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from diffing.activations.cache import (
    CACHE,
    MANIFEST,
    SCHEMA,
    ListedFile,
    damaged_files,
    damaged_tokens,
    listed_files,
    read_quietly,
)
from diffing.core.errors import UserError
from diffing.core.runs import run_status

_DAY = 86400.0


@dataclass(frozen=True)
class CacheEntry:
    """One cache folder.

    Args:
        name: `<pair>/<key>`: its folder below `activations/`.
        folder: Where it lies.
        pair: Whose activations these are: model, organism, variant; "unknown" where it does not say.
        data: Its datasets.
        dtype: In which activations are stored.
        n_tokens: Tokens it covers; None where it does not say.
        whole: Slots that are whole.
        unfinished: Slots that are not.
        n_bytes: Space it takes.
        modified: When it was last written to, seconds since 1970.
        status: done, running, interrupted, failed, or other version.
    """

    name: str
    folder: Path
    pair: str
    data: str
    dtype: str
    n_tokens: int | None
    whole: tuple[str, ...]
    unfinished: tuple[str, ...]
    n_bytes: int
    modified: float
    status: str

    @property
    def age_days(self) -> float:
        """Days since it was last written to."""
        return max(0.0, (time.time() - self.modified) / _DAY)


def list_caches(base_dir: Path) -> list[CacheEntry]:
    """The caches below an output folder, the one written to last first."""
    folders = [p for p in base_dir.glob("activations/*/*") if p.is_dir() and not p.is_symlink()]
    return sorted((_entry(folder) for folder in folders), key=lambda e: (-e.modified, e.name))


def _entry(folder: Path) -> CacheEntry:
    facts = read_quietly(folder / CACHE) or {}
    slots = sorted(p for p in folder.glob("layer_*/*") if p.is_dir())
    whole = tuple(_name(p) for p in slots if (p / MANIFEST).exists())
    unfinished = tuple(_name(p) for p in slots if not (p / MANIFEST).exists())
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    stats = [p.stat() for p in files]
    key = facts.get("key")
    return CacheEntry(
        name=f"{folder.parent.name}/{folder.name}",
        folder=folder,
        pair=_pair(facts),
        data=_data(facts),
        dtype=str(key.get("dtype", "?")) if isinstance(key, dict) else "?",
        n_tokens=facts.get("n_tokens"),
        whole=whole,
        unfinished=unfinished,
        n_bytes=sum(s.st_size for s in stats),
        modified=max((s.st_mtime for s in stats), default=folder.stat().st_mtime),
        status=_status(folder, facts, unfinished),
    )


def _name(slot_folder: Path) -> str:
    return f"{slot_folder.parent.name}/{slot_folder.name}"


def _pair(facts: dict) -> str:
    pair = facts.get("pair")
    if not isinstance(pair, dict):
        return "unknown"
    variant = pair.get("variant")
    named = f"{pair.get('organism')} on {pair.get('model')}"
    return named if variant in (None, "default") else f"{named} ({variant})"


def _data(facts: dict) -> str:
    try:
        return ", ".join(d["name"] for d in facts["data"]["spec"]["datasets"])
    except (KeyError, TypeError):
        return "unknown"


def _status(folder: Path, facts: dict, unfinished: Sequence[str]) -> str:
    state = run_status(folder)[0]
    if state in ("running", "failed", "interrupted"):
        return state
    if facts and facts.get("schema") != SCHEMA:
        return "other version"
    return "interrupted" if unfinished or not facts else "done"


def chosen_caches(base_dir: Path, name: str | None, older_than_days: float | None) -> list[CacheEntry]:
    """The caches meant by `cache.name` (the start of a name or of its second part, or all) and `cache.older_than_days`.

    Raises:
        UserError: There is none of that name.
    """
    entries = list_caches(base_dir)
    if name is not None and name != "all":
        found = [e for e in entries if e.name.startswith(name) or e.folder.name.startswith(name)]
        if not found:
            names = ", ".join(e.name for e in entries) or "none"
            raise UserError(f"cache.name={name}: no cache below {base_dir} is called so; there are: {names}.")
        entries = found
    return [e for e in entries if older_than_days is None or e.age_days >= older_than_days]


def damaged_in(entry: CacheEntry) -> list[Path]:
    """Files of a cache that are missing or differ from their checksums; a manifest that cannot be read counts."""
    files: list[ListedFile] = []
    broken: list[Path] = []
    for slot in entry.whole:
        folder = entry.folder / slot
        try:
            files += listed_files(folder, read_quietly(folder / MANIFEST) or {})
        except (KeyError, TypeError):
            broken.append(folder / MANIFEST)
    return [*broken, *damaged_tokens(entry.folder, read_quietly(entry.folder / CACHE)), *damaged_files(files)]


def delete_cache(entry: CacheEntry) -> None:
    """Remove a cache. Its manifests go first, so that a deletion cut short leaves nothing that looks whole.

    Raises:
        UserError: A process is at work in it, or it is no cache of ours.
    """
    if entry.folder.parent.parent.name != "activations" or entry.folder.is_symlink():
        raise UserError(f"{entry.folder} is no cache below an activations folder; remove it by hand.")
    lock = FileLock(entry.folder / ".lock", timeout=0)
    try:
        with lock:
            for manifest in (*entry.folder.glob(f"layer_*/*/{MANIFEST}"), entry.folder / CACHE):
                manifest.unlink(missing_ok=True)
            shutil.rmtree(entry.folder)
    except Timeout:
        raise UserError(f"Another process is at work in {entry.folder}; wait for it, or stop it first.") from None
    if not any(entry.folder.parent.iterdir()):
        entry.folder.parent.rmdir()
