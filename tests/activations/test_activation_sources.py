"""Disk and live sources give the same blocks; damage is named; what is handed out can be written to."""

import os

import numpy as np
import pytest
import torch

from diffing.activations import harvest as harvest_module
from diffing.activations import sources
from diffing.activations.reading import PairReader
from diffing.activations.sources import DiskSource, LiveSource
from diffing.core.errors import UserError
from diffing.core.layers import Slot

SLOTS = (Slot(0), Slot(1, "mlp"), Slot(2))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def both(request, tiny_pair, make_corpus, make_harvest, tmp_path_factory):
    """A disk source of small shards and a live source of the same pair and text."""
    dtype, pair, corpus = request.param, tiny_pair(), make_corpus()
    cache = make_harvest(tmp_path_factory.mktemp("both"), pair, corpus, SLOTS, dtype=dtype, shard_tokens=9)
    reader = PairReader(pair, corpus, SLOTS, getattr(torch, dtype))
    return DiskSource(cache, SLOTS), LiveSource(reader, cache.plan, 1)


def assert_same(one, other):
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.number == theirs.number
        assert np.array_equal(mine.token_N, theirs.token_N)
        assert list(mine.rows) == list(theirs.rows)
        for slot, rows in mine.rows.items():
            for a, b in zip(rows, theirs.rows[slot], strict=True):
                assert a.dtype == b.dtype
                assert torch.equal(a, b)


def test_disk_and_live_agree_to_the_bit(both):
    disk, live = both
    assert_same(list(disk.blocks()), list(live.blocks()))
    assert (disk.width, disk.dtype, disk.slots) == (live.width, live.dtype, live.slots)
    assert len(disk.block_tokens) == len(live.block_tokens) > 3
    for mine, theirs in zip(disk.block_tokens, live.block_tokens, strict=True):
        assert np.array_equal(mine, theirs)
    assert np.array_equal(disk.tokens.ids_N, live.tokens.ids_N)
    for slot in SLOTS:
        assert disk.noise(slot) == live.noise(slot)
    shared = {k: v for k, v in disk.facts.items() if k not in ("store", "cache", "made_by")}
    assert shared == {k: v for k, v in live.facts.items() if k != "store"}
    assert (disk.facts["store"], live.facts["store"]) == ("disk", "live")


def test_rows_belong_to_the_tokens_they_are_said_to(both, tiny_pair):
    disk, _ = both
    seen = []
    for block in disk.blocks([Slot(0)]):
        assert np.array_equal(block.token_N, disk.block_tokens[block.number])
        assert len(block.rows[Slot(0)].base_ND) == len(block.token_N)
        seen += block.token_N.tolist()
    assert sorted(seen) == list(range(len(disk.tokens)))


def test_the_order_and_the_slots_are_as_asked(both):
    order = [3, 0, 3, 1]
    for source in both:
        every = {b.number: b for b in source.blocks()}
        found = list(source.blocks([Slot(2)], order))
        assert [b.number for b in found] == order
        for block in found:
            assert list(block.rows) == [Slot(2)]
            assert torch.equal(block.rows[Slot(2)].base_ND, every[block.number].rows[Slot(2)].base_ND)
        assert list(source.blocks([Slot(2)], [])) == []
    assert_same(*(list(source.blocks((Slot(2), Slot(0)), order)) for source in both))


def test_blocks_over_several_shards_are_put_together(both):
    disk, live = both
    shards = [len(places) for places in disk._places]
    assert max(shards) > 1, "no block of this test lies in several shards"
    widest = int(np.argmax(shards))
    assert_same(list(disk.blocks(order=[widest])), list(live.blocks(order=[widest])))


def test_several_iterations_at_once(both):
    disk, _ = both
    forth, back = disk.blocks(), disk.blocks(order=range(len(disk.block_tokens) - 1, -1, -1))
    found = list(zip(forth, back, strict=True))
    assert_same([a for a, _ in found], [b for _, b in found][::-1])


def test_few_files_are_held_open(both, monkeypatch):
    from diffing.activations import sources

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("no /proc")
    disk, live = both
    monkeypatch.setattr(sources, "_OPEN_SHARDS", 2)
    disk._open.clear()
    before = len(os.listdir("/proc/self/fd"))
    assert_same(list(disk.blocks()), list(live.blocks()))
    assert len(disk._open) <= 2
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_shard_that_goes_while_it_is_read_is_named(tiny_pair, make_corpus, make_harvest, tmp_path):
    cache = make_harvest(tmp_path, tiny_pair(), make_corpus(), shard_tokens=20)
    source = DiskSource(cache, (Slot(1),))
    blocks = source.blocks()
    next(blocks)
    last = sorted(cache.slot_folder(Slot(1)).glob("shard_*"))[-1]
    last.unlink()
    with pytest.raises(UserError, match=rf"{last.name} is missing; make it again with: python main.py again"):
        list(blocks)


def test_slots_that_are_not_whole_are_named(tiny_pair, make_corpus, make_harvest, make_cache, tmp_path):
    corpus = make_corpus()
    cache = make_cache(tmp_path, corpus)
    with pytest.raises(UserError, match="No activations of layer_01/residual, layer_02/mlp in"):
        DiskSource(cache, (Slot(1), Slot(2, "mlp")))
    make_harvest(tmp_path, tiny_pair(), corpus)
    with pytest.raises(UserError, match=r"No activations of layer_02/mlp in .*; make them with: python main.py again"):
        DiskSource(cache, (Slot(1), Slot(2, "mlp")))


def test_damage_is_only_looked_for_where_it_is_read(tiny_pair, make_corpus, make_harvest, tmp_path):
    cache = make_harvest(tmp_path, tiny_pair(), make_corpus(), (Slot(0), Slot(1)), shard_tokens=20)
    for path in sorted(cache.slot_folder(Slot(1)).glob("shard_*"))[:2]:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"shard_00000\.safetensors \(and 1 more\) does not match its checksum"):
        DiskSource(cache, (Slot(0), Slot(1)))
    assert len(list(DiskSource(cache, (Slot(0),)).blocks())) == len(cache.plan.blocks)
    assert len(list(DiskSource(cache, (Slot(0), Slot(1)), verify=False).blocks([Slot(0)]))) == len(cache.plan.blocks)


def test_a_live_source_says_what_was_halved(tiny_pair, make_corpus, make_cache, tmp_path, monkeypatch):
    from diffing.activations import reading

    corpus, plain = make_corpus({"a": [8] * 4}), reading.rows_of

    def small(handle, batch, slots):
        if batch.ids_BT.numel() > 20:
            raise torch.OutOfMemoryError("out of memory")
        return plain(handle, batch, slots)

    plan = make_cache(tmp_path, corpus).plan
    source = LiveSource(PairReader(tiny_pair(), corpus, (Slot(1),), torch.float32), plan, 1, ["known before"])
    assert source.notes == ("known before",)
    monkeypatch.setattr(reading, "rows_of", small)
    list(source.blocks())
    assert "1 batches did not fit" in " ".join(source.notes)


def test_notes_on_sinks_are_of_the_first_block_whatever_is_read_first(
    tiny_pair, make_corpus, make_harvest, tmp_path, monkeypatch
):
    def note(norms_N, position_N, skip_first_tokens, slot):
        return f"{slot.name}: {len(norms_N)} norms, {float(norms_N.sum())}, {position_N.sum()}, {skip_first_tokens}"

    monkeypatch.setattr(harvest_module, "sink_note", note)
    monkeypatch.setattr(sources, "sink_note", note)
    pair, corpus = tiny_pair(), make_corpus()
    cache = make_harvest(tmp_path, pair, corpus, SLOTS, shard_tokens=9)
    live = LiveSource(PairReader(pair, corpus, SLOTS, torch.float32), cache.plan, 1)
    list(live.blocks(order=range(len(cache.plan.blocks) - 1, -1, -1)))
    assert sorted(live.notes) == sorted(DiskSource(cache, SLOTS).notes)
    assert f"{cache.plan.sizes[0]} norms" in live.notes[0]
