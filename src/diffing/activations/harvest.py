"""Reads a corpus through both models once and keeps the activations of chosen slots.

Work is done unit by unit; a unit's shards are whole or absent, so that an interrupted harvest goes on behind the last
whole one and ends with the same bytes. The models run in this thread; statistics, copies to the host and writing in
another.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from diffing.activations.announcing import Work, announce, work_of
from diffing.activations.cache import CACHE, MANIFEST, SCHEMA, STATISTICS, TOKENS, Cache
from diffing.activations.plan import Unit
from diffing.activations.reading import PairReader, measure_noise, sink_note
from diffing.activations.shards import open_shard
from diffing.activations.source import PairRows
from diffing.activations.statistics import PairStatistics
from diffing.activations.writing import Done, Kept, UnitWriter, found_shards
from diffing.core.files import atomic_path, sha256, write_json
from diffing.core.layers import Slot
from diffing.core.progress import Advance, bar, warn
from diffing.core.provenance import versions
from diffing.core.runs import RunState
from diffing.core.tables import write_table
from diffing.data.tokens import Corpus
from diffing.models.pair import ModelPair

_AHEAD = 2
_AHEAD_BYTES = 2**29


def harvest(
    pair: ModelPair,
    corpus: Corpus,
    cache: Cache,
    slots: Sequence[Slot],
    kept: Kept,
    described: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Make what is missing of `slots` in `cache`.

    Args:
        pair: Both models.
        corpus: The text, as the cache's plan has it.
        cache: Where activations go.
        slots: Where to read.
        kept: Which tokens the statistics count.
        described: What goes into `cache.json` besides: how models and text were named.
        notes: Sentences that readers of the cache should see.
        overwrite: Make `slots` again, whatever is there.

    Raises:
        UserError: Another process is at work there, the disk is full, or a sequence does not fit into memory.
    """
    cache.folder.mkdir(parents=True, exist_ok=True)
    with RunState(cache.folder):
        _clear(cache, slots, overwrite)
        missing = _repaired(cache, slots)
        if not missing:
            return
        reader = PairReader(pair, corpus, tuple(missing), cache.dtype)
        width = _begin(cache, reader, described or {}, notes)
        work = work_of(cache, missing, width)
        _Harvest(cache, reader, kept, width).run(work)


def _clear(cache: Cache, slots: Sequence[Slot], overwrite: bool) -> None:
    """Remove what an earlier process left half-written, and with `overwrite` the slots themselves."""
    for leftover in [*cache.folder.glob(".*.tmp"), *cache.folder.glob("layer_*/*/.*.tmp")]:
        leftover.unlink(missing_ok=True)
    if not overwrite:
        return
    is_usable = cache.is_usable()
    for slot in slots:
        (cache.slot_folder(slot) / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(cache.slot_folder(slot), ignore_errors=True)
    if not is_usable or not list(cache.folder.glob(f"layer_*/*/{MANIFEST}")):
        (cache.folder / CACHE).unlink(missing_ok=True)
        (cache.folder / TOKENS).unlink(missing_ok=True)


def _repaired(cache: Cache, slots: Sequence[Slot]) -> list[Slot]:
    """The slots to make; a slot with a damaged file loses that file and its manifest, and is among them."""
    missing = cache.missing(slots)
    whole = [slot for slot in slots if slot not in missing]
    for path in cache.damaged(whole):
        warn(f"{path} does not match its checksum; it is computed again.")
        if path == cache.folder / TOKENS:
            _rewrite_tokens(cache)
            continue
        slot = next(s for s in whole if cache.slot_folder(s) == path.parent)
        (path.parent / MANIFEST).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        if slot not in missing:
            missing.append(slot)
    return [slot for slot in slots if slot in missing]


def _rewrite_tokens(cache: Cache) -> None:
    """Make `tokens.parquet` anew; another version of the library may write other bytes."""
    facts = cache.facts()
    assert facts is not None
    write_table(cache.folder / TOKENS, _token_table(cache, cache.units(facts["width"])))
    if (found := sha256(cache.folder / TOKENS)) != facts["tokens_sha256"]:
        write_json(cache.folder / CACHE, {**facts, "tokens_sha256": found})


def _begin(cache: Cache, reader: PairReader, described: Mapping[str, Any], notes: Sequence[str]) -> int:
    """Write `tokens.parquet` and `cache.json` unless they are there; returns the width of an activation."""
    if (facts := cache.facts()) is not None:
        return facts["width"]
    for folder in cache.folder.glob("layer_*"):
        shutil.rmtree(folder)
    shortest = cache.plan.blocks[-1][-1]
    rows = reader.read([shortest], reader.slots[:1])[reader.slots[0]]
    width = rows.base_ND.shape[1]
    limit = cache.limit(width)
    write_table(cache.folder / TOKENS, _token_table(cache, cache.units(width)))
    write_json(
        cache.folder / CACHE,
        {
            "schema": SCHEMA,
            "key": vars(cache.key),
            "width": width,
            "shard_limit": limit,
            "n_tokens": cache.plan.n_tokens,
            "n_shards": sum(len(u.shards) for u in cache.units(width)),
            "tokens_sha256": sha256(cache.folder / TOKENS),
            "notes": list(notes),
            "versions": versions(),
            **described,
        },
    )
    return width


def _token_table(cache: Cache, units: Sequence[Unit]) -> Any:
    """The token table in the order of the stored rows, with the shard, row and block of each."""
    import pyarrow as pa

    parts = [(s, p) for u in units for s in u.shards for p in s.parts]
    rows = [cache.plan.token_rows[p.block][p.start : p.start + p.tokens] for _, p in parts]
    table = cache.plan.tokens.to_arrow().take(pa.array(np.concatenate(rows)))
    counts = [p.tokens for _, p in parts]
    shard = pa.array(np.repeat([s.number for s, _ in parts], counts).astype(np.int32))
    row = pa.array(np.concatenate([np.arange(p.row, p.row + p.tokens) for _, p in parts]).astype(np.int32))
    block = pa.array(np.repeat([p.block for _, p in parts], counts).astype(np.int32))
    return table.append_column("shard", shard).append_column("row", row).append_column("block", block)


class _Harvest:
    """One pass over the units that are not whole."""

    def __init__(self, cache: Cache, reader: PairReader, kept: Kept, width: int) -> None:
        self._cache, self._reader, self._kept, self._width = cache, reader, kept, width
        self._units = cache.units(width)
        self._is_kept = cache.plan.tokens.kept(kept.bos_id, kept.skip_first_tokens, kept.skip_template_tokens)
        self._empty = PairStatistics.empty(width)
        self._done: dict[Slot, list[Done]] = {slot: [] for slot in reader.slots}

    def run(self, work: Work) -> None:
        """Measure the noise, say what the work takes, compute what is missing, then write the manifests."""
        sequences = [s for block in self._cache.plan.blocks for s in block]
        started = time.perf_counter()
        noise = measure_noise(self._reader, sequences, self._kept.skip_first_tokens, self._cache.plan.most_padded)
        seconds = time.perf_counter() - started
        announce(self._cache, self._reader.slots, work, seconds / max(1, noise.n_tokens))
        with (
            bar("harvest: reading both models", self._cache.plan.n_tokens, "tokens") as advance,
            ThreadPoolExecutor(1, thread_name_prefix="shards") as writing,
        ):
            for unit in self._units:
                self._unit(unit, writing, advance)
        for slot in self._reader.slots:
            self._finish(slot, noise.by_slot[slot])

    def _unit(self, unit: Unit, writing: ThreadPoolExecutor, advance: Advance) -> None:
        """Make a unit's missing shards: models here, everything else in the other thread."""
        wanted = {slot: found_shards(self._cache, slot, unit, self._kept) for slot in self._reader.slots}
        todo = tuple(slot for slot, found in wanted.items() if found is None)
        if todo:
            halved_before = self._reader.n_halved
            with ExitStack() as stack:
                sinks = {
                    s: stack.enter_context(UnitWriter(self._cache, s, unit, self._kept, self._empty)) for s in todo
                }
                pending: list[Future[Any]] = []
                stack.callback(wait, pending)
                for block in unit.blocks:
                    rows = self._reader.read(self._cache.plan.blocks[block], todo)
                    n_bytes = sum(r.nbytes for pair in rows.values() for r in pair)
                    halved = self._reader.n_halved - halved_before
                    pending.append(writing.submit(self._store, sinks, block, rows, halved))
                    del rows
                    while len(pending) > _AHEAD or len(pending) * n_bytes > _AHEAD_BYTES:
                        pending[0].result()
                        del pending[0]
                    advance(self._cache.plan.sizes[block])
                for future in pending:
                    future.result()
            wanted |= {slot: sink.done for slot, sink in sinks.items()}
        else:
            advance(sum(self._cache.plan.sizes[b] for b in unit.blocks))
        for slot, done in wanted.items():
            self._done[slot] += done or []

    def _store(self, sinks: Mapping[Slot, UnitWriter], block: int, rows: Mapping[Slot, PairRows], halved: int) -> None:
        token_N = self._cache.plan.token_rows[block]
        keep_N = torch.from_numpy(self._is_kept[token_N])
        for slot, sink in sinks.items():
            sink.add(block, rows[slot], keep_N, halved)

    def _finish(self, slot: Slot, noise: Mapping[str, float]) -> None:
        """Write a slot's merged statistics and its manifest."""
        folder, done = self._cache.slot_folder(slot), self._done[slot]
        total = self._empty
        for part in done:
            total = total.merge(part.statistics)
        with atomic_path(folder / STATISTICS) as temporary:
            temporary.write_bytes(save(total.to_tensors()))
        files = [
            {"file": d.file, "bytes": d.facts.n_bytes, "sha256": d.facts.sha256, "n_tokens": d.n_tokens} for d in done
        ]
        size = (folder / STATISTICS).stat().st_size
        files.append({"file": STATISTICS, "bytes": size, "sha256": sha256(folder / STATISTICS), "n_tokens": 0})
        halved = sum(d.n_halved for d in done)
        lost = _not_finite(slot, total)
        for sentence in lost:
            warn(sentence)
        notes = [*lost, *_sink_notes(self._cache, slot, self._units[0], self._kept)]
        if halved:
            notes.append(f"{slot.name}: {halved} batches did not fit into memory and were read in halves.")
        write_json(
            folder / MANIFEST,
            {
                "schema": SCHEMA,
                "slot": slot.name,
                "fingerprint": self._cache.slot_fingerprint(slot),
                "n_tokens": self._cache.plan.n_tokens,
                "width": self._width,
                "dtype": self._cache.key.dtype,
                "files": files,
                "kept": vars(self._kept),
                "statistics": total.summary(),
                "noise": dict(noise),
                "halved_batches": halved,
                "notes": notes,
            },
        )


def _sink_notes(cache: Cache, slot: Slot, unit: Unit, kept: Kept) -> list[str]:
    """A sentence on attention sinks, from the first block as it is stored."""
    norms = []
    for shard, part in ((s, p) for s in unit.shards for p in s.parts if p.block == 0):
        rows = open_shard(cache.slot_folder(slot) / shard.file, "it is computed again").rows
        norms.append(rows.base_ND[part.row : part.row + part.tokens].float().norm(dim=-1).numpy())
    position_N = cache.plan.tokens.position_N[cache.plan.token_rows[0]]
    note = sink_note(np.concatenate(norms), position_N, kept.skip_first_tokens, slot)
    return [note] if note else []


def _not_finite(slot: Slot, total: PairStatistics) -> list[str]:
    counts = {"base": total.n_not_finite_base, "finetuned": total.n_not_finite_finetuned}
    return [
        f"{slot.name}: {n:,} kept tokens of the {side} model hold NaN or infinite values; they enter no statistic."
        for side, n in counts.items()
        if n
    ]
