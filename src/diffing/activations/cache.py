"""A cache on disk: where it lies, what it holds, and whether it can be used.

`activations/<pair fingerprint>/<key>/` holds `cache.json`, `tokens.parquet` and a folder per layer and site with its
shards, statistics and manifest. A manifest is written last: a slot without one is not whole. Nothing in these files
depends on when, or in how many attempts, they were made.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffing.activations.plan import BlockPlan, Unit, cut_into_units, shard_limit
from diffing.core.config import fingerprint
from diffing.core.errors import UserError
from diffing.core.files import read_json, sha256
from diffing.core.layers import Slot
from diffing.core.progress import bar

SCHEMA = 1
_FACTS = {"key", "width", "shard_limit", "tokens_sha256", "notes", "versions"}
_MANIFEST = {"fingerprint", "files", "statistics", "noise", "notes"}
CACHE, MANIFEST, TOKENS, STATISTICS = "cache.json", "manifest.json", "tokens.parquet", "statistics.safetensors"
_LONG = 2**30


@dataclass(frozen=True)
class CacheKey:
    """Everything that determines a cache's numbers.

    Args:
        pair: Fingerprint of the pair: contents of models, adapter and tokenizer, dtypes, attention, sharing.
        corpus: Fingerprint of the tokens and their masks.
        batch_tokens: Padded tokens of a batch.
        dtype: In which activations are stored.
    """

    pair: str
    corpus: str
    batch_tokens: int
    dtype: str

    def folder(self, base_dir: Path) -> Path:
        """The cache's folder below an output folder."""
        key = {"corpus": self.corpus, "batch_tokens": self.batch_tokens, "dtype": self.dtype}
        return base_dir / "activations" / self.pair / fingerprint(key)


@dataclass(frozen=True)
class Cache:
    """One cache folder and the plan it is made by.

    Args:
        folder: Where it lies.
        key: What determines its numbers.
        plan: Blocks of the corpus.
        shard_bytes: Most bytes of a shard, where the cache does not exist yet.
        shard_tokens: Most tokens of a shard, likewise.
        remake: The command that makes what is missing, for messages.
    """

    folder: Path
    key: CacheKey
    plan: BlockPlan
    shard_bytes: int
    shard_tokens: int
    remake: str

    def slot_folder(self, slot: Slot) -> Path:
        """Where a slot's shards lie."""
        return self.folder / slot.name

    @property
    def dtype(self) -> torch.dtype:
        """In which activations are stored."""
        return getattr(torch, self.key.dtype)

    def facts(self) -> dict[str, Any] | None:
        """`cache.json`; None when there is none.

        Raises:
            UserError: It was made by another version of diffing, or is corrupt.
        """
        path = self.folder / CACHE
        if not path.exists():
            return None
        remedy = f"make the cache again with: {self.remake} overwrite=true"
        found = read_json(path, remedy)
        check_schema(found, self.folder, self.remake)
        if not found.keys() >= _FACTS or found["key"] != vars(self.key):
            raise UserError(f"{path} is corrupt (it does not describe this cache); {remedy}.")
        return found

    def is_usable(self) -> bool:
        """Whether there is a `cache.json` that can be read; without one nothing beside it can be used.

        Raises:
            UserError: It was made by a newer version of diffing.
        """
        found = read_quietly(self.folder / CACHE) or {}
        if isinstance(found.get("schema"), int) and found["schema"] > SCHEMA:
            check_schema(found, self.folder, self.remake)
        try:
            return self.facts() is not None
        except UserError:
            return False

    def limit(self, width: int) -> int:
        """Most tokens of a shard: as the cache was begun, else as the settings say."""
        if (facts := self.facts()) is not None:
            return facts["shard_limit"]
        return shard_limit(self.shard_bytes, self.shard_tokens, width, self.dtype.itemsize)

    def units(self, width: int) -> tuple[Unit, ...]:
        """The pieces of work that make the cache."""
        return cut_into_units(self.plan, self.limit(width))

    def manifest(self, slot: Slot) -> dict[str, Any] | None:
        """A slot's manifest; None when the slot is not whole.

        Raises:
            UserError: It was made by another version of diffing, or is corrupt.
        """
        path = self.slot_folder(slot) / MANIFEST
        if not path.exists():
            return None
        remedy = f"make it again with: {self.remake} overwrite=true"
        found = read_json(path, remedy)
        check_schema(found, self.slot_folder(slot), self.remake)
        if not found.keys() >= _MANIFEST or found["fingerprint"] != self.slot_fingerprint(slot):
            raise UserError(f"{path} is corrupt (it does not describe {slot.name} of this cache); {remedy}.")
        return found

    def slot_fingerprint(self, slot: Slot) -> str:
        """Of everything that determines a slot's rows."""
        return fingerprint({**vars(self.key), "slot": slot.name})

    def missing(self, slots: Sequence[Slot]) -> list[Slot]:
        """The slots that are not whole."""
        if self.facts() is None:
            return list(slots)
        return [slot for slot in slots if self.manifest(slot) is None]

    def damaged(self, slots: Sequence[Slot]) -> list[Path]:
        """The token table and files of whole slots, if missing or unlike their checksums; reads every byte."""
        listed = [entry for slot in slots for entry in self._files(slot)]
        return [*damaged_tokens(self.folder, self.facts()), *damaged_files(listed)]

    def _files(self, slot: Slot) -> list["ListedFile"]:
        folder, manifest = self.slot_folder(slot), self.manifest(slot)
        return [] if manifest is None else listed_files(folder, manifest)


@dataclass(frozen=True)
class ListedFile:
    """A file as a manifest lists it."""

    path: Path
    n_bytes: int
    sha256: str


def listed_files(folder: Path, manifest: Mapping[str, Any]) -> list[ListedFile]:
    """The files that a slot's manifest lists."""
    return [ListedFile(folder / f["file"], f["bytes"], f["sha256"]) for f in manifest["files"]]


def damaged_files(files: Sequence[ListedFile]) -> list[Path]:
    """Those that are missing, of another size, or of another content."""
    total = sum(f.n_bytes for f in files)
    found = []
    if total < _LONG:
        return [f.path for f in files if not _is_whole(f)]
    with bar("checking the cache", total / 2**20, "MiB") as advance:
        for file in files:
            if not _is_whole(file):
                found.append(file.path)
            advance(file.n_bytes / 2**20)
    return found


def damaged_tokens(folder: Path, facts: Mapping[str, Any] | None) -> list[Path]:
    """The token table of a cache, if it is missing or differs from its checksum; `facts` is `cache.json`."""
    path, expected = folder / TOKENS, (facts or {}).get("tokens_sha256")
    if expected is None or (path.exists() and sha256(path) == expected):
        return []
    return [path]


def _is_whole(file: ListedFile) -> bool:
    try:
        return file.path.stat().st_size == file.n_bytes and sha256(file.path) == file.sha256
    except OSError:
        return False


def check_schema(found: object, folder: Path, remake: str) -> None:
    """Refuse a cache of another version.

    Raises:
        UserError: Says whether it is older or newer and what to do.
    """
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema == SCHEMA:
        return
    if isinstance(schema, int) and schema > SCHEMA:
        raise UserError(
            f"The cache {folder} was made by a newer version of diffing (schema {schema}, this one reads {SCHEMA}); "
            "upgrade diffing, or choose another infrastructure.storage.base_dir."
        )
    raise UserError(
        f"The cache {folder} was made by an older version of diffing (schema {schema}, this one reads {SCHEMA}); "
        f"make it again with: {remake} overwrite=true."
    )


def read_quietly(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
