"""Writes one slot's share of a unit, and takes up what an earlier process wrote."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from diffing.activations.cache import SCHEMA, Cache
from diffing.activations.plan import Shard, Unit
from diffing.activations.shards import ShardFacts, ShardFile, ShardWriter, open_shard, written_shard
from diffing.activations.source import PairRows
from diffing.activations.statistics import PairStatistics
from diffing.core.config import fingerprint
from diffing.core.errors import UserError
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
    """Writes one slot's shards of one unit, one after the other, so that a single file is open at a time.

    A context manager: what is not finished when it is left is removed.
    """

    def __init__(self, cache: Cache, slot: Slot, unit: Unit, kept: Kept, empty: PairStatistics) -> None:
        self.done: list[Done] = []
        self._cache, self._slot, self._kept, self._empty = cache, slot, kept, empty
        self._parts = deque((shard, part) for shard in unit.shards for part in shard.parts)
        self._writer: ShardWriter | None = None
        self._statistics, self._n_halved = empty, 0

    def __enter__(self) -> "UnitWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)

    def add(self, block: int, rows: PairRows, keep_N: Tensor, n_halved: int) -> None:
        """Take a block's rows: statistics where they lie, then to the host and into the file.

        Args:
            block: The unit's blocks, in order.
            rows: Its activations.
            keep_N: Which of them statistics count.
            n_halved: How many batches of the unit were read in halves so far.
        """
        while self._parts and self._parts[0][1].block == block:
            shard, part = self._parts.popleft()
            self._writer = writer = self._writer or self._begin(shard)
            here = slice(part.start, part.start + part.tokens)
            base, finetuned = rows.base_ND[here], rows.finetuned_ND[here]
            keep = keep_N[here].to(base.device)
            self._statistics = self._statistics.merge(PairStatistics.of(base[keep], finetuned[keep]))
            writer.add(on_host(base), on_host(finetuned))
            if part is shard.parts[-1]:
                self._end(shard, writer, n_halved)

    def _begin(self, shard: Shard) -> ShardWriter:
        examples = {**self._empty.to_tensors(), _HALVED: torch.tensor(0)}
        return ShardWriter(
            self._cache.slot_folder(self._slot) / shard.file, shard.n_tokens, len(self._empty.base.mean_D),
            self._cache.dtype, examples, _metadata(self._cache, self._slot, shard, self._kept),
        )  # fmt: skip

    def _end(self, shard: Shard, writer: ShardWriter, n_halved: int) -> None:
        statistics, halved = self._statistics, n_halved - self._n_halved
        facts = writer.close({**statistics.to_tensors(), _HALVED: torch.tensor(halved)})
        self.done.append(Done(shard.file, facts, statistics, shard.n_tokens, halved))
        self._writer, self._statistics, self._n_halved = None, self._empty, n_halved


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
    """What an earlier process finished of a unit; None unless all of it is there as it was written."""
    found = []
    for shard in unit.shards:
        path = cache.slot_folder(slot) / shard.file
        opened = _opened(path, _metadata(cache, slot, shard, kept))
        if opened is None:
            return None
        facts = written_shard(path)
        if facts is None:
            warn(f"{path} was damaged since it was written; it is computed again.")
            return None
        statistics = PairStatistics.from_tensors({k: v for k, v in opened.statistics.items() if k != _HALVED})
        found.append(Done(shard.file, facts, statistics, shard.n_tokens, int(opened.statistics[_HALVED])))
    return found
