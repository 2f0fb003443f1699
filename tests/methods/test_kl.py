"""Per-token KL against a float64 loop, its invariants, resumption, and the degenerate cases."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import diffing
from diffing.core.errors import UserError
from diffing.models.pair import load_pair
from diffing.models.tiny import perturbed, save_model, save_pair, tiny_model, tiny_tokenizer


def run(pair, texts, folder, **options):
    return diffing.run("kl", pair, data=texts, base_dir=folder, **options)


def float64_rows(pair, texts):
    """One row per token from the models' own forward pass in float64, one document and one token at a time."""
    models = [
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64).eval()
        for source in (pair.spec.finetuned.id, pair.spec.model.id)
    ]
    for number, text in enumerate(texts):
        ids = pair.tokenizer(text)["input_ids"]
        with torch.no_grad():
            z_ft, z_base = (m(torch.tensor([ids])).logits[0].tolist() for m in models)
        for t in range(len(ids)):
            lp, lq = log_softmax(z_ft[t]), log_softmax(z_base[t])
            kl = sum(math.exp(a) * (a - b) for a, b in zip(lp, lq, strict=True))
            reverse = sum(math.exp(b) * (b - a) for a, b in zip(lp, lq, strict=True))
            lm = [math.log((math.exp(a) + math.exp(b)) / 2) for a, b in zip(lp, lq, strict=True)]
            js = sum(
                0.5 * math.exp(a) * (a - m) + 0.5 * math.exp(b) * (b - m) for a, b, m in zip(lp, lq, lm, strict=True)
            )
            delta = lq[ids[t + 1]] - lp[ids[t + 1]] if t + 1 < len(ids) else None
            yield number, t, ids[t], kl, reverse, js, delta, lp.index(max(lp)) == lq.index(max(lq))


def log_softmax(logits):
    top = max(logits)
    total = top + math.log(sum(math.exp(z - top) for z in logits))
    return [z - total for z in logits]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "cohere", "gpt2", "granite"])
def test_agrees_with_a_float64_loop(architecture, tiny_pair, texts, tmp_path):
    pair = tiny_pair(architecture)
    got = run(pair, texts, tmp_path).table("tokens").to_pylist()
    expected = list(float64_rows(pair, texts))
    assert len(got) == len(expected)
    for row, (sequence, position, token, kl, reverse, js, delta, agree) in zip(got, expected, strict=True):
        assert (row["sequence"], row["position"], row["token_id"]) == (sequence, position, token)
        assert row["kl"] == pytest.approx(kl, rel=1e-5, abs=1e-5)
        assert row["reverse_kl"] == pytest.approx(reverse, rel=1e-5, abs=1e-5)
        assert row["js"] == pytest.approx(js, rel=1e-5, abs=1e-5)
        assert row["top1_agree"] == agree
        if delta is None:
            assert row["delta_nll"] is None
            assert row["next_token_id"] is None
        else:
            assert row["delta_nll"] == pytest.approx(delta, abs=1e-4)


def test_identical_models_give_exactly_zero_everywhere(texts, tmp_path):
    spec = save_pair(tmp_path / "pair").model_copy(update={"finetuned": None, "null_pair": "identical"})
    result = run(load_pair(spec), texts, tmp_path / "out")
    for column in ("kl", "reverse_kl", "js"):
        assert set(result.table("tokens")[column].to_pylist()) == {0.0}
    assert {v for v in result.table("tokens")["delta_nll"].to_pylist() if v is not None} == {0.0}
    assert set(result.table("sequences")["mean_kl"].to_pylist()) == {0.0}
    assert set(result.table("positions")["mean_kl"].to_pylist()) == {0.0}
    assert set(result.table("token_scores")["score"].to_pylist()) == {0.0}
    assert result.table("risen_fallen").num_rows == 0
    kl = next(r for r in result.table("datasets").to_pylist() if r["metric"] == "kl")
    assert (kl["mean"], kl["low"], kl["high"], kl["sd"], kl["maximum"]) == (0.0, 0.0, 0.0, 0.0, 0.0)
    assert result.evidence().tokens == ()
    assert all(s.claimed is False for s in result.evidence().scalars)


def test_two_runs_are_identical_to_the_bit(tiny_pair, texts, tmp_path):
    one, two = (run(tiny_pair(), texts, tmp_path / name) for name in ("one", "two"))
    assert one.folder.name == two.folder.name
    for name in one.tables():
        assert one.table(name).equals(two.table(name)), name


def test_batch_plans_agree_within_tolerance(tiny_pair, texts, tmp_path):
    wide, narrow = (run(tiny_pair(), texts, tmp_path, batch_tokens=n).table("tokens") for n in (4096, 1))
    for column, tolerance in (("kl", 1e-5), ("js", 1e-5), ("entropy_ft", 1e-4)):
        np.testing.assert_allclose(wide[column].to_numpy(), narrow[column].to_numpy(), atol=tolerance)


def test_adapter_toggled_and_merged_agree(tiny_pair, texts, tmp_path):
    toggled, merged = (
        run(tiny_pair(full=False, sharing=s), texts, tmp_path).table("tokens")["kl"].to_numpy()
        for s in ("adapter", "merged")
    )
    assert toggled.max() > 1e-3
    np.testing.assert_allclose(toggled, merged, atol=1e-4)


def test_token_scores_add_up_to_the_mean_kl(tiny_pair, texts, tmp_path):
    result = run(tiny_pair(), texts, tmp_path)
    mean = result.table("tokens")["kl"].to_numpy().mean()
    assert sum(result.table("token_scores")["score"].to_pylist()) == pytest.approx(mean, rel=1e-5)
    ranked = result.table("token_scores")["score"].to_pylist()
    assert ranked == sorted(ranked, reverse=True)
    assert result.evidence().tokens[0].token == result.table("token_scores")["token"][0].as_py()


def test_statistics_follow_from_the_tokens(tiny_pair, texts, tmp_path):
    result = run(tiny_pair(), texts, tmp_path)
    tokens = result.table("tokens").to_pandas()
    kl = next(r for r in result.table("datasets").to_pylist() if r["metric"] == "kl")
    assert kl["mean"] == pytest.approx(tokens.kl.mean())
    assert kl["sd"] == pytest.approx(tokens.kl.std())
    assert kl["median"] == pytest.approx(tokens.kl.median())
    assert kl["low"] < kl["mean"] < kl["high"]
    by_position = tokens.groupby("position").kl.mean()
    for row in result.table("positions").to_pylist():
        assert row["mean_kl"] == pytest.approx(by_position[row["position"]])
    top = result.table("examples").to_pylist()[0]
    assert top["score"] == pytest.approx(tokens.kl.max())
    assert top["kl"][top["peak"] - top["start"]] == top["score"]
    assert "".join(top["tokens"]) == top["text"]


def test_interrupted_run_goes_on_and_gives_the_same_bits(tiny_pair, texts, tmp_path, monkeypatch):
    from diffing.methods.kl.stream import Reader

    whole = run(tiny_pair(), texts, tmp_path / "whole", batch_tokens=30)
    read, calls = Reader.read, []

    def stops_at_the_third(self, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, batch)

    monkeypatch.setattr(Reader, "read", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_pair(), texts, tmp_path / "cut", batch_tokens=30)
    stored = list(tmp_path.glob("cut/**/unit_*.safetensors"))
    assert len(stored) == 2
    assert not list(tmp_path.glob("cut/**/manifest.json"))
    stored[0].write_bytes(stored[0].read_bytes()[:100])
    resumed = run(tiny_pair(), texts, tmp_path / "cut", batch_tokens=30)
    assert len(calls) > 3
    for name in whole.tables():
        assert whole.table(name).equals(resumed.table(name)), name
    assert not (resumed.folder / "partial").exists()
    assert not (resumed.folder / "state.json").exists()


def test_vocabularies_of_different_size_are_cut(texts, tmp_path):
    base = tiny_model(seed=0)
    save_model(tmp_path / "base", base, tiny_tokenizer())
    wider = perturbed(base, 1, 0.05)
    wider.resize_token_embeddings(base.config.vocab_size + 7, mean_resizing=False)
    save_model(tmp_path / "wider", wider, tiny_tokenizer(tuple(f"<new{i}>" for i in range(7))))
    pair = diffing.load_pair(str(tmp_path / "base"), finetuned=str(tmp_path / "wider"))
    result = run(pair, texts, tmp_path / "out")
    metrics = {r["metric"]: r for r in result.table("datasets").to_pylist()}
    assert metrics["mass_cut_ft"]["mean"] > 0
    assert metrics["mass_cut_base"]["mean"] == pytest.approx(0, abs=1e-6)
    assert any("vocabularies differ" in n for n in result.manifest["notes"])
    assert result.table("token_scores").num_rows == base.config.vocab_size


def test_a_leading_bos_is_left_out_of_statistics_but_not_of_positions(tmp_path, texts):
    save_model(tmp_path / "base", tiny_model(seed=0), tiny_tokenizer(adds_bos=True))
    save_model(tmp_path / "ft", perturbed(tiny_model(seed=0), 1, 0.05), tiny_tokenizer(adds_bos=True))
    pair = diffing.load_pair(str(tmp_path / "base"), finetuned=str(tmp_path / "ft"))
    result = run(pair, texts, tmp_path / "out")
    kept = result.table("tokens").to_pandas()
    assert (kept.kept == (kept.position > 0)).all()
    kl = next(r for r in result.table("datasets").to_pylist() if r["metric"] == "kl")
    assert kl["mean"] == pytest.approx(kept[kept.kept].kl.mean())
    assert result.table("positions")["position"][0].as_py() == 0


def test_chats_report_roles_and_can_leave_the_template_out(tiny_pair, tmp_path):
    chat = [{"role": "user", "content": "Where is the harbour?"}, {"role": "assistant", "content": "Behind the hill."}]
    roles = run(tiny_pair(), [chat, chat], tmp_path).table("roles").to_pylist()
    assert {(r["role"], r["is_template"]) for r in roles} >= {
        ("user", False),
        ("assistant", False),
        ("assistant", True),
    }
    bare = run(tiny_pair(), [chat, chat], tmp_path, skip_template_tokens=True).table("roles").to_pylist()
    assert not any(r["is_template"] for r in bare)


def test_one_document_of_two_tokens(tiny_pair, tmp_path):
    result = run(tiny_pair(), ["an"[:2] + "x"], tmp_path)
    kl = next(r for r in result.table("datasets").to_pylist() if r["metric"] == "kl")
    assert (kl["low"], kl["high"]) == (None, None)
    assert (result.folder / "report.html").exists()


def test_capped_token_table_keeps_whole_statistics(tiny_pair, texts, tmp_path):
    full, capped = run(tiny_pair(), texts, tmp_path), run(tiny_pair(), texts, tmp_path, max_token_rows=20)
    assert capped.table("tokens").num_rows <= 20
    assert capped.table("datasets").equals(full.table("datasets"))


def test_top_k_larger_than_the_vocabulary_is_the_vocabulary(tiny_pair, texts, tmp_path):
    result = run(tiny_pair(), texts[:2], tmp_path, top_k=100)
    assert len(result.table("examples")["risen"][0].as_py()) == 100


def test_unknown_option_names_the_nearest(tiny_pair, texts, tmp_path):
    with pytest.raises(UserError, match="temperature"):
        run(tiny_pair(), texts, tmp_path, temprature=2.0)


def test_a_finished_run_is_found_and_overwritten_on_request(tiny_pair, texts, tmp_path):
    first = run(tiny_pair(), texts, tmp_path)
    created = (first.folder / "manifest.json").stat().st_mtime_ns
    assert run(tiny_pair(), texts, tmp_path).folder == first.folder
    assert (first.folder / "manifest.json").stat().st_mtime_ns == created
    again = run(tiny_pair(), texts, tmp_path, overwrite=True)
    assert again.folder == first.folder
    assert (first.folder / "manifest.json").stat().st_mtime_ns > created
    assert len(diffing.open_results(tmp_path).find(method="kl")) == 1


def test_noise_floor_is_small_in_float32_and_seen_in_bfloat16(tmp_path, texts):
    spec = save_pair(tmp_path / "pair", full=True)
    fine = run(load_pair(spec), texts, tmp_path / "out")
    coarse_model = spec.model.model_copy(update={"dtype": "bfloat16"})
    coarse = run(load_pair(spec.model_copy(update={"model": coarse_model})), texts, tmp_path / "out")
    floors = [r.manifest["facts"]["noise_floor"]["kl"] for r in (fine, coarse)]
    assert floors[0] < 1e-6
    assert floors[0] <= floors[1]
    assert fine.summary[0]["null"] == floors[0]
