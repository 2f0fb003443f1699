"""Says what a harvest takes before it starts, and refuses what the disk cannot hold."""

import shutil
import time
from collections.abc import Sequence

from diffing.activations.cache import Cache
from diffing.activations.plan import Shard
from diffing.activations.reading import PairReader
from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.core.progress import say

_PROBE_TOKENS = 512


def announce(cache: Cache, reader: PairReader, width: int) -> None:
    """Say how many tokens, bytes and minutes the work takes, and refuse what the disk cannot hold."""
    n_tokens, n_slots = cache.plan.n_tokens, len(reader.slots)
    units = cache.units(width)
    lacking = [[s for slot in reader.slots for s in u.shards if not _exists(cache, slot, s)] for u in units]
    todo = [sum(s.n_tokens for s in u.shards) for u, shards in zip(units, lacking, strict=True) if shards]
    n_bytes = 2 * width * cache.dtype.itemsize * sum(s.n_tokens for shards in lacking for s in shards)
    free = shutil.disk_usage(cache.folder).free
    if n_bytes > free:
        raise UserError(
            f"The activations of {n_tokens:,} tokens at {n_slots} places take {size_of(n_bytes)} and "
            f"{size_of(free)} are free in {cache.folder}; lower data.max_tokens or "
            "preprocessing.layers, set preprocessing.dtype=bfloat16, "
            "infrastructure.storage.base_dir=DIR, or preprocessing.store=live."
        )
    seconds = _seconds_per_token(cache, reader) * sum(todo)
    done = f" ({n_tokens - sum(todo):,} are there already)" if sum(todo) < n_tokens else ""
    say(
        f"Harvest of {', '.join(s.name for s in reader.slots[:6])}{' …' if n_slots > 6 else ''} from both models: "
        f"{sum(todo):,} tokens{done}, {size_of(n_bytes)} in {sum(len(u.shards) for u in units)} shards per place, "
        f"about {seconds / 60:.1f} minutes. Into {cache.folder}"
    )


def _exists(cache: Cache, slot: Slot, shard: Shard) -> bool:
    return (cache.slot_folder(slot) / shard.file).exists()


def _seconds_per_token(cache: Cache, reader: PairReader) -> float:
    """Measured on a small batch, after one that warms everything up."""
    lengths = [len(reader.corpus.sequences[i].ids) for i in cache.plan.blocks[0]]
    n = max(1, _PROBE_TOKENS // lengths[0])
    _read_through(reader, cache.plan.blocks[0][:n])
    started = time.perf_counter()
    _read_through(reader, cache.plan.blocks[0][:n])
    return (time.perf_counter() - started) / sum(lengths[:n])


def _read_through(reader: PairReader, sequences: Sequence[int]) -> None:
    """Read, and wait for the last row: a GPU hands out rows that it has yet to compute."""
    rows = reader.read(sequences)
    rows[reader.slots[-1]].finetuned_ND[-1].cpu()


def size_of(n_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    raise AssertionError
