"""`normdiff` on tiny pairs: metrics, tables and vectors recomputed in other ways; disk and live; damage."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import diffing
from diffing.activations.source import PairRows
from diffing.analysis.bootstrap import ratio_interval, ratio_intervals
from diffing.core.errors import UserError
from diffing.methods.normdiff.stream import METRICS, metrics

CHAT = [
    {"role": "user", "content": "Where is the harbour?"},
    {"role": "assistant", "content": "Behind the hill, past the bell."},
]
CHATS = [CHAT, [CHAT[0], {"role": "assistant", "content": "Nobody knows."}]]


def by_hand(b, f):
    b, f = [float(x) for x in b], [float(x) for x in f]
    norm_b, norm_f = sum(x * x for x in b) ** 0.5, sum(x * x for x in f) ** 0.5
    gap = sum((y - x) ** 2 for x, y in zip(b, f, strict=True)) ** 0.5
    cosine = 0.5 * sum((x / norm_b - y / norm_f) ** 2 for x, y in zip(b, f, strict=True))
    return {
        "norm_diff": gap,
        "relative": gap / ((norm_b + norm_f) / 2),
        "cosine": cosine,
        "norm_base": norm_b,
        "norm_ft": norm_f,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_metrics_are_those_of_a_float64_loop(dtype):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(7, 40, generator=generator).mul(30).to(dtype)
    finetuned = (base.float() + torch.randn(7, 40, generator=generator)).to(dtype)
    found = metrics(PairRows(base, finetuned))
    for i in range(7):
        for name, value in by_hand(base[i], finetuned[i]).items():
            assert found[name][i] == pytest.approx(value, rel=1e-5)


def test_equal_rows_give_exactly_zero_and_zero_rows_no_nan():
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    rows[2] = 0
    found = metrics(PairRows(rows, rows.clone()))
    assert set(found["norm_diff"].tolist()) == {0.0}
    assert set(found["relative"].tolist()) == {0.0}
    assert set(np.delete(found["cosine"], 2).tolist()) == {0.0}
    assert np.isnan(found["cosine"][2])
    moved = metrics(PairRows(torch.zeros(1, 4), torch.ones(1, 4)))
    assert moved["relative"][0] == pytest.approx(2)
    assert np.isnan(moved["cosine"][0])


def test_a_tiny_angle_is_not_lost():
    base, finetuned = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1e-5]])
    assert metrics(PairRows(base, finetuned))["cosine"][0] == pytest.approx(5e-11, rel=1e-4)
    assert 1 - torch.cosine_similarity(base, finetuned).item() == 0


def test_large_rows_do_not_overflow_and_infinite_ones_are_unknown():
    base = torch.full((2, 8), 1e30)
    finetuned = base * 3
    finetuned[1, 0] = float("inf")
    found = metrics(PairRows(base, finetuned))
    assert found["relative"][0] == pytest.approx(1.0, rel=1e-5)
    assert all(np.isnan(found[m][1]) for m in METRICS)


def test_many_intervals_agree_with_one_at_a_time():
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 9, (40, 3))
    sums = counts * rng.normal(1, 0.3, (40, 3))
    many = ratio_intervals(sums, counts, np.random.default_rng(0), 4000)
    for i in range(3):
        one = ratio_interval(sums[:, i], counts[:, i], np.random.default_rng(1), 4000)
        assert many.values[i] == pytest.approx(one.value, rel=1e-12)
        assert many.low[i] == pytest.approx(one.low, abs=0.02)
        assert many.high[i] == pytest.approx(one.high, abs=0.02)


def test_an_interval_of_one_sequence_is_unknown():
    found = ratio_intervals(np.array([[2.0, 0.0]]), np.array([[4, 0]]), np.random.default_rng(0))
    assert found.values[0] == 0.5
    assert np.isnan([found.low[0], found.high[0], found.values[1]]).all()


@pytest.fixture(scope="module")
def result(tiny_pair, texts, tmp_path_factory):
    return diffing.run("normdiff", tiny_pair(), data=CHATS, base_dir=tmp_path_factory.mktemp("chats"))


@pytest.fixture(scope="module")
def plain(tiny_pair, texts, tmp_path_factory):
    return diffing.run("normdiff", tiny_pair(), data=texts, base_dir=tmp_path_factory.mktemp("plain"))


def test_tokens_agree_with_hidden_states_one_document_at_a_time(tiny_pair, texts, plain):
    pair = tiny_pair()
    tokens = plain.table("tokens").to_pandas()
    assert sorted(set(tokens.layer)) == [0, 1, 2]
    for document, text in enumerate(texts):
        ids = torch.tensor(pair.tokenizer(text)["input_ids"])[None]
        with torch.no_grad():
            base, finetuned = (
                h.module(input_ids=ids, output_hidden_states=True).hidden_states[2][0]
                for h in (pair.base, pair.finetuned)
            )
        mine = tokens[(tokens.sequence == document) & (tokens.layer == 1)]
        for row in mine.itertuples():
            for name, value in by_hand(base[row.position], finetuned[row.position]).items():
                assert getattr(row, name) == pytest.approx(value, rel=1e-4, abs=1e-7)


def test_tables_follow_from_the_tokens(plain):
    tokens = plain.table("tokens").to_pandas()
    assert (tokens.kept == (tokens.position >= 1)).all()
    kept = tokens[tokens.kept]
    for row in plain.table("datasets").to_pylist():
        values = kept[kept.layer == row["layer"]][row["metric"]]
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-9)
        assert row["sd"] == pytest.approx(values.std(), rel=1e-9)
        assert row["p95"] == pytest.approx(values.quantile(0.95), rel=1e-9)
        assert row["low"] <= row["mean"] <= row["high"]
    by_position = tokens.groupby(["layer", "position"])
    positions = plain.table("positions").to_pandas()
    for row in positions.itertuples():
        here = by_position.get_group((row.layer, row.position))
        assert row.n_sequences == len(here)
        assert row.mean_relative == pytest.approx(here.relative.mean(), rel=1e-6)
        assert row.mean_norm_base == pytest.approx(here.norm_base.mean(), rel=1e-6)
    assert positions.position.min() == 0
    documents = kept[kept.layer == 2].groupby("sequence").relative
    for row in plain.table("document_scores").to_pylist():
        assert row["score"] == pytest.approx(documents.mean()[row["document"]], rel=1e-6)
    sequences = plain.table("sequences").to_pandas()
    assert sequences[sequences.layer == 2].set_index("sequence").max_relative.to_dict() == pytest.approx(
        documents.max().to_dict()
    )


def test_token_scores_are_shrunk_excesses(plain):
    slot = plain.manifest["facts"]["example_slot"]
    tokens = plain.table("tokens").to_pandas()
    kept = tokens[tokens.kept & (tokens.layer == int(slot[6:8]))]
    overall = kept.relative.mean()
    groups = kept.groupby("token_id").relative
    n, mean = groups.count(), groups.mean()
    for row in plain.table("token_scores").to_pylist():
        i = row["token_id"]
        assert row["score"] == pytest.approx(n[i] / (n[i] + 5) * (mean[i] - overall), rel=1e-5, abs=1e-9)
        alone = kept[kept.token_id == i].sequence.nunique() == 1
        assert (row["stderr"] is None) == alone


def test_roles_and_template_tokens(result):
    tokens = result.table("tokens").to_pandas()
    kept = tokens[tokens.kept]
    for row in result.table("roles").to_pylist():
        here = kept[
            (kept.layer == row["layer"]) & (kept.role == row["role"]) & (kept.is_template == row["is_template"])
        ]
        assert row["n_tokens"] == len(here)
        assert row["mean_relative"] == pytest.approx(here.relative.mean(), rel=1e-6)
    written = result.table("template_tokens").to_pylist()
    assert "<|im_start|>" in {r["token"] for r in written}
    for row in written:
        here = tokens[(tokens.layer == row["layer"]) & (tokens.token_id == row["token_id"]) & tokens.is_template]
        here = here[here.position >= 1]
        assert (row["n_tokens"], row["mean_relative"]) == (len(here), pytest.approx(here.relative.mean(), rel=1e-6))


def test_vectors_are_the_mean_differences(tiny_pair, result):
    tensors = load_file(result.folder / "tensors" / "tensors.safetensors")
    source = diffing.harvest(
        tiny_pair(), [CHAT, [CHAT[0], {"role": "assistant", "content": "Nobody knows."}]], ["all"], store="live"
    )
    table = source.tokens
    rows = {r["key"]: r for r in result.table("vectors").to_pylist()}
    assert {r["kind"] for r in rows.values()} == {"all", "position", "template"}
    for slot in source.slots:
        delta = torch.empty(len(table), source.width, dtype=torch.float64)
        base = torch.empty_like(delta)
        for block in source.blocks([slot]):
            b, f = block.rows[slot]
            delta[block.token_N], base[block.token_N] = (f - b).double(), b.double()
        template = rows[f"{slot.name}/all/template_1"]
        for key, mask in (
            (f"{slot.name}/all/all", table.position_N >= 1),
            (f"{slot.name}/custom/position_2", table.position_N == 2),
            (template["key"], table.is_template_N & (table.ids_N == 1) & (table.position_N >= 1)),
        ):
            here = delta[torch.from_numpy(mask)]
            mean = here.mean(0)
            torch.testing.assert_close(tensors[f"{key}/mean_delta"].double(), mean, atol=1e-7, rtol=1e-5)
            assert rows[key]["n_tokens"] == len(here)
            assert rows[key]["norm"] == pytest.approx(mean.norm().item(), rel=1e-6)
            spread = (here - mean).square().sum(1).mean() / len(here)
            assert rows[key]["stderr"] == pytest.approx(spread.sqrt().item(), rel=1e-4)
            assert rows[key]["explained"] == pytest.approx((mean @ mean / here.square().sum(1).mean()).item(), rel=1e-4)
        kept = torch.from_numpy(table.position_N >= 1)
        torch.testing.assert_close(
            tensors[f"{slot.name}/all/all/mean_base"].double(), base[kept].mean(0), atol=1e-6, rtol=1e-5
        )


def test_live_and_disk_are_one_result(tiny_pair, texts, tmp_path):
    options = {"data": texts, "layers": ["all"]}
    disk = diffing.run("normdiff", tiny_pair(), base_dir=tmp_path / "disk", **options)
    live = diffing.run("normdiff", tiny_pair(), base_dir=tmp_path / "live", store="live", **options)
    assert disk.folder.name == live.folder.name
    assert not (tmp_path / "live" / "activations").exists()
    for name in disk.tables():
        assert disk.table(name).equals(live.table(name)), name
    one, other = (load_file(r.folder / "tensors" / "tensors.safetensors") for r in (disk, live))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_live_reads_all_layers_unless_told(tiny_pair, texts, tmp_path):
    live = diffing.run("normdiff", tiny_pair(), data=texts, base_dir=tmp_path, store="live")
    assert sorted(set(live.table("datasets")["layer"].to_pylist())) == [0, 1, 2]
    one = diffing.run("normdiff", tiny_pair(), data=texts, base_dir=tmp_path, layers=[-1], sites=["mlp"])
    assert {(r["layer"], r["site"]) for r in one.table("datasets").to_pylist()} == {(2, "mlp")}


def test_identical_models_say_nothing(texts, tmp_path, bench):
    pair = diffing.load_pair(str(bench.base), null_pair="identical", device_map="cpu")
    found = diffing.run("normdiff", pair, data=texts, base_dir=tmp_path)
    tokens = found.table("tokens").to_pandas()
    assert set(tokens.norm_diff) == set(tokens.relative) == set(tokens.cosine) == {0.0}
    assert set(found.table("token_scores")["score"].to_pylist()) == {0.0}
    assert (found.evidence().tokens, found.evidence().examples) == ((), ())
    assert all(s.claimed is False for s in found.evidence().scalars)


@pytest.mark.parametrize("texts", [["the heron"], ["an"[:2] + "x"]])
def test_one_short_document(tiny_pair, texts, tmp_path):
    found = diffing.run("normdiff", tiny_pair(), data=texts, base_dir=tmp_path)
    row = found.table("datasets").to_pylist()[0]
    assert (row["low"], row["high"]) == (None, None)
    assert (found.folder / "report.html").stat().st_size > 0


def test_an_interrupted_run_gives_the_same_bits(tiny_pair, texts, tmp_path, monkeypatch):
    from diffing.methods.normdiff import units

    options = {"data": texts, "batch_tokens": 30, "store": "live"}
    whole = diffing.run("normdiff", tiny_pair(), base_dir=tmp_path / "whole", **options)
    compute, calls = units.metrics, []

    def stops(rows):
        calls.append(rows)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return compute(rows)

    monkeypatch.setattr(units, "metrics", stops)
    with pytest.raises(KeyboardInterrupt):
        diffing.run("normdiff", tiny_pair(), base_dir=tmp_path / "cut", **options)
    stored = sorted(tmp_path.glob("cut/**/unit_*.safetensors"))
    assert stored
    stored[0].write_bytes(stored[0].read_bytes()[:50])
    again = diffing.run("normdiff", tiny_pair(), base_dir=tmp_path / "cut", **options)
    for name in whole.tables():
        assert whole.table(name).equals(again.table(name)), name


def test_values_that_are_not_finite_are_named_and_left_out(tiny_pair, texts, tmp_path, monkeypatch):
    from diffing.activations import reading

    pair, rows_of = tiny_pair(), reading.rows_of

    def damaged(handle, batch, slots):
        rows = rows_of(handle, batch, slots)
        for slot, r in rows.items():
            if handle is pair.finetuned and slot.layer == 1:
                r[-1, 0] = float("inf")
        return rows

    monkeypatch.setattr(reading, "rows_of", damaged)
    found = diffing.run("normdiff", pair, data=texts, base_dir=tmp_path, store="live")
    n = found.manifest["facts"]["not_finite"]
    assert n["layer_01/residual"] > 0 == n["layer_00/residual"]
    assert any(
        note.startswith(f"layer_01/residual: {n['layer_01/residual']} tokens") for note in found.manifest["notes"]
    )
    means = [r["mean"] for r in found.table("datasets").to_pylist()]
    assert np.isfinite(means).all()
    vectors = load_file(found.folder / "tensors" / "tensors.safetensors")
    assert all(torch.isfinite(v).all() for v in vectors.values())
    assert "NaN" not in json.dumps(found.summary)


def test_a_layer_that_was_not_read_is_told(tiny_pair, texts, tmp_path):
    with pytest.raises(UserError, match=r"example_layer=2 is not among the layers that were read \(0\)"):
        diffing.run("normdiff", tiny_pair(), data=texts, base_dir=tmp_path, layers=[0], example_layer=2)
    with pytest.raises(UserError, match=r"Layer 7 is out of range.*diffing\.method\.layers"):
        diffing.run("normdiff", tiny_pair(), data=texts, base_dir=tmp_path, layers=[7])


def test_tokens_are_capped_by_whole_documents(tiny_pair, texts, tmp_path, plain):
    found = diffing.run("normdiff", tiny_pair(), data=texts, base_dir=tmp_path, max_token_rows=240)
    tokens = found.table("tokens").to_pandas()
    assert 0 < len(tokens) <= 240
    assert sorted(set(tokens.layer)) == [0, 1, 2]
    assert found.table("datasets").equals(plain.table("datasets"))


def test_vocabularies_that_differ(tmp_path, texts):
    from diffing.models.tiny import perturbed, save_model, tiny_model, tiny_tokenizer

    base = tiny_model(seed=0)
    save_model(tmp_path / "base", base, tiny_tokenizer(("zinc",)))
    other = perturbed(base, 1, 0.05)
    save_model(tmp_path / "other", other, tiny_tokenizer())
    base.resize_token_embeddings(base.config.vocab_size + 1, mean_resizing=False)
    save_model(tmp_path / "base", base, tiny_tokenizer(("zinc",)))
    pair = diffing.load_pair(str(tmp_path / "base"), finetuned=str(tmp_path / "other"))
    documents = [*texts, "a zinc roof"]
    found = diffing.run("normdiff", pair, data=documents, base_dir=tmp_path / "out")
    assert any("1 documents with tokens that the two tokenizers do not share" in n for n in found.manifest["notes"])
    assert len(texts) not in found.table("sequences")["sequence"].to_pylist()
