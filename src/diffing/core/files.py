"""Whole files or none: atomic writing, sizes, and sentences for what a disk can refuse."""

import errno
import glob
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from diffing.core.errors import DiskError, UserError

T = TypeVar("T")

_CACHE_REMEDY = "free some space or set DIFFING_CACHE=DIR"


@contextmanager
def disk_errors(folder: Path, remedy: str) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into a `DiskError`.

    Args:
        folder: The folder being written, named in the message.
        remedy: The option or action that helps, e.g. "set infrastructure.storage.base_dir=DIR".
    """
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EACCES: "writing there is not permitted",
            errno.EPERM: "writing there is not permitted",
            errno.EROFS: "the file system is read-only",
            errno.ENOTDIR: "a part of the path is a file, not a folder",
            errno.EEXIST: "a file of that name is in the way",
            errno.EFBIG: "a file grew past the allowed size",
            errno.ENAMETOOLONG: "a name in the path is too long",
            errno.EISDIR: "a folder of that name is in the way",
        }
        if error.errno not in reasons:
            raise
        raise DiskError(f"Cannot write to {folder}: {reasons[error.errno]}; {remedy}.") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed over `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """JSON values in which NaN and infinities, which JSON has no words for, are null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file is missing, unreadable or not JSON; `remedy` says what to do.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {remedy}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is corrupt ({error}); {remedy}.") from None


@contextmanager
def versioned_json(path: Path, schema: int, remedy: str) -> Iterator[dict[str, Any]]:
    """The object in a JSON file, to take values from; what turns out to be missing or of another kind is corrupt.

    Args:
        path: The file.
        schema: The newest that can be read, as the object's own `schema` says.
        remedy: What to do about a file that is missing or corrupt.

    Raises:
        UserError: The file is missing, corrupt or of a newer schema.
    """
    raw = read_json(path, remedy)
    if not isinstance(raw, dict) or not isinstance(raw.get("schema"), int):
        raise UserError(f"{path} is corrupt (it has no schema number); {remedy}.")
    if raw["schema"] > schema:
        raise UserError(f"{path} has schema {raw['schema']}, this version reads up to {schema}; update diffing.")
    try:
        yield raw
    except KeyError as error:
        raise UserError(f"{path} is corrupt (it has no {error.args[0]}); {remedy}.") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is corrupt ({error}); {remedy}.") from None


def of_kind(kind: type[T], raw: Any) -> T:
    """JSON values as `kind` says they are: objects become dataclasses, lists tuples; keys it does not name are let be.

    Args:
        kind: A dataclass, or whatever else pydantic knows, of dataclasses, tuples, dicts, strings and numbers.
        raw: As JSON was read.

    Raises:
        ValueError: In one line, what is missing or of another kind, and where.
    """
    text = json.dumps(raw, allow_nan=False)
    try:
        # As JSON, where strict means that "9" is no number and true no 1, yet an object may become a dataclass.
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        problem = (
            "missing" if first["type"] == "missing" else f"not right: {first['msg'][:1].lower()}{first['msg'][1:]}"
        )
        raise ValueError(f"{place or 'the whole'} is {problem}") from None


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def sha256(path: Path) -> str:
    """Hex SHA-256 of one file, read in chunks."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def cache_dir() -> Path:
    """Folder for what is fetched or converted once.

    DIFFING_CACHE, else XDG_CACHE_HOME/diffing, else ~/.cache/diffing.
    """
    if explicit := os.environ.get("DIFFING_CACHE"):
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "diffing"


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Run `build(temporary folder)` under a lock and rename the folder to `target`, unless it exists.

    Two processes that start together build once; a killed one leaves nothing that looks whole.
    """
    if target.is_dir():
        return target
    with disk_errors(target.parent, _CACHE_REMEDY):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if target.is_dir():
                return target
            _remove_leftovers(target)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
            try:
                temporary.mkdir()
                build(temporary)
                temporary.rename(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return target


def _remove_leftovers(target: Path) -> None:
    for stale in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
