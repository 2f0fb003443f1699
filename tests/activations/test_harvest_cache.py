"""The cache that a harvest makes: rows against independent computations, resumption, damage, memory."""

# ruff: noqa: F811

import json

import numpy as np
import pytest
import torch
from activation_makers import KEPT, cache_of, corpus_of, hidden_states, made, tiny  # noqa: F401
from safetensors.torch import load_file

from diffing.activations import harvest as harvest_module
from diffing.activations import reading
from diffing.activations.harvest import harvest
from diffing.activations.reading import PairReader
from diffing.activations.sources import DiskSource
from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.core.runs import RunState

ALL = [Slot(0), Slot(1), Slot(2)]


def by_token(source, slot):
    """Rows of both models in corpus order."""
    base = torch.empty(len(source.tokens), source.width, dtype=source.dtype)
    finetuned = torch.empty_like(base)
    for block in source.blocks([slot]):
        base[block.token_N], finetuned[block.token_N] = block.rows[slot]
    return base, finetuned


def assert_equal_up_to_rounding(ours, theirs):
    """Processors and batch shapes sum in different orders: a few units in the last place of the largest value."""
    assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("architecture", "full", "changes"),
    [
        ("llama", False, {"sharing": "merged"}),
        ("llama", False, {"sharing": "adapter"}),
        ("gpt2", False, {}),
        ("gemma2", True, {}),
    ],
)
def test_rows_are_the_models_hidden_states(tiny, made, architecture, full, changes):
    pair, corpus, cache = made(ALL, pair=tiny(architecture, full, **changes))
    source = DiskSource(cache, ALL)
    for slot in ALL:
        base, finetuned = by_token(source, slot)
        for rows, handle in ((base, pair.base), (finetuned, pair.finetuned)):
            assert_equal_up_to_rounding(rows, hidden_states(handle, corpus)[slot.layer])
        assert (base - finetuned).abs().max() > 1e-3


@pytest.mark.parametrize("site", ["attention", "mlp"])
def test_other_sites_are_what_their_module_gives(made, site):
    slot = Slot(1, site)
    pair, corpus, cache = made([slot])
    module = pair.finetuned.sites.layers[1].self_attn if site == "attention" else pair.finetuned.sites.layers[1].mlp
    seen = []
    hook = module.register_forward_hook(lambda m, a, out: seen.append((out[0] if isinstance(out, tuple) else out)[0]))
    with torch.no_grad():
        for s in corpus.sequences:
            pair.finetuned.module(input_ids=torch.from_numpy(s.ids).long()[None])
    hook.remove()
    torch.testing.assert_close(by_token(DiskSource(cache, [slot]), slot)[1], torch.cat(seen), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_storage_rounds_what_was_computed(made, dtype):
    pair, corpus, wide = made([Slot(1)])
    _, _, narrow = made([Slot(1)], pair, corpus, name="narrow", dtype=dtype)
    assert narrow.folder.name != wide.folder.name
    for full, rounded in zip(
        by_token(DiskSource(wide, [Slot(1)]), Slot(1)), by_token(DiskSource(narrow, [Slot(1)]), Slot(1)), strict=True
    ):
        assert torch.equal(full.to(getattr(torch, dtype)), rounded)


def test_nothing_after_the_deepest_layer_runs(tiny, corpus_of, cache_of):
    pair = tiny()
    corpus = corpus_of(pair)
    ran = []
    watched = {
        "later block": pair.base.sites.layers[2],
        "head": pair.base.sites.head,
        "block": pair.base.sites.layers[1],
    }
    hooks = [m.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, m in watched.items()]
    harvest(pair, corpus, cache_of(pair, corpus), [Slot(0), Slot(1)], KEPT)
    for hook in hooks:
        hook.remove()
    assert set(ran) == {"block"}


def test_another_layer_is_added_and_the_first_left_alone(made):
    pair, corpus, cache = made([Slot(0)])
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in cache.folder.rglob("*") if p.is_file()}
    harvest(pair, corpus, cache, [Slot(0), Slot(2, "mlp")], KEPT)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before} == before
    assert cache.missing([Slot(0), Slot(2, "mlp")]) == []
    assert cache.missing([Slot(1)]) == [Slot(1)]


def test_rows_do_not_depend_on_the_shards(made):
    pair, corpus, few = made([Slot(1)], shard_tokens=10_000)
    many = made([Slot(1)], pair, corpus, name="many", shard_tokens=40)[2]
    assert len(list(many.folder.rglob("shard_*"))) > 5 > len(list(few.folder.rglob("shard_*")))
    for one, other in zip(
        by_token(DiskSource(few, [Slot(1)]), Slot(1)), by_token(DiskSource(many, [Slot(1)]), Slot(1)), strict=True
    ):
        assert torch.equal(one, other)


def test_statistics_are_those_of_the_kept_rows(made):
    _, _, cache = made([Slot(1)])
    source = DiskSource(cache, [Slot(1)])
    base, finetuned = (x.double().numpy()[source.tokens.position_N >= 1] for x in by_token(source, Slot(1)))
    found = source.statistics(Slot(1))
    delta = finetuned - base
    assert found["n_tokens"] == len(base)
    assert found["delta"]["mean_norm"] == pytest.approx(np.linalg.norm(delta, axis=1).mean(), rel=1e-9)
    assert found["base"]["total_variance"] == pytest.approx(base.var(0).sum(), rel=1e-9)
    vectors = load_file(cache.slot_folder(Slot(1)) / "statistics.safetensors")
    np.testing.assert_allclose(vectors["finetuned.mean"], finetuned.mean(0), rtol=1e-9)
    assert 0 <= source.noise(Slot(1))["relative"] < 1e-5
    json.dumps(dict(source.facts))


def test_values_that_are_not_finite_are_counted_and_named(tiny, corpus_of, cache_of, monkeypatch, capsys):
    pair = tiny()
    corpus = corpus_of(pair)
    rows_of = reading.rows_of

    def damaged(handle, batch, slots):
        rows = rows_of(handle, batch, slots)
        if handle is pair.finetuned:
            for r in rows.values():
                r[-1, 3] = float("nan")
        return rows

    monkeypatch.setattr(reading, "rows_of", damaged)
    cache = cache_of(pair, corpus)
    harvest(pair, corpus, cache, [Slot(1)], KEPT)
    found = DiskSource(cache, [Slot(1)]).statistics(Slot(1))
    n = len(cache.plan.blocks)
    assert (found["n_not_finite_base"], found["n_not_finite_finetuned"]) == (0, n)
    assert np.isfinite(found["delta"]["mean_norm"])
    assert f"layer_01/residual: {n} kept tokens of the finetuned model" in capsys.readouterr().err


def test_a_batch_too_large_for_memory_is_halved(tiny, corpus_of, cache_of, monkeypatch):
    pair = tiny()
    corpus = corpus_of(pair)
    whole, halved = (cache_of(pair, corpus, name=n) for n in ("whole", "halved"))
    harvest(pair, corpus, whole, [Slot(1)], KEPT)
    rows_of = reading.rows_of
    largest = max(len(s.ids) for s in corpus.sequences)

    def small_machine(handle, batch, slots):
        if batch.ids_BT.numel() > largest:
            raise torch.OutOfMemoryError("out of memory")
        return rows_of(handle, batch, slots)

    monkeypatch.setattr(reading, "rows_of", small_machine)
    monkeypatch.setattr(harvest_module, "measure_noise", lambda *a: reading.NoiseFloor({Slot(1): {}}, 1))
    harvest(pair, corpus, halved, [Slot(1)], KEPT)
    manifest = halved.manifest(Slot(1))
    assert manifest["halved_batches"] > 0
    assert any("read in halves" in note for note in manifest["notes"])
    assert whole.manifest(Slot(1))["halved_batches"] == 0
    one, other = (by_token(DiskSource(c, [Slot(1)]), Slot(1))[1] for c in (whole, halved))
    assert_equal_up_to_rounding(one, other)


def test_a_sequence_too_large_for_memory_is_a_sentence(tiny, corpus_of, cache_of, monkeypatch):
    pair = tiny()
    corpus = corpus_of(pair)

    def no_machine(handle, batch, slots):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(reading, "rows_of", no_machine)
    with pytest.raises(UserError, match="does not fit into memory"):
        harvest(pair, corpus, cache_of(pair, corpus), [Slot(1)], KEPT)


@pytest.mark.parametrize("stop_at", [2, 4, 7, 9])
def test_an_interrupted_harvest_ends_with_the_same_bytes(tiny, corpus_of, cache_of, monkeypatch, stop_at):
    pair = tiny()
    corpus = corpus_of(pair)
    slots = [Slot(0), Slot(2)]
    whole, cut = (cache_of(pair, corpus, name=n, shard_tokens=60, batch_tokens=60) for n in ("whole", "cut"))
    harvest(pair, corpus, whole, slots, KEPT)
    read, calls = PairReader.read, []

    def stops(self, sequences, slots=None):
        calls.append(sequences)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return read(self, sequences, slots)

    monkeypatch.setattr(PairReader, "read", stops)
    with pytest.raises(KeyboardInterrupt):
        harvest(pair, corpus, cut, slots, KEPT)
    assert cut.missing(slots) == slots
    (cut.folder / "layer_00" / "residual").mkdir(parents=True, exist_ok=True)
    (cut.folder / "layer_00" / "residual" / ".shard_00001.safetensors.abc.tmp").write_bytes(b"half")
    harvest(pair, corpus, cut, slots, KEPT)
    assert files(cut.folder) == files(whole.folder)


def test_only_what_is_missing_is_read_again(tiny, corpus_of, cache_of, monkeypatch):
    pair = tiny()
    corpus = corpus_of(pair)
    cache = cache_of(pair, corpus, shard_tokens=60, batch_tokens=60)
    harvest(pair, corpus, cache, [Slot(0), Slot(2)], KEPT)
    before = files(cache.folder)
    (cache.slot_folder(Slot(2)) / "manifest.json").unlink()
    (cache.slot_folder(Slot(2)) / "shard_00001.safetensors").unlink()
    read, calls = PairReader.read, []
    monkeypatch.setattr(
        PairReader, "read", lambda self, i, slots=None: calls.append((i, slots)) or read(self, i, slots)
    )
    harvest(pair, corpus, cache, [Slot(0), Slot(2)], KEPT)
    assert files(cache.folder) == before
    (unit,) = [u for u in cache.units(32) if u.shards[0].number == 1]
    harvested = [i for i, slots in calls if slots == (Slot(2),)]
    assert harvested == [cache.plan.blocks[b] for b in unit.blocks]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete", "statistics"])
def test_damage_is_named_and_only_it_is_made_again(made, damage, capsys):
    pair, corpus, cache = made([Slot(0), Slot(1)], shard_tokens=60, batch_tokens=60)
    before = files(cache.folder)
    name = "statistics.safetensors" if damage == "statistics" else "shard_00001.safetensors"
    path = cache.slot_folder(Slot(1)) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-7], "empty": b""}.get(damage, data))
    with pytest.raises(UserError, match=f"{name}.* does not match its checksum.*REMAKE"):
        DiskSource(cache, [Slot(1)])
    DiskSource(cache, [Slot(0)])
    untouched = {p: p.stat().st_mtime_ns for p in cache.folder.rglob("shard_*") if p != path}
    harvest(pair, corpus, cache, [Slot(0), Slot(1)], KEPT)
    assert str(path) in capsys.readouterr().err
    assert files(cache.folder) == before
    assert {p: p.stat().st_mtime_ns for p in untouched} == untouched


def test_a_shard_of_another_place_is_not_taken(made):
    pair, corpus, cache = made([Slot(0), Slot(1)], shard_tokens=60, batch_tokens=60)
    before = files(cache.folder)
    one, other = (cache.slot_folder(Slot(i)) / "shard_00000.safetensors" for i in (0, 1))
    other.write_bytes(one.read_bytes())
    (cache.slot_folder(Slot(1)) / "manifest.json").unlink()
    harvest(pair, corpus, cache, [Slot(1)], KEPT)
    assert files(cache.folder) == before


def test_overwrite_makes_the_slots_again(made):
    pair, corpus, cache = made([Slot(0), Slot(1)])
    before = files(cache.folder)
    (cache.slot_folder(Slot(0)) / "manifest.json").write_text("{broken")
    with pytest.raises(UserError, match=r"corrupt.*overwrite=true"):
        cache.missing([Slot(0)])
    harvest(pair, corpus, cache, [Slot(0)], KEPT, overwrite=True)
    assert files(cache.folder) == before


def test_one_process_at_a_time(made, tiny):
    pair, corpus, cache = made([Slot(0)])
    with RunState(cache.folder), pytest.raises(UserError, match="Another process is at work"):
        harvest(pair, corpus, cache, [Slot(1)], KEPT)


def test_a_disk_too_small_is_said_before_work_starts(tiny, corpus_of, cache_of, monkeypatch):
    pair = tiny()
    corpus = corpus_of(pair)
    cache = cache_of(pair, corpus)
    usage = harvest_module.shutil.disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(path)._replace(free=1000))
    with pytest.raises(UserError, match=r"take .* kB and 1\.0 kB are free"):
        harvest(pair, corpus, cache, [Slot(0)], KEPT)
    assert not list(cache.folder.rglob("shard_*"))
    monkeypatch.undo()
    harvest(pair, corpus, cache, [Slot(0)], KEPT)
    assert cache.missing([Slot(0)]) == []


def test_what_belongs_to_another_pair_or_text_lies_elsewhere(tiny, corpus_of, cache_of):
    pair = tiny()
    corpus = corpus_of(pair)
    folders = [
        cache_of(p, c, **o).folder
        for p, c, o in (
            (pair, corpus, {}),
            (tiny(full=True), corpus, {}),
            (tiny(sharing="adapter"), corpus, {}),
            (pair, corpus_of(pair, 15), {}),
            (pair, corpus, {"dtype": "bfloat16"}),
            (pair, corpus, {"batch_tokens": 64}),
        )
    ]
    assert len(set(folders)) == len(folders)
    assert cache_of(pair, corpus, shard_tokens=7).folder == folders[0]


def test_no_file_is_left_open(made):
    import os

    made([Slot(0)])
    before = len(os.listdir("/proc/self/fd"))
    for n in range(4):
        made([Slot(0), Slot(1)], name=f"more{n}", shard_tokens=40)
    assert len(os.listdir("/proc/self/fd")) <= before + 1
