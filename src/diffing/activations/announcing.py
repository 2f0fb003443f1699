"""Says what a harvest takes before it starts, and refuses what the disk cannot hold."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from diffing.activations.cache import Cache
from diffing.activations.plan import Shard
from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.core.progress import say


@dataclass(frozen=True)
class Work:
    """What a harvest has to do.

    Args:
        n_tokens: Tokens of units that are not whole.
        n_bytes: Size of the shards that are not there.
        n_shards: Shards of a slot, those there included.
    """

    n_tokens: int
    n_bytes: int
    n_shards: int


def work_of(cache: Cache, slots: Sequence[Slot], width: int) -> Work:
    """What is to be done for `slots`.

    Raises:
        UserError: The disk cannot hold it.
    """
    units = cache.units(width)
    lacking = [[s for slot in slots for s in u.shards if not _exists(cache, slot, s)] for u in units]
    todo = [sum(s.n_tokens for s in u.shards) for u, shards in zip(units, lacking, strict=True) if shards]
    n_bytes = 2 * width * cache.dtype.itemsize * sum(s.n_tokens for shards in lacking for s in shards)
    free = shutil.disk_usage(cache.folder).free
    if n_bytes > free:
        raise UserError(
            f"The activations of {cache.plan.n_tokens:,} tokens at {len(slots)} places take {size_of(n_bytes)} and "
            f"{size_of(free)} are free in {cache.folder}; lower data.max_tokens or preprocessing.layers, "
            "set preprocessing.dtype=bfloat16, infrastructure.storage.base_dir=DIR, or preprocessing.store=live."
        )
    return Work(sum(todo), n_bytes, sum(len(u.shards) for u in units))


def announce(cache: Cache, slots: Sequence[Slot], work: Work, seconds_per_token: float) -> None:
    """Say how many tokens, bytes and minutes the work takes, by what the noise measurement took per token."""
    there = cache.plan.n_tokens - work.n_tokens
    done = f" ({there:,} are there already)" if there else ""
    say(
        f"Harvest of {', '.join(s.name for s in slots[:6])}{' …' if len(slots) > 6 else ''} from both models: "
        f"{work.n_tokens:,} tokens{done}, {size_of(work.n_bytes)} in {work.n_shards} shards per place, "
        f"about {seconds_per_token * work.n_tokens / 60:.1f} minutes. Into {cache.folder}"
    )


def _exists(cache: Cache, slot: Slot, shard: Shard) -> bool:
    return (cache.slot_folder(slot) / shard.file).exists()


def size_of(n_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    raise AssertionError
