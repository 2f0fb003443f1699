"""Weights on disk, read by name and in row chunks; no module is built and no file is mapped into memory.

Reads go through plain files: pages of a mapped file would count as memory of the process, a whole model of them.
"""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffing.core.errors import UserError
from diffing.models.folders import weight_names
from diffing.models.weight_places import place_of, weight_place

CHUNK_BYTES = 2**23  # of float32 rows at a time; buffers beyond 32 MB are mapped anew each time, which costs more
_FETCH_AGAIN = "fetch or write it again"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Significand bits, the leading one included.
_BITS = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file.

    Args:
        name: As the file calls it.
        shape: Its shape.
        dtype: As the format names it: F32, BF16, U8, …
        path: The file.
        start: Byte of the file at which it begins.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path
    start: int

    @property
    def is_float(self) -> bool:
        """Whether its numbers are weights as they stand; packed and 8-bit ones are not."""
        return self.dtype in _DTYPES

    @property
    def n_rows(self) -> int:
        """Length of the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def rounding_floor(self) -> float:
        """About the relative Frobenius norm of the noise that rounding to this dtype makes: 2^−(p+1) at p bits."""
        return 2.0 ** -(_BITS[self.dtype] + 1)


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of a model's or adapter's safetensors files.

    Args:
        label: What messages call the model.
        tensors: By name.
    """

    label: str
    tensors: dict[str, StoredTensor]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor, in the file's dtype.

        Raises:
            UserError: The file is damaged.
        """
        tensor = self.tensors[name]
        dtype = _DTYPES[tensor.dtype]
        shape = (stop - start, *tensor.shape[1:])
        row_bytes = math.prod(tensor.shape[1:]) * dtype.itemsize
        wanted = (stop - start) * row_bytes
        try:
            with open(tensor.path, "rb") as file:
                raw = np.fromfile(file, np.uint8, wanted, offset=tensor.start + start * row_bytes)
        except OSError:
            raise self._damaged(tensor) from None
        if len(raw) != wanted:
            raise self._damaged(tensor)
        values = torch.from_numpy(raw).view(dtype)
        return values.reshape(shape) if tensor.shape else values

    def read(self, name: str) -> Tensor:
        """A whole tensor in float32.

        Raises:
            UserError: The file is damaged, or a value is NaN or infinite.
        """
        return torch.cat([rows for _, rows in self.chunks(name)]).reshape(self.tensors[name].shape)

    def chunks(self, name: str, n_rows: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """The first rows of a tensor (None: all) in chunks, each with the number of its first row, in float32.

        Raises:
            UserError: The file is damaged, or a value is NaN or infinite.
        """
        shape = self.tensors[name].shape
        for start, stop in row_cuts(shape if n_rows is None or not shape else (n_rows, *shape[1:])):
            rows = self.rows(name, start, stop).float()
            if not torch.isfinite(rows).all():
                raise UserError(
                    f"Tensor {name} of model {self.label} holds NaN or infinite values; the file is damaged."
                )
            yield start, rows

    @cached_property
    def by_place(self) -> dict[str, str]:
        """Names by the part that different ways of saving a model share; those that would collide are left as they are.

        Some files name what others call `model.layers.0…` or `transformer.h.0…` without its first words.
        """
        short: dict[str, list[str]] = {}
        for name in self.tensors:
            short.setdefault(place_of(name), []).append(name)
        return {key if len(names) == 1 else name: name for key, names in short.items() for name in names}

    def find(self, name: str) -> StoredTensor | None:
        """The tensor of this name, or the one that another way of saving calls so."""
        own = name if name in self.tensors else self.by_place.get(place_of(name))
        return None if own is None else self.tensors[own]

    @cached_property
    def embedding(self) -> StoredTensor | None:
        """The table of token embeddings of a model that stores no head: head and embedding are one matrix (tied)."""
        places = {name: weight_place(name) for name in self.tensors}
        tables = [self.tensors[n] for n, p in places.items() if p.part == "embedding" and n.endswith(".weight")]
        has_head = any(p.part == "head" for p in places.values())
        return tables[0] if len(tables) == 1 and not has_head else None

    def _damaged(self, tensor: StoredTensor) -> UserError:
        return UserError(
            f"Tensor {tensor.name} of model {self.label} cannot be read: {tensor.path.name} is damaged; {_FETCH_AGAIN}."
        )


def row_cuts(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Ranges of rows that hold about `CHUNK_BYTES` in float32 each."""
    n_rows = shape[0] if shape else 1
    step = max(1, CHUNK_BYTES // max(4 * math.prod(shape[1:]), 1))
    return [(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


def open_weights(folder: Path, label: str) -> WeightFiles | None:
    """The weights of a folder; None when it holds none.

    Args:
        folder: Of a model or adapter: one safetensors file, or several with an index.
        label: What messages call it.

    Raises:
        UserError: A file of several is missing, or one is damaged.
    """
    paths = [folder / name for name in weight_names(folder, _FETCH_AGAIN)]
    missing = [p.name for p in paths if not p.is_file()]
    if missing:
        if len(paths) == 1:
            return None
        raise UserError(f"Model {label} lacks {len(missing)} of its {len(paths)} weight files (such as {missing[0]}).")
    found: dict[str, StoredTensor] = {}
    for path in paths:
        found |= _header(path, label)
    return WeightFiles(label, found)


def _header(path: Path, label: str) -> dict[str, StoredTensor]:
    """The tensors a file says it holds, compared with its size."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError("longer than the file")
            header = json.loads(file.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        found = {
            name: StoredTensor(name, tuple(entry["shape"]), entry["dtype"], path, 8 + length + entry["data_offsets"][0])
            for name, entry in entries.items()
        }
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f"Model {label}: {path.name} is no safetensors file; {_FETCH_AGAIN}.") from None
    if end != size:
        raise UserError(f"Model {label}: {path.name} is damaged ({size:,} bytes instead of {end:,}); {_FETCH_AGAIN}.")
    return found
