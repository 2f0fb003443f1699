"""Stored rows read without this package against single sequences; small memories; kept tokens; interruptions."""

import json
import os
import time
import weakref

import numpy as np
import pytest
import torch

from diffing.activations import harvest as harvest_module
from diffing.activations import reading
from diffing.activations import writing as writing_module
from diffing.activations.harvest import Kept, harvest
from diffing.activations.reading import PairReader
from diffing.activations.shards import ShardWriter
from diffing.activations.sources import DiskSource
from diffing.core.errors import UserError
from diffing.core.files import read_json
from diffing.core.layers import Slot

KINDS = {
    "llama_merged": {"sharing": "merged"},
    "llama_toggled": {"sharing": "adapter"},
    "gpt2": {"architecture": "gpt2"},
    "gemma2": {"architecture": "gemma2"},
    "full": {"full": True},
}
RESIDUALS = tuple(Slot(layer) for layer in range(3))


def own_rows(handle, corpus, take):
    """What `take(module, ids)` finds in single sequences without padding, one after the other."""
    with handle.active(), torch.no_grad():
        return torch.cat([take(handle.module, torch.tensor(s.ids, dtype=torch.long)[None]) for s in corpus.sequences])


def blocks_of(module):
    return module.transformer.h if hasattr(module, "transformer") else module.get_decoder().layers


def hooked(part, module, ids):
    found = []
    hook = part.register_forward_hook(lambda m, a, out: found.append(out[0] if isinstance(out, tuple) else out))
    module(ids)
    hook.remove()
    return found[0].reshape(-1, found[0].shape[-1])


def hidden_state(layer):
    """The residual stream after a block; of the last block it is caught before the final norm."""

    def take(module, ids):
        blocks = blocks_of(module)
        if layer == len(blocks) - 1:
            return hooked(blocks[layer], module, ids)
        return module(ids, output_hidden_states=True).hidden_states[layer + 1][0]

    return take


def assert_near(rows, wanted):
    """Equal to 1e-5 of the largest entry: sums of float32 in another order."""
    torch.testing.assert_close(rows, wanted, atol=1e-5 * float(wanted.abs().max().clamp(min=1)), rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_hidden_states_of_single_sequences(
    kind, tiny_pair, make_corpus, make_harvest, stored_rows, tmp_path
):
    pair, corpus = tiny_pair(**KINDS[kind]), make_corpus()
    cache = make_harvest(tmp_path, pair, corpus, RESIDUALS, shard_tokens=40)
    for slot in RESIDUALS:
        base, finetuned = stored_rows(cache, slot)
        for rows, handle in ((base, pair.base), (finetuned, pair.finetuned)):
            assert_near(rows, own_rows(handle, corpus, hidden_state(slot.layer)))
        assert (base - finetuned).abs().max() > 1e-3, "the two sides are not told apart"


@pytest.mark.parametrize(
    ("kind", "site", "name"),
    [
        ("llama_toggled", "mlp", "mlp"),
        ("gpt2", "attention", "attn"),
        ("gpt2", "mlp", "mlp"),
        ("full", "attention", "self_attn"),
    ],
)
def test_sites_are_the_outputs_of_their_modules(
    kind, site, name, tiny_pair, make_corpus, make_harvest, stored_rows, tmp_path
):
    pair, corpus = tiny_pair(**KINDS[kind]), make_corpus()
    wanted = (Slot(0, site), Slot(2, site))
    cache = make_harvest(tmp_path, pair, corpus, wanted)
    for slot in wanted:
        for rows, handle in zip(stored_rows(cache, slot), (pair.base, pair.finetuned), strict=True):

            def take(module, ids, layer=slot.layer):
                return hooked(getattr(blocks_of(module)[layer], name), module, ids)

            assert_near(rows, own_rows(handle, corpus, take))


def test_a_toggled_adapter_computes_nothing_after_the_deepest_slot(tiny_pair, make_corpus, make_harvest, tmp_path):
    module, calls = tiny_pair(sharing="adapter").base.module, []
    parts = [*blocks_of(module)[1:], module.get_decoder().norm, module.get_output_embeddings()]
    hooks = [part.register_forward_hook(lambda m, a, o: calls.append(type(m).__name__)) for part in parts]
    make_harvest(tmp_path, tiny_pair(sharing="adapter"), make_corpus(), (Slot(0), Slot(0, "mlp")))
    for hook in hooks:
        hook.remove()
    assert calls == []


def test_a_later_harvest_cuts_its_shards_as_the_first(tiny_pair, make_corpus, make_harvest, stored_rows, tmp_path):
    pair, corpus = tiny_pair(), make_corpus()
    cache = make_harvest(tmp_path / "one", pair, corpus, (Slot(1),), shard_tokens=30)
    make_harvest(tmp_path / "one", pair, corpus, (Slot(0), Slot(2)), shard_tokens=77)
    names = [{p.name for p in cache.slot_folder(slot).glob("shard_*")} for slot in RESIDUALS]
    assert names[0] == names[1] == names[2]
    other = make_harvest(tmp_path / "other", pair, corpus, (Slot(2),), shard_bytes=2 * 32 * 4 * 45)
    for mine, theirs in zip(stored_rows(cache, Slot(2)), stored_rows(other, Slot(2)), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kept", [Kept(None, 0), Kept(0, 1), Kept(1, 3, True)])
def test_statistics_are_those_of_the_kept_rows(kept, tiny_pair, make_corpus, make_harvest, stored_rows, tmp_path):
    corpus = make_corpus(template_every=4)
    cache = make_harvest(tmp_path, tiny_pair(), corpus, kept=kept, shard_tokens=30)
    check_statistics(cache, corpus, kept, stored_rows(cache, Slot(1)))


def check_statistics(cache, corpus, kept, rows):
    found = read_json(cache.slot_folder(Slot(1)) / "manifest.json", "")["statistics"]
    keep = []
    for s in corpus.sequences:
        for p in range(len(s.ids)):
            bos = p == 0 and s.ids[0] == kept.bos_id and s.is_special[0] and not s.is_template[0]
            template = kept.skip_template_tokens and s.is_template[p]
            keep.append(p >= kept.skip_first_tokens and not bos and not template)
    b, f = (r.double().numpy()[keep] for r in rows)
    assert found["n_tokens"] == sum(keep)
    for name, x in (("base", b), ("finetuned", f), ("delta", f - b)):
        norms = np.linalg.norm(x, axis=1)
        assert found[name]["mean_norm"] == pytest.approx(norms.mean(), rel=1e-10)
        assert found[name]["sd_norm"] == pytest.approx(norms.std(), rel=1e-9)
        assert found[name]["total_variance"] == pytest.approx(x.var(0).sum(), rel=1e-10)
    cosines = (b * f).sum(1) / np.linalg.norm(b, axis=1) / np.linalg.norm(f, axis=1)
    assert found["mean_cosine_distance"] == pytest.approx((1 - cosines).mean(), rel=1e-9)


def test_overflow_of_the_storage_is_counted_left_out_and_told_to_readers(
    tiny_pair, make_corpus, make_harvest, stored_rows, tmp_path, monkeypatch
):
    plain = reading.rows_of

    def huge(handle, batch, slots):
        found = dict(plain(handle, batch, slots))
        if handle is not tiny_pair().base and Slot(1) in found:
            found[Slot(1)] = found[Slot(1)].clone()
            found[Slot(1)][::5] *= 1e6
        return found

    monkeypatch.setattr(reading, "rows_of", huge)
    cache = make_harvest(tmp_path, tiny_pair(), make_corpus(), (Slot(0), Slot(1)), Kept(None, 0), dtype="float16")
    b, f = (rows.double().numpy() for rows in stored_rows(cache, Slot(1)))
    lost = ~np.isfinite(f).all(1)
    assert 5 < lost.sum() < len(f) / 2
    found = read_json(cache.slot_folder(Slot(1)) / "manifest.json", "")["statistics"]
    counts = found["n_tokens"], found["n_not_finite_base"], found["n_not_finite_finetuned"]
    assert counts == (len(f) - lost.sum(), 0, lost.sum())
    assert found["finetuned"]["mean_norm"] == pytest.approx(np.linalg.norm(f[~lost], axis=1).mean(), rel=1e-10)
    assert found["base"]["mean_norm"] == pytest.approx(np.linalg.norm(b[~lost], axis=1).mean(), rel=1e-10)
    notes = " ".join(DiskSource(cache, (Slot(0), Slot(1))).notes)
    assert f"layer_01/residual: {lost.sum()} kept tokens of the finetuned model hold NaN" in notes
    assert "layer_00/residual:" not in notes


class SmallMemory:
    """Lets `rows_of` read up to `limit` padded tokens."""

    def __init__(self, monkeypatch, limit, error=torch.OutOfMemoryError):
        self.limit, self.error, self.n_refused = limit, error, 0
        self._plain = reading.rows_of
        monkeypatch.setattr(reading, "rows_of", self)

    def __call__(self, handle, batch, slots):
        if batch.ids_BT.numel() > self.limit:
            self.n_refused += 1
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return self._plain(handle, batch, slots)


EVEN = {"prose": [8] * 9, "chats": [5, 5, 5, 5, 5, 5]}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_batches_that_do_not_fit_are_halved(
    error, tiny_pair, make_corpus, make_harvest, stored_rows, tmp_path, monkeypatch
):
    """Blocks of 64, 8 and 30 padded tokens where 20 fit: 64 → 2 × 32 → 4 × 16, 30 → 2 × 15: four halvings."""
    pair, corpus = tiny_pair(), make_corpus(EVEN)
    roomy = make_harvest(tmp_path / "roomy", pair, corpus, batch_tokens=64)
    with monkeypatch.context() as patch:
        SmallMemory(patch, 20, error)
        tight = make_harvest(tmp_path / "tight", pair, corpus, batch_tokens=64)
    assert tight.plan.blocks == roomy.plan.blocks
    for mine, theirs in zip(stored_rows(tight, Slot(1)), stored_rows(roomy, Slot(1)), strict=True):
        assert_near(mine, theirs)
    manifest = read_json(tight.slot_folder(Slot(1)) / "manifest.json", "")
    assert manifest["halved_batches"] == 4
    assert "4 batches did not fit into memory" in " ".join(manifest["notes"])
    assert read_json(roomy.slot_folder(Slot(1)) / "manifest.json", "")["halved_batches"] == 0


@pytest.mark.parametrize("units", [1, 2, 3, 5])
def test_what_is_halved_does_not_depend_on_an_interruption(
    units, tiny_pair, make_corpus, make_harvest, contents, tmp_path, monkeypatch
):
    """Sizes of 24 to 56 padded tokens where 33 fit; a batch of 24 to 32 is never halved, whatever failed before."""
    lengths = {"a": [8] * 7, "b": [10] * 5, "c": [9] * 6, "d": [11] * 3, "e": [8] * 3, "f": [8] * 4}
    pair, corpus, options = tiny_pair(), make_corpus(lengths), {"batch_tokens": 56, "shard_tokens": 30}
    SmallMemory(monkeypatch, 33)
    whole = make_harvest(tmp_path / "whole", pair, corpus, **options)
    assert whole.manifest(Slot(1))["halved_batches"] == 3
    with monkeypatch.context() as patch:
        StopAfter(patch, units + 3)
        with pytest.raises(KeyboardInterrupt):
            make_harvest(tmp_path / "cut", pair, corpus, **options)
    cut = make_harvest(tmp_path / "cut", pair, corpus, **options)
    assert contents(cut.folder) == contents(whole.folder)


class StopAfter:
    """Ctrl-C as `PairReader.read` is asked for the `n`-th whole batch."""

    def __init__(self, monkeypatch, n):
        self.left, self._plain = n, PairReader.read
        monkeypatch.setattr(PairReader, "read", lambda reader, *args: self(reader, *args))

    def __call__(self, reader, *args):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self._plain(reader, *args)


def test_a_sequence_that_does_not_fit_is_refused(tiny_pair, make_corpus, make_harvest, tmp_path, monkeypatch):
    SmallMemory(monkeypatch, 15)
    with pytest.raises(UserError, match="One sequence of 16 tokens does not fit into memory"):
        make_harvest(tmp_path, tiny_pair(), make_corpus())
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("manifest.json"))


def test_other_errors_are_not_taken_for_a_small_memory(tiny_pair, make_corpus, make_harvest, tmp_path, monkeypatch):
    def broken(handle, batch, slots):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(reading, "rows_of", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        make_harvest(tmp_path, tiny_pair(), make_corpus())


@pytest.mark.parametrize("n", [0, 2, 3, 4, 6, 8])
def test_ctrl_c_leaves_whole_shards_only(n, tiny_pair, make_corpus, make_harvest, contents, tmp_path, monkeypatch):
    pair, corpus, options = tiny_pair(sharing="adapter"), make_corpus(), {"shard_tokens": 20, "slots": RESIDUALS[:2]}
    whole = contents(make_harvest(tmp_path / "whole", pair, corpus, **options).folder)
    with monkeypatch.context() as patch:
        StopAfter(patch, n)
        with pytest.raises(KeyboardInterrupt):
            make_harvest(tmp_path / "cut", pair, corpus, **options)
    folder = next((tmp_path / "cut").glob("activations/*/*"))
    left = contents(folder)
    assert not [name for name in left if name.endswith((".tmp", "manifest.json"))]
    assert {k: v for k, v in left.items() if k in whole} == {k: whole[k] for k in left if k in whole}
    (folder / ".cache.json.1234.tmp").write_bytes(b"half")
    assert contents(make_harvest(tmp_path / "cut", pair, corpus, **options).folder) == whole


def test_an_error_in_the_writing_thread_is_raised_and_mended(
    tiny_pair, make_corpus, make_harvest, contents, tmp_path, monkeypatch
):
    pair, corpus, options = tiny_pair(), make_corpus(), {"shard_tokens": 20, "slots": RESIDUALS}
    whole = contents(make_harvest(tmp_path / "whole", pair, corpus, **options).folder)
    for n in (1, 4, 9):
        calls = []

        def fail(rows, calls=calls, n=n):
            calls.append(1)
            if len(calls) == n:
                raise OSError(28, "No space left on device")
            return rows.cpu()

        with monkeypatch.context() as patch:
            patch.setattr(writing_module, "on_host", fail)
            with pytest.raises(OSError, match="No space left"):
                make_harvest(tmp_path / f"cut{n}", pair, corpus, **options)
        assert not list((tmp_path / f"cut{n}").rglob("*.tmp"))
        assert contents(make_harvest(tmp_path / f"cut{n}", pair, corpus, **options).folder) == whole


def test_resuming_with_other_kept_tokens_mixes_no_statistics(
    tiny_pair, make_corpus, make_harvest, stored_rows, tmp_path, monkeypatch
):
    pair, corpus = tiny_pair(), make_corpus(template_every=3)
    with monkeypatch.context() as patch:
        StopAfter(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            make_harvest(tmp_path, pair, corpus, kept=Kept(None, 1), shard_tokens=20)
    assert list(tmp_path.rglob("shard_*"))
    kept = Kept(None, 4, True)
    cache = make_harvest(tmp_path, pair, corpus, kept=kept, shard_tokens=20)
    check_statistics(cache, corpus, kept, stored_rows(cache, Slot(1)))


def at(path, name):
    """A byte inside a tensor of a safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    start, stop = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    return 8 + length + (start + stop) // 2


@pytest.mark.parametrize("place", ["base", "finetuned", "statistics.delta.m2", "checksum"])
def test_a_shard_damaged_before_any_manifest_lists_it_is_made_again(
    place, tiny_pair, make_corpus, make_harvest, contents, tmp_path, monkeypatch
):
    pair, corpus = tiny_pair(), make_corpus()
    whole = contents(make_harvest(tmp_path / "whole", pair, corpus, shard_tokens=20).folder)
    with monkeypatch.context() as patch:
        StopAfter(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            make_harvest(tmp_path / "cut", pair, corpus, shard_tokens=20)
    path = sorted((tmp_path / "cut").rglob("shard_*"))[0]
    data = bytearray(path.read_bytes())
    data[at(path, place)] ^= 1
    path.write_bytes(data)
    assert contents(make_harvest(tmp_path / "cut", pair, corpus, shard_tokens=20).folder) == whole


@pytest.mark.parametrize("damage", ["delete", "flip", "empty"])
def test_a_damaged_token_table_is_named_and_made_again(
    damage, tiny_pair, make_corpus, make_harvest, contents, tmp_path
):
    pair, corpus = tiny_pair(), make_corpus()
    cache = make_harvest(tmp_path, pair, corpus, shard_tokens=20)
    before, path = contents(cache.folder), cache.folder / "tokens.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink() if damage == "delete" else path.write_bytes(b"" if damage == "empty" else data)
    with pytest.raises(UserError, match=r"tokens\.parquet does not match its checksum"):
        DiskSource(cache, (Slot(1),))
    harvest(pair, corpus, cache, (Slot(1),), Kept(None))
    assert contents(cache.folder) == before


def test_only_sequences_that_can_be_compared(tiny_pair, make_corpus, make_harvest, make_cache, stored_rows, tmp_path):
    pair, corpus = tiny_pair(), make_corpus()
    some = make_harvest(tmp_path / "some", pair, corpus, sequences=[0, 2, 3, 9, 12])
    every = make_harvest(tmp_path / "all", pair, corpus)
    table = every.plan.tokens
    rows = np.isin(table.sequence_N, [0, 2, 3, 9, 12])
    for mine, theirs in zip(stored_rows(some, Slot(1)), stored_rows(every, Slot(1)), strict=True):
        assert_near(mine, theirs[torch.from_numpy(rows)])


def test_no_batch_passes_the_budget(tiny_pair, make_corpus, make_harvest, tmp_path, monkeypatch):
    """Neither the blocks nor what is read besides: the announcement's probe and the noise measurement."""
    memory = SmallMemory(monkeypatch, 32)
    make_harvest(tmp_path, tiny_pair(), make_corpus({"a": [16] * 12}), batch_tokens=32)
    assert memory.n_refused == 0


@pytest.mark.parametrize(("room", "most"), [(0, 1), (2**29, 3)])
def test_the_backlog_is_bounded_by_bytes(room, most, tiny_pair, make_corpus, make_harvest, tmp_path, monkeypatch):
    """Where writing is slow; the writing thread may hold the last block's rows a moment longer than its work takes."""
    read, add, held, alive = PairReader.read, ShardWriter.add, [], []

    def watch(self, sequences, slots=None):
        alive.append(sum(ref() is not None for ref in held))
        rows = read(self, sequences, slots)
        held.extend(weakref.ref(pair.base_ND) for pair in rows.values())
        return rows

    monkeypatch.setattr(PairReader, "read", watch)
    monkeypatch.setattr(ShardWriter, "add", lambda self, *rows: time.sleep(0.02) or add(self, *rows))
    monkeypatch.setattr(harvest_module, "_AHEAD_BYTES", room)
    make_harvest(tmp_path, tiny_pair(), make_corpus())
    assert len(alive) > 5
    assert most - 1 <= max(alive) <= most


def test_few_files_are_open_however_many_shards_a_block_fills(
    tiny_pair, make_corpus, make_harvest, tmp_path, monkeypatch
):
    counts, plain, before = [], ShardWriter.add, len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(
        ShardWriter, "add", lambda self, *a: counts.append(len(os.listdir("/proc/self/fd"))) or plain(self, *a)
    )
    cache = make_harvest(
        tmp_path, tiny_pair(), make_corpus({"a": [4] * 40}), RESIDUALS, batch_tokens=160, shard_tokens=4
    )
    assert len(list(cache.folder.rglob("shard_*"))) == 3 * 40
    assert max(counts) <= before + 8
