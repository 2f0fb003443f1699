"""Shard files: read by the safetensors library to the bit, whole or absent, and refused by name when damaged."""

import errno
import hashlib
import json
import os
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffing.activations import shards
from diffing.activations.shards import ShardFacts, ShardWriter, open_shard, written_shard
from diffing.activations.statistics import PairStatistics
from diffing.core.errors import UserError
from diffing.core.files import sha256

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rows(n, width, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 256, (n, width * dtype.itemsize), generator=generator, dtype=torch.uint8)
    return bits.view(dtype).reshape(n, width)


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


def write(path, base, finetuned, statistics=None, metadata=None, cut=3):
    values = statistics or {}
    with ShardWriter(path, len(base), base.shape[1], base.dtype, values, metadata or {"diffing": "x"}) as writer:
        for start in range(0, len(base), cut):
            writer.add(base[start : start + cut], finetuned[start : start + cut])
        return writer.close(values)


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "shard_00000.safetensors"
    write(path, rows(10, 6, torch.float32), rows(10, 6, torch.float32, 1), {"n": torch.tensor([3, 4])})
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(10, 6), (1, 1), (7, 33)])
def test_the_safetensors_library_reads_the_same_bits(dtype, shape, tmp_path):
    path = tmp_path / "below" / "shard.safetensors"
    base, finetuned = rows(*shape, dtype), rows(*shape, dtype, 1)
    counts = torch.tensor([2**62 + 1, -5])
    means = torch.tensor([[0.1, float("nan")]], dtype=torch.float64)
    facts = write(path, base, finetuned, {"counts": counts, "mean": means}, {"diffing": "abc", "slot": "layer_01/mlp"})
    found = load_file(path)
    wanted = {"base": base, "finetuned": finetuned, "statistics.counts": counts, "statistics.mean": means}
    checksum = bytes(found.pop("checksum").tolist())
    assert checksum == hashlib.sha256(path.read_bytes()[:-32]).digest()
    assert path.read_bytes()[-32:] == checksum
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert torch.equal(bits(found[name]), bits(value))
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"diffing": "abc", "slot": "layer_01/mlp"}
    assert (facts.n_bytes, facts.sha256) == (path.stat().st_size, sha256(path))
    ours = open_shard(path, "do this")
    assert torch.equal(bits(ours.rows.base_ND), bits(base))
    assert torch.equal(bits(ours.rows.finetuned_ND), bits(finetuned))
    assert torch.equal(ours.statistics["counts"], counts)
    assert torch.equal(bits(ours.statistics["mean"]), bits(means))
    assert ours.metadata == {"diffing": "abc", "slot": "layer_01/mlp"}
    assert [p.name for p in path.parent.iterdir()] == ["shard.safetensors"]


def test_the_rows_start_at_an_aligned_place(whole):
    with open(whole, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    assert (8 + length) % 64 == 0


def test_the_same_content_gives_the_same_bytes(tmp_path):
    base, finetuned = rows(9, 5, torch.bfloat16), rows(9, 5, torch.bfloat16, 1)
    facts = [write(tmp_path / f"{i}.safetensors", base, finetuned, cut=cut) for i, cut in enumerate((1, 4, 9))]
    assert len(set(facts)) == 1


def test_statistics_come_back_exactly(tmp_path):
    base, finetuned = torch.randn(50, 4), torch.randn(50, 4)
    statistics = PairStatistics.of(base, finetuned)
    write(tmp_path / "s.safetensors", base, finetuned, statistics.to_tensors())
    back = PairStatistics.from_tensors(open_shard(tmp_path / "s.safetensors", "").statistics)
    for name, tensor in back.to_tensors().items():
        assert torch.equal(tensor, statistics.to_tensors()[name])


@pytest.mark.parametrize("at", ["start", "rows", "checksum", "fsync", "rename"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_shard_that_was_not_closed(at, error, tmp_path, monkeypatch):
    def fail(*args):
        raise error

    path, base = tmp_path / "s.safetensors", rows(4, 3, torch.float32)
    handles = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    with pytest.raises(type(error)):  # noqa: PT012
        if at == "start" and isinstance(error, OSError):
            monkeypatch.setattr(shards.os, "posix_fallocate", fail)
        with ShardWriter(path, 4, 3, torch.float32, {}, {}) as writer:
            if at == "start":
                fail()
            if at == "fsync":
                monkeypatch.setattr(shards.os, "fsync", fail)
            if at == "rename":
                monkeypatch.setattr(shards.os, "replace", fail)
            writer.add(base, base)
            if at == "rows":
                fail()
            if at == "checksum":
                monkeypatch.setattr(shards, "_digest", fail)
            writer.close({})
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    if handles is not None:
        assert len(os.listdir("/proc/self/fd")) <= handles


def test_an_error_while_the_header_is_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(shards.os, "pwrite", fail)
    with pytest.raises(OSError, match="full"):
        ShardWriter(tmp_path / "s.safetensors", 4, 3, torch.float32, {}, {})
    assert list(tmp_path.iterdir()) == []


def test_damage_of_a_file_that_nothing_lists_is_told_from_the_file(whole):
    data = whole.read_bytes()
    assert written_shard(whole) == ShardFacts(len(data), hashlib.sha256(data).hexdigest())
    for damaged in (data[:-1], data[:10], b"", data + b"x", *(flipped(data, at) for at in range(0, len(data), 37))):
        whole.write_bytes(damaged)
        assert written_shard(whole) is None


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


@pytest.mark.parametrize(("base", "finetuned"), [((5, 3), (5, 3)), ((2, 4), (2, 4)), ((2, 3), (1, 3))])
def test_rows_that_do_not_belong_are_refused(base, finetuned, tmp_path):
    with pytest.raises(AssertionError), ShardWriter(tmp_path / "s", 4, 3, torch.float32, {}, {}) as writer:
        writer.add(torch.zeros(base), torch.zeros(finetuned))
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_is_not_full_gets_no_name(tmp_path):
    with ShardWriter(tmp_path / "s", 4, 3, torch.float32, {}, {}) as writer:
        writer.add(torch.zeros(3, 3), torch.zeros(3, 3))
        with pytest.raises(AssertionError, match="not full"):
            writer.close({})
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_shard_leaves_an_older_one_alone(whole):
    before = whole.read_bytes()
    with pytest.raises(RuntimeError), ShardWriter(whole, 4, 3, torch.float32, {}, {}) as writer:  # noqa: PT012
        writer.add(rows(2, 3, torch.float32), rows(2, 3, torch.float32))
        raise RuntimeError
    assert whole.read_bytes() == before
    assert len(list(whole.parent.iterdir())) == 1


def header_of(path):
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data, 0)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(path, header, body):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def test_a_missing_shard(tmp_path):
    with pytest.raises(UserError, match=r"gone\.safetensors is missing; do this\.$"):
        open_shard(tmp_path / "gone.safetensors", "do this")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 0.5, -1])
def test_a_cut_shard_is_refused_by_name(keep, whole):
    data = whole.read_bytes()
    whole.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"shard_00000\.safetensors is (cut off or damaged|empty); do this\.$"):
        open_shard(whole, "do this")


@pytest.mark.parametrize("garbage", [b"x" * 500, b"\0" * 500, b"\xff" * 500, b"{}" * 99, struct.pack("<Q", 2) + b"{}",
    struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 4) + b"null", struct.pack("<Q", 3) + b'"a"'])  # fmt: skip
def test_garbage_is_refused_by_name(garbage, whole):
    whole.write_bytes(garbage)
    with pytest.raises(UserError, match=r"shard_00000\.safetensors is cut off or damaged"):
        open_shard(whole, "do this")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("dtype", "I8"),
        ("dtype", None),
        ("dtype", "BF16"),
        ("shape", [11, 6]),
        ("shape", [-10, 6]),
        ("shape", "ten"),
        ("data_offsets", [0, 10**9]),
        ("data_offsets", [-240, 0]),
        ("data_offsets", [0]),
        ("data_offsets", None),
    ],
)
def test_a_header_that_does_not_fit_is_refused(entry, value, whole):
    header, body = header_of(whole)
    header["base"][entry] = value
    with_header(whole, header, body)
    with pytest.raises(UserError, match=r"shard_00000\.safetensors is cut off or damaged"):
        open_shard(whole, "do this")


@pytest.mark.parametrize("name", ["base", "finetuned"])
def test_a_header_without_one_of_the_models_is_refused(name, whole):
    header, body = header_of(whole)
    del header[name]
    with_header(whole, header, body)
    with pytest.raises(UserError, match="cut off or damaged"):
        open_shard(whole, "do this")


@pytest.mark.parametrize("value", [None, 3, [1]])
def test_an_entry_that_is_no_object_is_refused(value, whole):
    header, body = header_of(whole)
    header["base"] = value
    with_header(whole, header, body)
    with pytest.raises(UserError, match="cut off or damaged"):
        open_shard(whole, "do this")


def test_writing_to_the_rows_leaves_the_file_alone(whole):
    before = whole.read_bytes()
    opened = open_shard(whole, "")
    view = opened.rows.base_ND[2:5]
    assert view.untyped_storage().data_ptr() == opened.rows.base_ND.untyped_storage().data_ptr()
    opened.rows.base_ND.fill_(7)
    opened.rows.finetuned_ND.mul_(2)
    assert view.eq(7).all(), "views of one mapping"
    assert whole.read_bytes() == before
    assert not open_shard(whole, "").rows.base_ND.eq(7).any()


def test_rows_outlive_the_opened_file(whole):
    wanted = load_file(whole)["base"]
    kept = open_shard(whole, "").rows.base_ND
    whole.unlink()
    assert torch.equal(bits(kept), bits(wanted))


def test_opened_files_are_let_go(whole):
    folder = "/proc/self/fd"
    if not os.path.exists(folder):
        pytest.skip("no /proc")
    before = len(os.listdir(folder))
    for _ in range(50):
        open_shard(whole, "")
    assert len(os.listdir(folder)) <= before + 2


def test_no_rows(tmp_path):
    empty = torch.empty(0, 6)
    write(tmp_path / "s.safetensors", empty, empty, {"n": torch.tensor(0)})
    assert load_file(tmp_path / "s.safetensors")["base"].shape == (0, 6)
    assert open_shard(tmp_path / "s.safetensors", "").rows.base_ND.shape == (0, 6)
