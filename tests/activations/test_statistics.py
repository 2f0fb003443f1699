"""Statistics of activations against numpy in float64, however the rows are cut and whatever their dtype."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save, save_file

from diffing.activations import statistics
from diffing.activations.statistics import Moments, PairStatistics
from diffing.core.seeds import generator

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def draw(n, width, *names, scale=3.0, offset=5.0, dtype=torch.float64):
    rows = generator(0, "statistics", *names).standard_normal((n, width)) * scale + offset
    return torch.from_numpy(rows).to(dtype)


def random_pair(n, width, dtype=torch.float64):
    base = draw(n, width, "base")
    return base.to(dtype), (base + draw(n, width, "delta", scale=0.4, offset=0.1)).to(dtype)


def moments_by_numpy(rows):
    x = rows.double().numpy()
    return x.mean(0), ((x - x.mean(0)) ** 2).sum(0)


def close(found, wanted, rtol=1e-12, atol=0.0):
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=rtol, atol=atol)


def same(one, other, rtol=1e-12):
    """All statistics agree; means to `rtol` of the numbers they are means of."""
    for mine, theirs in zip(one._moments, other._moments, strict=True):
        assert mine.n == theirs.n
        size = float((mine.mean_D.square() + mine.m2_D / max(mine.n, 1)).sum().sqrt()) if mine.n else 0.0
        close(mine.mean_D, theirs.mean_D, rtol, atol=rtol * size)
        close(mine.m2_D, theirs.m2_D, rtol, atol=rtol * size**2 * mine.n)
    counts = [(s.n_not_finite_base, s.n_not_finite_finetuned) for s in (one, other)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_bytes", [2**21, 8 * 7 * 50])
def test_moments_are_those_of_numpy(dtype, chunk_bytes, monkeypatch):
    monkeypatch.setitem(statistics._CHUNK_BYTES, "cpu", chunk_bytes)
    rows = draw(333, 7, "rows", dtype=dtype)
    before = rows.clone()
    found = Moments.of(rows)
    mean, m2 = moments_by_numpy(rows)
    assert found.n == 333
    assert found.mean_D.dtype == found.m2_D.dtype == torch.float64
    close(found.mean_D, mean)
    close(found.m2_D, m2)
    close(found.variance_D, rows.double().numpy().var(0))
    close(found.total_variance, np.trace(np.cov(rows.double().numpy().T, ddof=0)))
    close(found.mean_square_norm, (rows.double().numpy() ** 2).sum(1).mean())
    assert torch.equal(rows, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_bytes", [2**21, 8 * 9 * 50])
def test_pair_statistics_are_those_of_numpy(dtype, chunk_bytes, monkeypatch):
    monkeypatch.setitem(statistics._CHUNK_BYTES, "cpu", chunk_bytes)
    base, finetuned = random_pair(333, 9, dtype)
    given_before = base.clone(), finetuned.clone()
    summary = PairStatistics.of(base, finetuned).summary()
    assert torch.equal(base, given_before[0])
    assert torch.equal(finetuned, given_before[1])
    b, f = base.double().numpy(), finetuned.double().numpy()
    for name, x in (("base", b), ("finetuned", f), ("delta", f - b)):
        norms = np.linalg.norm(x, axis=1)
        close(summary[name]["mean_norm"], norms.mean())
        close(summary[name]["sd_norm"], norms.std())
        close(summary[name]["total_variance"], x.var(0).sum())
        close(summary[name]["mean_square_norm"], (norms**2).mean())
    cosines = (b * f).sum(1) / np.linalg.norm(b, axis=1) / np.linalg.norm(f, axis=1)
    close(summary["mean_cosine_distance"], (1 - cosines).mean())
    means = b.mean(0), f.mean(0)
    close(summary["cosine_of_means"], means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1]))
    assert summary["n_tokens"] == 333
    json.dumps(summary, allow_nan=False)


def test_numbers_worked_out_by_hand():
    base = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    finetuned = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    found = PairStatistics.of(base, finetuned)
    assert found.summary() == {
        "n_tokens": 2,
        "n_not_finite_base": 0,
        "n_not_finite_finetuned": 0,
        "base": {"mean_norm": 3.0, "sd_norm": 2.0, "total_variance": 5.0, "mean_square_norm": 13.0},
        "finetuned": {"mean_norm": 3.5, "sd_norm": 1.5, "total_variance": 3.25, "mean_square_norm": 14.5},
        "delta": {
            "mean_norm": pytest.approx(5**0.5 / 2, rel=1e-15),
            "sd_norm": pytest.approx(5**0.5 / 2, rel=1e-15),
            "total_variance": 1.25,
            "mean_square_norm": 2.5,
        },
        "mean_cosine_distance": pytest.approx(0.5, rel=1e-15),
        "cosine_of_means": pytest.approx(9 / 90**0.5, rel=1e-15),
    }


@pytest.mark.parametrize("turn", [1e-3, 1e-5, 1e-7])
def test_cosine_distance_of_nearly_equal_rows_keeps_its_digits(turn):
    base = draw(200, 64, "nearly")
    noise = draw(200, 64, "turn", offset=0.0)
    noise -= base * ((noise * base).sum(1) / base.square().sum(1))[:, None]
    noise *= (base.norm(dim=1) / noise.norm(dim=1))[:, None]
    angle = np.arctan(turn)
    found = PairStatistics.of(base, base + turn * noise).summary()["mean_cosine_distance"]
    assert found == pytest.approx(2 * np.sin(angle / 2) ** 2, rel=1e-6, abs=0)


@given(
    cuts=st.lists(st.integers(0, 60), max_size=6),
    order=st.randoms(use_true_random=False),
    broken=st.sets(st.integers(0, 59), max_size=5),
    offset=st.sampled_from([0.0, 3.0, 300.0]),
)
@settings(max_examples=60, deadline=None)
def test_partition_and_order_do_not_matter(cuts, order, broken, offset):
    base, finetuned = (x + offset for x in random_pair(60, 5))
    for row in broken:
        (base if row % 2 else finetuned)[row, row % 5] = float("nan" if row % 3 else "inf")
    edges = [0, *sorted(cuts), 60]
    parts = [PairStatistics.of(base[a:b], finetuned[a:b]) for a, b in pairwise(edges)]
    order.shuffle(parts)
    merged = PairStatistics.empty(5)
    for part in parts:
        merged = merged.merge(part)
    backwards = PairStatistics.empty(5)
    for part in parts:
        backwards = part.merge(backwards)
    whole = PairStatistics.of(base, finetuned)
    same(merged, whole)
    same(backwards, whole)


@pytest.mark.slow
@pytest.mark.parametrize("n_millions", [2, 50])
def test_a_long_bfloat16_stream_keeps_its_variance(n_millions):
    """Dimension d takes 99·2^d, 100·2^d and 101·2^d, all bfloat16, in shares ¼, ½, ¼: sd 2^d/√2, mean 141 sd."""
    rows_per_part = 50_000
    levels = np.repeat([99.0, 100.0, 101.0], [rows_per_part // 4, rows_per_part // 2, rows_per_part // 4])
    scales = 2.0 ** np.arange(16)
    rng = generator(0, "stream")
    rows = torch.from_numpy(np.stack([rng.permutation(levels) for _ in scales], 1) * scales)
    stored = rows.bfloat16()
    assert torch.equal(stored.double(), rows)
    found = Moments.empty(16)
    for _ in range(n_millions * 10**6 // rows_per_part):
        found = found.merge(Moments.of(stored))
    assert found.n == n_millions * 10**6
    close(found.variance_D.sqrt(), scales / 2**0.5, rtol=1e-3)
    close(found.variance_D, scales**2 / 2, rtol=1e-9)
    close(found.mean_D, 100 * scales)


def test_rows_that_are_not_finite_are_counted_and_left_out():
    base, finetuned = random_pair(40, 6, torch.float32)
    base[3, 2] = float("nan")
    base[7] = float("inf")
    finetuned[7, 0] = float("nan")
    finetuned[11, 5] = -float("inf")
    kept = [i for i in range(40) if i not in (3, 7, 11)]
    found = PairStatistics.of(base, finetuned)
    assert (found.n, found.n_not_finite_base, found.n_not_finite_finetuned) == (37, 2, 2)
    clean = PairStatistics.of(base[kept], finetuned[kept])
    for mine, theirs in zip(found._moments, clean._moments, strict=True):
        assert torch.equal(mine.mean_D, theirs.mean_D)
        assert torch.equal(mine.m2_D, theirs.m2_D)
    summary = found.merge(found).summary()
    assert (summary["n_not_finite_base"], summary["n_not_finite_finetuned"], summary["n_tokens"]) == (4, 4, 74)


def test_nothing_but_rows_that_are_not_finite():
    found = PairStatistics.of(torch.full((3, 2), float("nan")), torch.ones(3, 2))
    assert (found.n, found.n_not_finite_base, found.n_not_finite_finetuned) == (0, 3, 0)
    assert found.summary()["base"]["mean_norm"] is None
    json.dumps(found.summary(), allow_nan=False)


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float16, 60000.0), (torch.float32, 2.0**120), (torch.bfloat16, 2.0**120)]
)
def test_values_whose_squares_overflow_the_storage_dtype(dtype, value):
    base = torch.full((5, 4), value, dtype=dtype)
    base[::2] *= -1
    found = PairStatistics.of(base, -base)
    assert found.n_not_finite_base == found.n_not_finite_finetuned == 0
    summary = found.summary()
    assert summary["base"]["mean_norm"] == pytest.approx(2 * value)
    assert summary["delta"]["mean_norm"] == pytest.approx(4 * value)
    assert summary["base"]["mean_square_norm"] == pytest.approx(4 * value**2)
    assert summary["base"]["total_variance"] == pytest.approx(4 * value**2 * (1 - 0.2**2))
    assert summary["mean_cosine_distance"] == pytest.approx(2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(dtype):
    nothing = torch.empty(0, 3, dtype=dtype)
    found = PairStatistics.of(nothing, nothing)
    summary = found.summary()
    assert (summary["n_tokens"], summary["n_not_finite_base"], summary["n_not_finite_finetuned"]) == (0, 0, 0)
    unknown = [*summary["base"].values(), *summary["finetuned"].values(), *summary["delta"].values()]
    assert set(unknown) | {summary["mean_cosine_distance"], summary["cosine_of_means"]} == {None}
    one = PairStatistics.of(*random_pair(5, 3))
    for merged in (one.merge(found), found.merge(one), one.merge(PairStatistics.empty(3))):
        assert merged.summary() == one.summary()
    assert Moments.of(nothing).total_variance is None
    assert Moments.of(nothing).mean_square_norm is None


def test_no_rows_can_be_written():
    nothing = PairStatistics.empty(3).merge(PairStatistics.empty(3))
    read = PairStatistics.from_tensors(load(save(nothing.to_tensors())))
    assert (read.n, read.delta.n, read.n_not_finite_base) == (0, 0, 0)


def test_one_row():
    base, finetuned = random_pair(1, 4)
    found = PairStatistics.of(base, finetuned)
    assert torch.equal(found.base.mean_D, base[0])
    assert torch.equal(found.base.variance_D, torch.zeros(4, dtype=torch.float64))
    summary = found.summary()
    assert summary["delta"]["sd_norm"] == summary["delta"]["total_variance"] == 0
    assert summary["delta"]["mean_norm"] == pytest.approx(float((finetuned - base).norm()), rel=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-4, 12345.6])
def test_constants_have_variance_zero(dtype, value):
    rows = torch.full((1001, 3), value, dtype=dtype)
    merged = Moments.empty(3)
    for n in (1001, 7, 333):
        merged = merged.merge(Moments.of(rows[:n]))
    assert torch.equal(merged.mean_D, rows[0].double())
    assert torch.equal(merged.variance_D, torch.zeros(3, dtype=torch.float64))
    found = PairStatistics.of(rows, rows).summary()
    assert found["base"]["total_variance"] == found["base"]["sd_norm"] == 0
    assert found["delta"] == {"mean_norm": 0, "sd_norm": 0, "total_variance": 0, "mean_square_norm": 0}
    assert found["mean_cosine_distance"] == 0


def test_a_far_row_at_the_front_costs_no_digits():
    rows = draw(500, 3, "sink", scale=1.0, offset=0.0, dtype=torch.float32)
    rows[0] = 1e4
    mean, m2 = moments_by_numpy(rows)
    found = Moments.of(rows)
    close(found.mean_D, mean)
    close(found.m2_D, m2)
    rest = Moments.of(rows[1:])
    back = Moments.of(rows[:1]).merge(rest)
    close(back.m2_D, m2)
    close(rest.m2_D, moments_by_numpy(rows[1:])[1])


def test_rows_of_norm_zero_have_no_cosine_distance():
    base = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    finetuned = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [3.0, 0.0]])
    found = PairStatistics.of(base, finetuned)
    assert (found.n, found.cosine.n) == (4, 2)
    assert found.summary()["mean_cosine_distance"] == pytest.approx(0.5)
    zeros = PairStatistics.of(base[:1], finetuned[:1]).summary()
    assert zeros["mean_cosine_distance"] is None
    assert zeros["cosine_of_means"] is None
    assert zeros["base"]["mean_norm"] == 0


@pytest.mark.parametrize("prefix", ["", "layer_03/residual."])
def test_a_file_gives_back_the_same_numbers(prefix, tmp_path):
    base, finetuned = random_pair(100, 5, torch.float32)
    base[4] = float("nan")
    base[5] = 0
    found = PairStatistics.of(base, finetuned)
    tensors = found.to_tensors(prefix)
    save_file({**tensors, "rows": base}, tmp_path / "x.safetensors")
    back = PairStatistics.from_tensors(load_file(tmp_path / "x.safetensors"), prefix)
    assert back.summary() == found.summary()
    for name, tensor in back.to_tensors(prefix).items():
        assert torch.equal(tensor, tensors[name])
    empty = PairStatistics.empty(5).to_tensors(prefix)
    assert {k: (v.shape, v.dtype) for k, v in empty.items()} == {k: (v.shape, v.dtype) for k, v in tensors.items()}
    with pytest.raises(KeyError):
        PairStatistics.from_tensors({k: v for k, v in tensors.items() if "cosine" not in k}, prefix)


def test_temporary_memory_is_bounded(monkeypatch):
    """No more than the six copies that fit into 64 MiB are made of a chunk, and chunks follow the width."""
    for device, limit in statistics._CHUNK_BYTES.items():
        assert 6 * limit <= 2**26, device
    for width in (576, 8192):
        ranges = list(statistics._chunks(torch.empty(5000, width, dtype=torch.bfloat16)))
        assert ranges[0][0] == 0
        assert ranges[-1][1] == 5000
        assert all(a[1] == b[0] for a, b in pairwise(ranges))
        assert max((stop - start) * width * 8 for start, stop in ranges) <= statistics._CHUNK_BYTES["cpu"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_on_a_gpu_give_the_same_numbers(dtype):
    base, finetuned = random_pair(4000, 64, dtype)
    base[17] = float("nan")
    same(PairStatistics.of(base.cuda(), finetuned.cuda()), PairStatistics.of(base, finetuned))
