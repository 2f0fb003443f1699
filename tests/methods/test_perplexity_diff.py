"""`perplexity_diff`: scores against direct computation, nulls, resumption, tokenizers that differ, bad input."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import diffing
from diffing.core.errors import UserError
from diffing.core.specs import CorpusSpec
from diffing.data.documents import documents_from_texts
from diffing.data.prompts import raw_prompt_ids
from diffing.data.tokens import tokenize_documents
from diffing.methods.perplexity_diff import writing
from diffing.methods.perplexity_diff.config import PerplexityDiffConfig
from diffing.methods.perplexity_diff.prefills import choose_prefills
from diffing.methods.perplexity_diff.writing import split_ids
from diffing.models.generation import generate
from diffing.models.pair import load_pair
from diffing.models.sampling import Sampling
from diffing.models.tiny import perturbed, save_model, save_pair, tiny_model, tiny_tokenizer

CHAT = [{"role": "user", "content": "Name a bird."}, {"role": "assistant", "content": "A heron."}]
SMALL = {"n_texts": 6, "max_new_tokens": 7}


def run(pair, data, folder, **options):
    return diffing.run("perplexity_diff", pair, data=data, base_dir=folder, **{**SMALL, **options})


@pytest.fixture(scope="module")
def found(tiny_pair, texts, tmp_path_factory):
    return run(tiny_pair(), texts, tmp_path_factory.mktemp("perplexity"))


def rows_of(result, source="finetuned"):
    return [r for r in result.table("texts").to_pylist() if r["source"] == source]


def test_scores_are_those_of_a_float64_forward_pass(found, tiny_pair, texts):
    pair = tiny_pair()
    p, q = (
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64).eval()
        for source in (pair.spec.finetuned.id, pair.spec.model.id)
    )
    for sign, source in ((1, "finetuned"), (-1, "base")):
        rows = rows_of(found, source)
        assert len(rows) == 6
        assert [r["rank"] for r in rows] == list(range(6))
        assert sorted((r["advantage"] for r in rows), reverse=True) == [r["advantage"] for r in rows]
        for row in rows:
            ids = pair.tokenizer(texts[row["document"]])["input_ids"][:4]
            assert row["prefill"] == pair.tokenizer.decode(ids)
            whole = torch.tensor([ids + row["token_ids"]])
            new = torch.tensor(row["token_ids"])[:, None]
            lp, lq = (m(whole).logits[0, 3:-1].log_softmax(-1).gather(1, new)[:, 0].tolist() for m in (p, q))
            assert row["log_ratios"] == pytest.approx([a - b for a, b in zip(lp, lq, strict=True)], abs=1e-4)
            total = sum(lp) - sum(lq)
            assert row["mean_log_ratio"] == pytest.approx(total / len(lp), abs=1e-4)
            assert row["advantage"] == pytest.approx(sign * total / len(lp), abs=1e-4)
            assert row["nll_base"] == pytest.approx(-sum(lq) / len(lq), abs=1e-4)
            if row["n_bytes"]:
                assert row["per_byte"] == pytest.approx(total / len(row["text"].encode()), abs=1e-4)


def test_texts_are_those_that_each_model_writes(found, tiny_pair, texts):
    pair = tiny_pair()
    chosen = prefills(pair, texts, n_texts=6).by_dataset["custom"]
    written = []
    for source, handle in (("finetuned", pair.finetuned), ("base", pair.base)):
        alone = [
            [t.id for t in generate(handle, p.ids, Sampling(7, seed=p.seed), {pair.tokenizer.eos_token_id})]
            for p in chosen
        ]
        assert sorted(r["token_ids"] for r in rows_of(found, source)) == sorted(alone)
        written.append(alone)
    assert written[0] != written[1]


def prefills(pair, data, texts_only=False, **options):
    documents = documents_from_texts("custom", data)
    corpus = tokenize_documents({"custom": documents}, CorpusSpec(datasets=()), pair.tokenizer, pair.rules)
    context = SimpleNamespace(corpus=corpus, seed=0, tokenizer=pair.tokenizer)
    return choose_prefills(PerplexityDiffConfig(**options), context, texts_only)


def test_means_are_over_tokens_and_the_base_is_the_null(found):
    for source in ("finetuned", "base"):
        rows = rows_of(found, source)
        (row,) = [r for r in found.table("datasets").to_pylist() if r["source"] == source]
        sign = 1 if source == "finetuned" else -1
        total = sum(sum(r["log_ratios"]) for r in rows)
        assert row["advantage"] == pytest.approx(sign * total / sum(r["n_tokens"] for r in rows))
        assert row["per_byte"] == pytest.approx(sign * total / sum(r["n_bytes"] for r in rows))
        assert row["low"] <= row["advantage"] <= row["high"]
    threshold = np.percentile([r["advantage"] for r in rows_of(found, "base")], 95)
    finetuned = next(r for r in found.table("datasets").to_pylist() if r["source"] == "finetuned")
    assert finetuned["share_above_base"] == np.mean([r["advantage"] > threshold for r in rows_of(found)])
    mean, share, by_byte = found.summary
    assert (mean["value"], share["null"], by_byte["unit"]) == (finetuned["advantage"], 0.05, "nats/byte")
    assert mean["null"] == row["advantage"]


def test_positions_and_tokens_add_up_to_the_texts(found):
    rows = rows_of(found)
    third = next(r for r in found.table("positions").to_pylist() if (r["source"], r["position"]) == ("finetuned", 2))
    assert third["advantage"] == pytest.approx(np.mean([r["log_ratios"][2] for r in rows if r["n_tokens"] > 2]))
    pairs = [(i, v) for r in rows for i, v in zip(r["token_ids"], r["log_ratios"], strict=True)]
    mean = np.mean([v for _, v in pairs])
    for row in found.table("token_scores").to_pylist()[:5]:
        mine = [v - mean for i, v in pairs if i == row["token_id"]]
        assert row["score"] == pytest.approx(sum(mine) / (len(mine) + 5))


def test_identical_models_find_nothing(texts, tmp_path):
    spec = save_pair(tmp_path / "pair").model_copy(update={"finetuned": None, "null_pair": "identical"})
    result = run(load_pair(spec), texts, tmp_path / "out")
    assert {v for r in result.table("texts").to_pylist() for v in r["log_ratios"]} == {0.0}
    assert set(result.table("texts")["advantage"].to_pylist()) == {0.0}
    assert [r["token_ids"] for r in rows_of(result)] == [r["token_ids"] for r in rows_of(result, "base")]
    assert result.table("phrases").num_rows == 0
    evidence = result.evidence()
    assert evidence.tokens == evidence.texts == ()
    assert all(s.claimed is False and s.value == 0.0 for s in evidence.scalars)


def test_an_interrupted_run_goes_on_to_the_same_bits(tiny_pair, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_UNIT_TEXTS", 2)
    whole = run(tiny_pair(), texts, tmp_path / "whole")
    write, calls = writing.write_texts, []

    def stop(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(writing, "write_texts", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_pair(), texts, tmp_path / "part")
    (kept, *_) = sorted((tmp_path / "part").rglob("finetuned_0001.json"))
    kept.write_text(kept.read_text()[:-20])
    rest = run(tiny_pair(), texts, tmp_path / "part")
    assert len(calls) == 3 + 5, "the first unit was kept, the broken one was not"
    for name in whole.tables():
        assert rest.table(name).equals(whole.table(name)), name


def test_a_switched_adapter_gives_the_texts_of_a_merged_one(texts, tmp_path):
    spec = save_pair(tmp_path / "pair", scale=0.3)
    merged, switched = (
        run(load_pair(spec.model_copy(update={"sharing": s})), texts, tmp_path / s) for s in ("merged", "adapter")
    )
    assert [r["token_ids"] for r in rows_of(merged)] == [r["token_ids"] for r in rows_of(switched)]
    gap = np.subtract(*(r.table("texts")["advantage"].to_numpy() for r in (merged, switched)))
    assert np.abs(gap).max() < 1e-4


def test_chats_are_continued_where_the_answer_begins(tiny_pair, tmp_path):
    pair = tiny_pair()
    result = run(pair, [CHAT, [CHAT[0]]], tmp_path, n_texts=2)
    assert {r["prefill"] for r in rows_of(result)} == {
        "<|im_start|>user\nName a bird.<|im_end|>\n<|im_start|>assistant\n"
    }
    assert any("1 of 2 documents" in note for note in result.manifest["notes"])
    with pytest.raises(UserError, match="beginning to go on from"):
        prefills(pair, [CHAT], texts_only=True)


def test_documents_are_used_once_before_any_is_used_again(tiny_pair, texts):
    found = prefills(tiny_pair(), texts, n_texts=8)
    (mine,) = found.by_dataset.values()
    assert len({p.seed for p in mine}) == 8
    assert [p.document for p in mine[:4]] == [p.document for p in mine[4:]]
    assert sorted(p.document for p in mine[:4]) == [0, 1, 2, 3], "the last document has no fifth token"
    assert ["1 of 5 documents" in note for note in found.notes] == [True]


def test_leading_special_tokens_are_not_counted(tmp_path):
    base = tiny_model()
    folder = save_model(tmp_path / "base", base, tiny_tokenizer(adds_bos=True))
    other = save_model(tmp_path / "other", perturbed(base, 1, 0.05), tiny_tokenizer(adds_bos=True))
    pair = diffing.load_pair(str(folder), finetuned=str(other), device_map="cpu")
    for n in (0, 3):
        (mine,) = prefills(pair, ["the heron stood"], n_texts=1, prefill_tokens=n).by_dataset.values()
        assert list(mine[0].ids) == pair.tokenizer("the heron stood")["input_ids"][: n + 1]


def test_prefills_that_do_not_exist_are_refused(tiny_pair, texts, tmp_path):
    with pytest.raises(UserError, match=r"prefill_tokens=400 tokens"):
        run(tiny_pair(), texts, tmp_path, prefill_tokens=400)
    with pytest.raises(UserError, match="has no token that begins a text"):
        run(tiny_pair(), texts, tmp_path, prefill_tokens=0)


def test_one_token_and_texts_that_are_all_the_same(tiny_pair, tmp_path):
    result = run(tiny_pair(), ["the heron stood"], tmp_path, n_texts=3, max_new_tokens=1, temperature=1e-6)
    assert [r["n_tokens"] for r in rows_of(result)] == [1, 1, 1]
    assert any("all 3 texts of the finetuned model are the same" in note for note in result.manifest["notes"])
    one = run(tiny_pair(), ["the heron stood"], tmp_path / "one", n_texts=1, max_new_tokens=1)
    assert {r["low"] for r in one.table("datasets").to_pylist()} == {None}


def test_vllm_is_asked_for_by_name(tiny_pair, texts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"diffing\[vllm\]"):
        run(tiny_pair(), texts, tmp_path, sampler="vllm")


def foreign_tokenizer():
    """Bytes in another order, and no merges."""
    names = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True), "Ġt", "he", "st"]
    inner = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, [("Ġ", "t"), ("h", "e"), ("s", "t")]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    spec = save_pair(folder, full=True)
    save_model(folder / "finetuned", perturbed(tiny_model(), 1, 0.05), foreign_tokenizer())
    return spec


def test_models_whose_tokenizers_differ_are_compared_by_bytes(foreign, texts, tmp_path):
    pair = load_pair(foreign, must_share_tokens=False)
    result = run(pair, texts, tmp_path)
    assert "token_scores" not in result.tables()
    assert result.manifest["facts"]["unit"] == "nats/byte"
    assert any("per byte" in note for note in result.manifest["notes"])
    assert {s.unit for s in result.evidence().scalars} == {"nats/byte", "share"}
    for row in result.table("texts").to_pylist():
        text, log_probs = row["prefill"] + row["text"], []
        if "\ufffd" in text or not row["n_bytes"]:
            continue
        for handle in (pair.finetuned, pair.base):
            ids = raw_prompt_ids(text, handle.tokenizer)
            n_before = len(split_ids(handle, row["prefill"], row["text"])[0])
            logits = handle.forward_logits(torch.tensor([ids]))[0].double().log_softmax(-1)
            log_probs.append(sum(float(logits[t - 1, ids[t]]) for t in range(n_before, len(ids))))
        assert row["per_byte"] == pytest.approx((log_probs[0] - log_probs[1]) / len(row["text"].encode()), abs=1e-3)
        assert row["advantage"] == pytest.approx(row["per_byte"] * (1 if row["source"] == "finetuned" else -1))
        assert row["mean_log_ratio"] is None
        assert set(row["log_ratios"]) == {None}
    assert json.loads((result.folder / "summary.json").read_text())["scalars"]


def test_other_methods_refuse_tokenizers_that_differ(foreign, texts, tmp_path):
    with pytest.raises(UserError, match=r"agree on only .*perplexity_diff, which compares texts"):
        load_pair(foreign)
    pair = load_pair(foreign, must_share_tokens=False)
    with pytest.raises(UserError, match="agree on only"):
        diffing.run("kl", pair, data=texts, base_dir=tmp_path)
    with pytest.raises(UserError, match="agree on only"):
        diffing.harvest(pair, data=texts, base_dir=tmp_path)


def test_the_python_api_loads_models_whose_tokenizers_differ_on_request(foreign):
    base, finetuned = foreign.model.id, foreign.finetuned.id
    with pytest.raises(UserError, match="agree on only"):
        diffing.load_pair(base, finetuned=finetuned)
    pair = diffing.load_pair(base, finetuned=finetuned, must_share_tokens=False)
    assert pair.vocabulary.refusal is not None


def test_a_token_on_both_sides_of_the_beginning_counts_to_the_text(foreign):
    pair = load_pair(foreign, must_share_tokens=False)
    before, after = split_ids(pair.finetuned, "on t", "he st")
    assert [pair.finetuned.tokenizer.decode(i) for i in before] == ["o", "n", " t"]
    before, after = split_ids(pair.finetuned, "on ", "the")
    assert [pair.finetuned.tokenizer.decode(i) for i in after] == [" t", "he"]
    assert len(split_ids(pair.finetuned, "", "the")[0]) == 1
