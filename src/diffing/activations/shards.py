"""Shard files: safetensors with the aligned rows of both models and their statistics, written whole or not at all.

Sizes are known before anything is computed, so rows go straight to their place in the file: memory does not grow
with the size of a shard or the number of layers. The last tensor is a checksum of everything before it, so that a file
that no manifest lists yet can be told from one that was damaged since.
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from diffing.activations.source import PairRows
from diffing.core.errors import UserError

DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint8: "U8",
}
_BASE, _FINETUNED, _STATISTICS, _CHECKSUM = "base", "finetuned", "statistics.", "checksum"
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_CHUNK = 2**24


@dataclass(frozen=True)
class ShardFacts:
    """A written shard: size and checksum of its file."""

    n_bytes: int
    sha256: str


class ShardWriter:
    """Writes one shard to a temporary file beside `path`; `close` makes it `path`, and without it nothing is left.

    Args:
        path: Where the shard goes.
        n_rows: Rows of each model.
        width: Numbers per row.
        dtype: Of the rows.
        statistics: Names and shapes of the statistics that `close` will be given, as example tensors.
        metadata: Kept in the file's header.
    """

    def __init__(
        self,
        path: Path,
        n_rows: int,
        width: int,
        dtype: torch.dtype,
        statistics: Mapping[str, Tensor],
        metadata: Mapping[str, str],
    ) -> None:
        self._path, self._n_rows, self._width, self._dtype = path, n_rows, width, dtype
        shapes = {f"{_STATISTICS}{k}": (v.dtype, tuple(v.shape)) for k, v in statistics.items()}
        shapes |= dict.fromkeys((_BASE, _FINETUNED), (dtype, (n_rows, width)))
        shapes[_CHECKSUM] = (torch.uint8, (_CHECKSUM_BYTES,))
        header, self._offsets, self._size = _layout(shapes, metadata)
        self._written = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        self._file = open(self._temporary, "w+b")  # noqa: SIM115 (closed by close or __exit__)
        try:
            self._reserve()
            self._write(0, header)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def add(self, base_ND: Tensor, finetuned_ND: Tensor) -> None:
        """Append rows of both models, on the CPU and in the shard's dtype."""
        for rows_ND in (base_ND, finetuned_ND):
            assert rows_ND.shape == (len(base_ND), self._width), "rows are not those of this shard"
            assert rows_ND.dtype == self._dtype, "rows are not in the shard's dtype"
        assert self._written + len(base_ND) <= self._n_rows, "more rows than the shard has"
        at = self._written * self._width * self._dtype.itemsize
        self._write(self._offsets[_BASE] + at, _bytes(base_ND))
        self._write(self._offsets[_FINETUNED] + at, _bytes(finetuned_ND))
        self._written += len(base_ND)

    def close(self, statistics: Mapping[str, Tensor]) -> ShardFacts:
        """Add the statistics and the checksum, flush, and give the file its name."""
        assert self._written == self._n_rows, "the shard is not full"
        for name, value in statistics.items():
            self._write(self._offsets[f"{_STATISTICS}{name}"], _bytes(value))
        digest = _digest(self._file.fileno(), self._size - _CHECKSUM_BYTES)
        checksum = digest.digest()
        self._write(self._offsets[_CHECKSUM], checksum)
        digest.update(checksum)
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self._path)
        return ShardFacts(self._size, digest.hexdigest())

    def _reserve(self) -> None:
        """Take the space now: a disk that is too full says so before any row is written."""
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._file.fileno(), 0, self._size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
        self._file.truncate(self._size)

    def _write(self, offset: int, data: memoryview | bytes) -> None:
        view = memoryview(data).cast("B")
        while view:
            n = os.pwrite(self._file.fileno(), view[:_CHUNK], offset)
            view, offset = view[n:], offset + n


def written_shard(path: Path) -> ShardFacts | None:
    """What `close` said of a shard, from its file; None where the file is not as it was written."""
    with open(path, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        if size < _CHECKSUM_BYTES:
            return None
        digest = _digest(handle.fileno(), size - _CHECKSUM_BYTES)
        checksum = os.pread(handle.fileno(), _CHECKSUM_BYTES, size - _CHECKSUM_BYTES)
    if checksum != digest.digest():
        return None
    digest.update(checksum)
    return ShardFacts(size, digest.hexdigest())


def _digest(file: int, n_bytes: int) -> "hashlib._Hash":
    """SHA-256 of the first `n_bytes` of an open file."""
    digest, at = hashlib.sha256(), 0
    while at < n_bytes and (data := os.pread(file, min(_CHUNK, n_bytes - at), at)):
        digest.update(data)
        at += len(data)
    return digest


def _layout(
    shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int], int]:
    """Header bytes, absolute offset of every tensor, and size of the file, as the safetensors format has it."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offset, starts = 0, {}
    for name, (dtype, shape) in shapes.items():
        n_bytes = torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, offset + n_bytes]}
        starts[name] = offset
        offset += n_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64 + 56)
    header = struct.pack("<Q", len(text)) + text
    return header, {k: len(header) + v for k, v in starts.items()}, len(header) + offset


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]


@dataclass(frozen=True)
class ShardFile:
    """An opened shard; rows are views of the mapped file (written to, they change in memory only)."""

    rows: PairRows
    statistics: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def open_shard(path: Path, remedy: str) -> ShardFile:
    """Map a shard into memory.

    Raises:
        UserError: It is missing, cut off, or no shard of ours; `remedy` says what to do.
    """
    try:
        with open(path, "rb") as handle:
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError:
        raise UserError(f"Shard {path} is missing; {remedy}.") from None
    except ValueError:
        raise UserError(f"Shard {path} is empty; {remedy}.") from None
    entries, first = _header(mapped, path, remedy)
    metadata = entries.pop("__metadata__", {})
    try:
        tensors = {name: _mapped(mapped, entry, first) for name, entry in entries.items()}
        rows = PairRows(tensors[_BASE], tensors[_FINETUNED])
    except (LookupError, ValueError, TypeError, ArithmeticError, RuntimeError):
        raise UserError(f"Shard {path} is cut off or damaged; {remedy}.") from None
    statistics = {k.removeprefix(_STATISTICS): v.clone() for k, v in tensors.items() if k.startswith(_STATISTICS)}
    if rows.base_ND.numel() and hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED)
    return ShardFile(rows, statistics, metadata)


def _header(mapped: mmap.mmap, path: Path, remedy: str) -> tuple[dict, int]:
    with contextlib.suppress(struct.error, ValueError, UnicodeDecodeError):
        (length,) = struct.unpack_from("<Q", mapped, 0)
        entries = json.loads(mapped[8 : 8 + length])
        if length and isinstance(entries, dict):
            return entries, 8 + length
    raise UserError(f"Shard {path} is cut off or damaged; {remedy}.")


def _mapped(mapped: mmap.mmap, entry: Mapping, first: int) -> Tensor:
    dtype = {name: d for d, name in DTYPES.items()}[entry["dtype"]]
    start, stop = entry["data_offsets"]
    shape = torch.Size(entry["shape"])
    if start < 0 or first + stop > len(mapped) or stop - start != shape.numel() * dtype.itemsize:
        raise ValueError("offsets outside the file")
    if not shape.numel():
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mapped, dtype=dtype, count=shape.numel(), offset=first + start).view(shape)
