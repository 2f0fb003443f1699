"""How fast stored activations are read: sequential, shuffled, one row per `__getitem__`; and the disk."""

import os
import time
from pathlib import Path
from typing import Any

from kl import spread

WIDTH, SEQUENCE, BATCH_ROWS, ONE_ROW_SECONDS = 576, 256, 2048, 3.0


def synthetic(folder: Path, n_tokens: int) -> Any:
    """A cache of `n_tokens` tokens of three datasets, as the harvest plans it."""
    import numpy as np

    from diffing.activations.cache import Cache, CacheKey
    from diffing.activations.plan import plan_blocks
    from diffing.core.settings import PreprocessingConfig
    from diffing.data.token_table import TokenTable

    n, settings = n_tokens // SEQUENCE, PreprocessingConfig()
    zeros, sequence_N = np.zeros(n * SEQUENCE, dtype=np.int64), np.repeat(np.arange(n), SEQUENCE)
    table = TokenTable(
        datasets=("pretraining", "chat", "training"),
        documents=np.arange(n),
        starts=np.arange(n + 1) * SEQUENCE,
        sequence_N=sequence_N,
        position_N=np.tile(np.arange(SEQUENCE), n),
        dataset_N=sequence_N * 3 // n,
        ids_N=zeros,
        role_N=zeros,
        is_template_N=zeros.astype(bool),
        is_special_N=zeros.astype(bool),
    )
    key = CacheKey("synthetic", str(n), settings.batch_tokens, "bfloat16")
    plan = plan_blocks(table, settings.batch_tokens)
    return Cache(folder, key, plan, settings.shard_bytes, settings.shard_tokens, "benchmark")


def write_rows(folder: Path, gigabytes: float) -> dict:
    """Fill a cache with random rows; it stays in the page cache."""
    import torch

    from diffing.activations.cache import CACHE, MANIFEST, SCHEMA
    from diffing.activations.shards import ShardWriter
    from diffing.core.files import write_json
    from diffing.core.layers import Slot

    n_tokens = int(gigabytes * 1e9) // (2 * 2 * WIDTH)
    cache, slot = synthetic(folder, n_tokens), Slot(0)
    units = cache.units(WIDTH)
    shards = [s for unit in units for s in unit.shards]
    rows_ND = torch.randn(max(s.n_tokens for s in shards), WIDTH).bfloat16()
    for shard in shards:
        path = cache.slot_folder(slot) / shard.file
        with ShardWriter(path, shard.n_tokens, WIDTH, torch.bfloat16, {}, {}) as writer:
            writer.add(rows_ND[: shard.n_tokens], -rows_ND[: shard.n_tokens])
            writer.close({})
    facts = {
        "schema": SCHEMA, "key": vars(cache.key), "width": WIDTH, "shard_limit": cache.limit(WIDTH),
        "n_tokens": cache.plan.n_tokens, "n_shards": len(shards), "tokens_sha256": "", "notes": [], "versions": {},
        "git": None, "pair": {"facts": {}}, "data": {}, "left_out": None, "comparable": None,
    }  # fmt: skip
    manifest = {
        "schema": SCHEMA, "slot": slot.name, "fingerprint": cache.slot_fingerprint(slot), "width": WIDTH,
        "n_tokens": cache.plan.n_tokens, "dtype": cache.key.dtype, "files": [], "kept": {}, "statistics": {},
        "noise": {}, "halved_batches": 0, "notes": [],
    }  # fmt: skip
    write_json(folder / CACHE, facts)
    write_json(cache.slot_folder(slot) / MANIFEST, manifest)
    n_rows = cache.plan.n_tokens
    (folder / "tokens").write_text(str(n_rows))
    return {"tokens": n_rows, "bytes": n_rows * 4 * WIDTH, "shards": len(shards)}


def measure(variant: str, folder: Path) -> dict:
    """Read rows of both models; every byte is copied at least once."""
    n_tokens = int((folder / "tokens").read_text())
    time_it = {"sequential": _sequential, "shuffled": _shuffled}.get(variant)
    if time_it is not None:
        seconds, rows = time_it(synthetic(folder, n_tokens))
    else:
        stored, _, order = variant.partition("_")
        seconds, rows = _one_by_one(folder, stored == "tensors", order == "shuffled")
    return {"seconds": seconds, "tokens": rows}


def _sequential(cache: Any) -> tuple[float, int]:
    import torch

    from diffing.activations.sources import DiskSource
    from diffing.core.layers import Slot

    held = torch.empty(2 * BATCH_ROWS, WIDTH, dtype=torch.bfloat16)
    started, n = time.perf_counter(), 0
    for block in DiskSource(cache, [Slot(0)], verify=False).blocks():
        for rows_ND in block.rows[Slot(0)]:
            held[: len(rows_ND)].copy_(rows_ND)
        n += len(block.token_N)
    return time.perf_counter() - started, n


def _shuffled(cache: Any) -> tuple[float, int]:
    from diffing.activations.shuffle import shuffled_rows
    from diffing.activations.sources import DiskSource
    from diffing.core.layers import Slot

    started, n = time.perf_counter(), 0
    for batch in shuffled_rows(DiskSource(cache, [Slot(0)], verify=False), Slot(0), BATCH_ROWS, seed=0):
        n += len(batch.token_N)
    return time.perf_counter() - started, n


class OneRow:
    """A map-style dataset: one row of both models per index, from mapped safetensors files.

    Args:
        folder: The cache.
        whole: Keep every mapped tensor at hand and index it; else read the row by a safetensors slice.
    """

    def __init__(self, folder: Path, whole: bool) -> None:
        import numpy as np
        from safetensors import safe_open

        files = [safe_open(p, framework="pt") for p in sorted(folder.glob("layer_*/*/shard_*.safetensors"))]
        get = "get_tensor" if whole else "get_slice"
        self._stored = [tuple(getattr(f, get)(name) for name in ("base", "finetuned")) for f in files]
        self._ends = np.cumsum([f.get_slice("base").get_shape()[0] for f in files])
        self._starts = self._ends - np.diff(self._ends, prepend=0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard = int(self._ends.searchsorted(index, side="right"))
        base, finetuned = self._stored[shard]
        row = index - int(self._starts[shard])
        return {"base": base[row], "finetuned": finetuned[row]}


def _one_by_one(folder: Path, whole: bool, shuffle: bool) -> tuple[float, int]:
    from torch.utils.data import DataLoader

    rows: Any = OneRow(folder, whole)
    started, n = time.perf_counter(), 0
    for batch in DataLoader(rows, batch_size=BATCH_ROWS, shuffle=shuffle):
        n += len(batch["base"])
        if time.perf_counter() - started > ONE_ROW_SECONDS:
            break
    return time.perf_counter() - started, n


def measure_disk(folder: Path, gigabytes: float, rounds: int) -> None:
    """Print how fast the temporary folder takes and gives bytes one after the other, past the page cache."""
    piece, path = os.urandom(2**24), folder / "disk"
    pieces = max(1, int(gigabytes * 1e9) // len(piece))
    speeds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        started = time.perf_counter()
        with open(path, "wb") as file:
            for _ in range(pieces):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            written = time.perf_counter()
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        read = time.perf_counter()
        with open(path, "rb", buffering=0) as file:
            while file.read(len(piece)):
                pass
        size = pieces * len(piece) / 1e9
        speeds[0].append(size / (written - started))
        speeds[1].append(size / (time.perf_counter() - read))
    path.unlink()
    print(f"disk: writes {spread(speeds[0])} GB/s, reads {spread(speeds[1])} GB/s")
