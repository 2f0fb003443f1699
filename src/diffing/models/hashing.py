"""Content hashes of files, remembered by path, size and modification time."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from diffing.core.files import cache_dir, sha256, write_json


def remembered_sha256(path: Path) -> str:
    """Hex SHA-256 of one file, from memory while its path, size and modification time stay the same."""
    return _hashes([path])[path]


def content_hash(root: Path, files: Iterable[Path]) -> str:
    """Hex SHA-256 over names (relative to `root`) and contents of `files`, in sorted order."""
    digest = hashlib.sha256()
    for path, value in _hashes(sorted(files)).items():
        digest.update(f"{path.relative_to(root).as_posix()}\0{value}\n".encode())
    return digest.hexdigest()


def _hashes(paths: Iterable[Path]) -> dict[Path, str]:
    """Hashes by path; new ones are stored in the cache folder, and one that cannot be written only costs time."""
    store = cache_dir() / "hashes.json"
    known = _read(store)
    found: dict[Path, str] = {}
    fresh: dict[str, str] = {}
    for path in paths:
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        found[path] = known.get(key) or fresh.setdefault(key, sha256(path))
    if fresh:
        with contextlib.suppress(OSError):
            write_json(store, {**_read(store), **fresh})
    return found


def _read(store: Path) -> dict[str, str]:
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
