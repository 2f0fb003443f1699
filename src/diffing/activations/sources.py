"""The two sources of activations: a cache on disk, and the models as they run."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from diffing.activations.cache import Cache
from diffing.activations.plan import BlockPlan, Shard, ShardPart
from diffing.activations.reading import PairReader, measure_noise, sink_note
from diffing.activations.shards import ShardFile, open_shard
from diffing.activations.source import ActivationSource, Block, PairRows
from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.data.token_table import TokenTable

_OPEN_SHARDS = 64


class DiskSource(ActivationSource):
    """Activations from a cache; every slot must be whole.

    Args:
        cache: The cache.
        slots: What to read from it.
        verify: Compare every file with its checksum first.

    Raises:
        UserError: A slot is not whole, or a shard is damaged.
    """

    def __init__(self, cache: Cache, slots: Sequence[Slot], verify: bool = True) -> None:
        if missing := cache.missing(slots):
            names = ", ".join(s.name for s in missing)
            raise UserError(f"No activations of {names} in {cache.folder}; make them with: {cache.remake}.")
        self._cache, self._slots = cache, tuple(slots)
        self._facts = cache.facts() or {}
        self._manifests = {s: cache.manifest(s) or {} for s in slots}
        if verify and (damaged := cache.damaged(slots)):
            more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
            raise UserError(
                f"{damaged[0]}{more} does not match its checksum: it is cut off or damaged; "
                f"only what is damaged is computed again by: {cache.remake}."
            )
        self._places = _places(cache.units(self.width), len(cache.plan.blocks))
        self._open: OrderedDict[tuple[Slot, int], ShardFile] = OrderedDict()

    @property
    def tokens(self) -> TokenTable:
        """All tokens of the corpus."""
        return self._cache.plan.tokens

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Where activations can be read."""
        return self._slots

    @property
    def width(self) -> int:
        """Numbers per activation."""
        return self._facts["width"]

    @property
    def dtype(self) -> torch.dtype:
        """In which activations are stored."""
        return self._cache.dtype

    @property
    def block_tokens(self) -> tuple[np.ndarray, ...]:
        """Token table rows of every block."""
        return self._cache.plan.token_rows

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the reader of a result."""
        return tuple(dict.fromkeys([*self._facts["notes"], *(n for m in self._manifests.values() for n in m["notes"])]))

    @property
    def facts(self) -> Mapping[str, Any]:
        """Dtype, slots, and how the cache was made."""
        return {
            **_facts(self),
            "store": "disk",
            "cache": "/".join(self._cache.folder.parts[-3:]),
            "made_by": self._facts["versions"],
        }

    @property
    def pair_facts(self) -> dict[str, Any]:
        """Facts of the pair that the cache was made from."""
        return self._facts["pair"]["facts"]

    def statistics(self, slot: Slot) -> Mapping[str, Any]:
        """Summary of the kept tokens' statistics at this slot, as the manifest has it."""
        return self._manifests[slot]["statistics"]

    def noise(self, slot: Slot) -> Mapping[str, float]:
        """The base against itself, as measured when the cache was made."""
        return self._manifests[slot]["noise"]

    def blocks(self, slots: Sequence[Slot] | None = None, order: Sequence[int] | None = None) -> Iterator[Block]:
        """Blocks from the mapped files; tensors are views of them where a block lies in one shard."""
        chosen = tuple(slots if slots is not None else self._slots)
        for number in order if order is not None else range(len(self._places)):
            rows = {slot: self._rows(slot, number) for slot in chosen}
            yield Block(number, self.block_tokens[number], rows)

    def _rows(self, slot: Slot, number: int) -> PairRows:
        pieces = [self._piece(slot, shard, part) for shard, part in self._places[number]]
        if len(pieces) == 1:
            return pieces[0]
        return PairRows(torch.cat([p.base_ND for p in pieces]), torch.cat([p.finetuned_ND for p in pieces]))

    def _piece(self, slot: Slot, shard: Shard, part: ShardPart) -> PairRows:
        key = (slot, shard.number)
        if key in self._open:
            self._open.move_to_end(key)
        else:
            path = self._cache.slot_folder(slot) / shard.file
            self._open[key] = open_shard(path, f"make it again with: {self._cache.remake}")
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        rows = self._open[key].rows
        here = slice(part.row, part.row + part.tokens)
        return PairRows(rows.base_ND[here], rows.finetuned_ND[here])


class LiveSource(ActivationSource):
    """Activations from the models as they run; nothing is stored.

    Args:
        reader: Reads the pair.
        plan: Blocks of the corpus.
        skip_first_tokens: Leading positions left out of the noise measurement and of warnings.
        notes: Sentences known beforehand.
    """

    def __init__(self, reader: PairReader, plan: BlockPlan, skip_first_tokens: int, notes: Sequence[str] = ()) -> None:
        self._reader, self._plan, self._skip = reader, plan, skip_first_tokens
        self._given_notes = tuple(notes)
        self._noise: dict[Slot, dict[str, float]] | None = None
        self._sinks: dict[Slot, str | None] = {}
        self._width: int | None = None

    @property
    def tokens(self) -> TokenTable:
        """All tokens of the corpus."""
        return self._plan.tokens

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Where activations can be read."""
        return self._reader.slots

    @property
    def width(self) -> int:
        """Numbers per activation."""
        if self._width is None:
            one = self._plan.blocks[-1][-1]
            self._width = self._reader.read([one], self.slots[:1])[self.slots[0]].base_ND.shape[1]
        return self._width

    @property
    def dtype(self) -> torch.dtype:
        """In which activations are handed out."""
        return self._reader.dtype

    @property
    def block_tokens(self) -> tuple[np.ndarray, ...]:
        """Token table rows of every block."""
        return self._plan.token_rows

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the reader of a result; on what was read so far."""
        halved = self._reader.n_halved
        said = [f"{halved} batches did not fit into memory and were read in halves"] if halved else []
        return (*self._given_notes, *(n for n in self._sinks.values() if n), *said)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Dtype and slots."""
        return {**_facts(self), "store": "live"}

    def noise(self, slot: Slot) -> Mapping[str, float]:
        """The base against itself; measured once for all slots."""
        if self._noise is None:
            sequences = [s for block in self._plan.blocks for s in block]
            self._noise = measure_noise(self._reader, sequences, self._skip, self._plan.most_padded).by_slot
        return self._noise[slot]

    def blocks(self, slots: Sequence[Slot] | None = None, order: Sequence[int] | None = None) -> Iterator[Block]:
        """Blocks as the models give them, on the models' device."""
        for number in order if order is not None else range(len(self._plan.blocks)):
            rows = self._reader.read(self._plan.blocks[number], slots)
            token_N = self.block_tokens[number]
            for slot, pair in rows.items():
                self._width = pair.base_ND.shape[1]
                if number == 0 and slot not in self._sinks:
                    norms_N = pair.base_ND.float().norm(dim=-1).cpu().numpy()
                    self._sinks[slot] = sink_note(norms_N, self.tokens.position_N[token_N], self._skip, slot)
            yield Block(number, token_N, rows)


def _facts(source: DiskSource | LiveSource) -> dict[str, Any]:
    return {
        "dtype": str(source.dtype).removeprefix("torch."),
        "slots": [s.name for s in source.slots],
        "n_tokens": sum(len(t) for t in source.block_tokens),
    }


def _places(units: Sequence[Any], n_blocks: int) -> list[list[tuple[Shard, ShardPart]]]:
    """For every block, the shards and the rows in them that hold it, in order."""
    places: list[list[tuple[Shard, ShardPart]]] = [[] for _ in range(n_blocks)]
    for unit in units:
        for shard in unit.shards:
            for part in shard.parts:
                places[part.block].append((shard, part))
    return places
