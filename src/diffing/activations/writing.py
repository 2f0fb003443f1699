"""Writes one slot's share of a unit, and takes up what an earlier process wrote."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffing.activations.cache import SCHEMA, Cache
from diffing.activations.plan import Shard, Unit
from diffing.activations.shards import ShardFacts, ShardFile, ShardWriter, open_shard
from diffing.activations.source import PairRows
from diffing.activations.statistics import PairStatistics
from diffing.core.config import fingerprint
from diffing.core.errors import UserError
from diffing.core.files import sha256
from diffing.core.layers import Slot
from diffing.core.progress import warn

_HALVED = "halved_batches"


@dataclass(frozen=True)
class Kept:
    """Which tokens the statistics of a cache count.

    Args:
        bos_id: Leading tokens of this id are left out.
        skip_first_tokens: Leading positions left out.
        skip_template_tokens: Whether template tokens are.
    """

    bos_id: int | None
    skip_first_tokens: int = 1
    skip_template_tokens: bool = False


@dataclass(frozen=True)
class Done:
    """A slot's share of a finished shard."""

    file: str
    facts: ShardFacts
    statistics: PairStatistics
    n_tokens: int
    n_halved: int


class UnitWriter:
    """Writes one slot's shards of one unit."""

    def __init__(
        self, cache: Cache, slot: Slot, unit: Unit, kept: Kept, empty: PairStatistics, stack: ExitStack
    ) -> None:
        folder, examples = cache.slot_folder(slot), {**empty.to_tensors(), _HALVED: torch.tensor(0)}
        width = len(empty.base.mean_D)
        self._shards = unit.shards
        self._statistics = {s.number: empty for s in unit.shards}
        self._writers = {
            s.number: stack.enter_context(
                ShardWriter(folder / s.file, s.n_tokens, width, cache.dtype, examples, _metadata(cache, slot, s, kept))
            )
            for s in unit.shards
        }

    def add(self, block: int, rows: PairRows, keep_N: Tensor) -> None:
        """Take a block's rows: statistics where they lie, then to the host and into the file."""
        for shard in self._shards:
            for part in (p for p in shard.parts if p.block == block):
                here = slice(part.start, part.start + part.tokens)
                base, finetuned, keep = (
                    rows.base_ND[here],
                    rows.finetuned_ND[here],
                    keep_N[here].to(rows.base_ND.device),
                )
                some = PairStatistics.of(base[keep], finetuned[keep])
                self._statistics[shard.number] = self._statistics[shard.number].merge(some)
                self._writers[shard.number].add(on_host(base), on_host(finetuned))

    def close(self, halved: int) -> list[Done]:
        """Finish the shards."""
        done = []
        for shard in self._shards:
            statistics = self._statistics[shard.number]
            values = {**statistics.to_tensors(), _HALVED: torch.tensor(halved)}
            facts = self._writers[shard.number].close(values)
            done.append(Done(shard.file, facts, statistics, shard.n_tokens, halved))
            halved = 0
        return done


def on_host(rows_ND: Tensor) -> Tensor:
    """The rows on the CPU; from a GPU through pinned memory, without stopping the thread that feeds it."""
    if rows_ND.device.type != "cuda":
        return rows_ND.cpu()
    held = torch.empty(rows_ND.shape, dtype=rows_ND.dtype, pin_memory=True)
    held.copy_(rows_ND, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(rows_ND.device))
    copied.synchronize()
    return held


def _metadata(cache: Cache, slot: Slot, shard: Shard, kept: Kept) -> dict[str, str]:
    """What a shard's header says of it; a shard that says otherwise is not taken for this one."""
    parts = [[p.block, p.start, p.tokens, p.row] for p in shard.parts]
    content = {"key": vars(cache.key), "slot": slot.name, "parts": parts, "kept": vars(kept), "schema": SCHEMA}
    return {"diffing": fingerprint(content), "slot": slot.name, "shard": str(shard.number)}


def _opened(path: Path, metadata: Mapping[str, str]) -> ShardFile | None:
    if not path.exists():
        return None
    try:
        opened = open_shard(path, "it is computed again")
    except UserError as error:
        warn(str(error))
        return None
    return opened if opened.metadata == metadata else None


def found_shards(cache: Cache, slot: Slot, unit: Unit, kept: Kept) -> list[Done] | None:
    """What an earlier process finished of a unit; None unless all of it."""
    found = []
    for shard in unit.shards:
        path = cache.slot_folder(slot) / shard.file
        opened = _opened(path, _metadata(cache, slot, shard, kept))
        if opened is None:
            return None
        statistics = PairStatistics.from_tensors({k: v for k, v in opened.statistics.items() if k != _HALVED})
        facts = ShardFacts(path.stat().st_size, sha256(path))
        found.append(Done(shard.file, facts, statistics, shard.n_tokens, int(opened.statistics[_HALVED])))
    return found
