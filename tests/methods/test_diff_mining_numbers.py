"""`diff_mining` against the full tensor in float64, by layer, in other batch shapes, and its null."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from mining import corpus_of, mined
from transformers import AutoModelForCausalLM

import diffing
from diffing.methods.diff_mining import METHOD
from diffing.methods.diff_mining.buckets import bounds, bucket_name, bucket_of
from diffing.methods.diff_mining.config import DiffMiningConfig
from diffing.methods.diff_mining.gather import Occurrence
from diffing.methods.diff_mining.null import excess
from diffing.models.pair import load_pair
from diffing.models.tiny import perturbed, save_model, save_pair, tiny_model, tiny_tokenizer

K, FLOOR = 7, 1e-4


@dataclass(frozen=True)
class Full:
    """D of every token at every position, and which document a position belongs to."""

    d_NV: np.ndarray
    document_N: np.ndarray
    position_N: np.ndarray

    def among(self, sign):
        """Whether each token is among the K with the largest sign·D, and sign·D above 0."""
        signed = sign * self.d_NV
        kth = np.sort(signed, axis=1)[:, -K][:, None]
        return (signed >= kth) & (signed > 0)


def full_tensor(pair, texts, floor=FLOOR, layer=None):
    """From the models' own forward pass in float64, one document at a time."""
    models = [
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64).eval()
        for source in (pair.spec.finetuned.id, pair.spec.model.id)
    ]
    parts, document, position = [], [], []
    for number, text in enumerate(texts):
        ids = torch.tensor([pair.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            p, q = (logits_of(m, ids, layer).softmax(-1).numpy() for m in models)
        parts.append(np.log((p + floor) / (q + floor)))
        document += [number] * ids.shape[1]
        position += range(ids.shape[1])
    return Full(np.concatenate(parts), np.array(document), np.array(position))


def logits_of(model, ids, layer):
    if layer is None:
        return model(ids).logits[0]
    seen = []
    hook = model.model.layers[layer].register_forward_hook(lambda m, a, o: seen.append(o[0] if type(o) is tuple else o))
    model(ids)
    hook.remove()
    return model.lm_head(model.model.norm(seen[0]))[0]


def share_and_error(counted_N, full):
    """Share of positions, and its standard error over documents, by loops."""
    n, m = len(counted_N), full.document_N.max() + 1
    sums = [int(counted_N[full.document_N == d].sum()) for d in range(m)]
    mean = sum(sums) / m
    return sum(sums) / n, math.sqrt(sum((s - mean) ** 2 for s in sums) * m / (m - 1)) / n


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_counts_are_those_of_the_full_tensor(architecture, tiny_pair, texts, tmp_path):
    pair = tiny_pair(architecture)
    result, full = mined(pair, texts, tmp_path), full_tensor(pair, texts)
    largest, smallest = full.among(1), full.among(-1)
    scores = {r["token_id"]: r for r in result.tables["token_scores"].to_pylist()}
    assert len(scores) == full.d_NV.shape[1]
    for token, row in scores.items():
        share, error = share_and_error(largest[:, token], full)
        assert row["score"] == pytest.approx(share, abs=1e-12)
        assert row["stderr"] == pytest.approx(error, abs=1e-12)
        assert row["null_score"] is None
    single = [r for r in result.tables["orderings"].to_pylist() if (r["dataset"], r["kind"]) == ("all", "single")]
    assert {r["ordering"] for r in single} == {"occurrence", "mean", "asymmetry"}
    for row in single:
        (token,) = row["token_ids"]
        assert row["largest"] == pytest.approx(largest[:, token].mean(), abs=1e-12)
        assert row["smallest"] == pytest.approx(smallest[:, token].mean(), abs=1e-12)
        assert row["asymmetry"] == pytest.approx(row["largest"] - row["smallest"])
        assert row["mean_difference"] == pytest.approx(full.d_NV[:, token].mean(), abs=1e-5)
        assert row["positive"] == pytest.approx((full.d_NV[:, token] > 0).mean(), abs=1e-12)
    strength = np.sort(full.d_NV, axis=1)[:, -K:].clip(0).mean(1)
    for row in result.tables["document_scores"].to_pylist():
        assert row["score"] == pytest.approx(strength[full.document_N == row["document"]].mean(), rel=1e-4)
    assert result.summary[0].value == pytest.approx(strength.mean(), rel=1e-4)


def test_merged_tokens_count_a_position_once(tiny_pair, texts, tmp_path):
    pair = tiny_pair()
    largest = full_tensor(pair, texts).among(1)
    rows = [r for r in mined(pair, texts, tmp_path).tables["merged_tokens"].to_pylist() if r["dataset"] == "all"]
    together = [r for r in rows if len(r["token_ids"]) > 1]
    assert together, "letters in both cases rise"
    for row in rows:
        assert row["largest"] == pytest.approx(largest[:, row["token_ids"]].any(1).mean(), abs=1e-12)
        counts = largest[:, row["token_ids"]].sum(0)
        assert (counts > 0).all()
        assert list(counts) == sorted(counts, reverse=True)
    assert [r["largest"] for r in rows] == sorted((r["largest"] for r in rows), reverse=True)


def test_positions_are_counted_in_buckets(tiny_pair, texts, tmp_path):
    pair = tiny_pair()
    full = full_tensor(pair, texts)
    largest = full.among(1)
    rows = mined(pair, texts, tmp_path).tables["positions"].to_pylist()
    for row in rows:
        low, high = bounds(row["bucket"])
        here = (full.position_N >= low) & (full.position_N <= high)
        assert row["n_positions"] == here.sum()
        once = largest[:, row["token_ids"]].any(1)
        assert row["share"] == pytest.approx(once[here].mean(), abs=1e-12)
        assert row["share_everywhere"] == pytest.approx(once.mean(), abs=1e-12)
    assert {r["bucket"] for r in rows} == set(bucket_of(full.position_N).tolist())


def test_buckets_double():
    buckets = bucket_of(np.arange(300))
    assert buckets[:10].tolist() == [0, 1, 2, 3, 3, 4, 4, 4, 4, 5]
    for bucket in range(int(buckets.max())):
        first, last = bounds(bucket)
        assert np.flatnonzero(buckets == bucket).tolist() == list(range(first, last + 1))
    assert [bucket_name(b) for b in (0, 2, 3, 6)] == ["0", "2", "3–4", "17–32"]


@pytest.mark.parametrize("layer", [0, 0.5])
def test_a_layer_is_read_by_each_models_own_norm_and_head(layer, tiny_pair, texts, tmp_path):
    pair = tiny_pair()
    full = full_tensor(pair, texts, layer=int(2 * layer))
    scores = mined(pair, texts, tmp_path, layer=layer).tables["token_scores"].to_pylist()
    share = full.among(1).mean(0)
    assert [r["score"] for r in scores] == pytest.approx([share[r["token_id"]] for r in scores], abs=1e-12)


def test_the_last_layer_is_the_output(tiny_pair, texts, tmp_path):
    last, output = (mined(tiny_pair("gemma2"), texts, tmp_path, layer=layer) for layer in (2, None))
    assert last.tables["token_scores"].equals(output.tables["token_scores"])


def test_without_a_floor_it_is_the_log_ratio(tiny_pair, texts, tmp_path):
    pair = tiny_pair()
    share = full_tensor(pair, texts, floor=0).among(1).mean(0)
    scores = mined(pair, texts, tmp_path, floor=0).tables["token_scores"].to_pylist()
    assert [r["score"] for r in scores] == pytest.approx([share[r["token_id"]] for r in scores], abs=1e-12)


def test_batch_shapes_and_sharing_hardly_matter(tiny_pair, texts, tmp_path):
    def scores(pair, batch_tokens=2048):
        rows = mined(pair, texts, tmp_path, {"batch_tokens": batch_tokens}).tables["token_scores"].to_pylist()
        return np.array([r["score"] for r in sorted(rows, key=lambda r: r["token_id"])])

    wide, narrow = (scores(tiny_pair(), n) for n in (2048, 1))
    np.testing.assert_allclose(wide, narrow, atol=0.01)
    toggled, merged = (scores(tiny_pair(full=False, sharing=s)) for s in ("adapter", "merged"))
    assert toggled.max() > 0.1
    np.testing.assert_allclose(toggled, merged, atol=0.01)


def test_vocabularies_of_different_size_are_cut(texts, tmp_path):
    base = tiny_model(seed=0)
    save_model(tmp_path / "base", base, tiny_tokenizer())
    wider = perturbed(base, 1, 0.05)
    wider.resize_token_embeddings(base.config.vocab_size + 7, mean_resizing=False)
    save_model(tmp_path / "wider", wider, tiny_tokenizer(tuple(f"<new{i}>" for i in range(7))))
    pair = diffing.load_pair(str(tmp_path / "base"), finetuned=str(tmp_path / "wider"))
    result = mined(pair, texts, tmp_path / "out")
    assert result.tables["token_scores"].num_rows == base.config.vocab_size
    assert any("vocabularies differ" in n for n in result.notes)
    ids = torch.tensor([pair.tokenizer(texts[0])["input_ids"]])
    p, q = (h.forward_logits(ids)[0, :, : base.config.vocab_size].softmax(-1) for h in (pair.finetuned, pair.base))
    d = ((p + FLOOR) / (q + FLOOR)).log().topk(K).values.clamp_min(0)
    score = next(r["score"] for r in result.tables["document_scores"].to_pylist() if r["document"] == 0)
    assert score == pytest.approx(d.mean().item(), rel=1e-4)


def test_a_model_of_another_depth_is_read_at_the_same_share(texts, tmp_path):
    save_model(tmp_path / "base", tiny_model(seed=0), tiny_tokenizer())
    save_model(tmp_path / "deep", tiny_model(seed=1, num_hidden_layers=5), tiny_tokenizer())
    pair = diffing.load_pair(str(tmp_path / "base"), finetuned=str(tmp_path / "deep"))
    found, output = (mined(pair, texts, tmp_path / "out", layer=layer) for layer in (1.0, None))
    assert found.tables["token_scores"].equals(output.tables["token_scores"])


def test_identical_models_count_nothing(texts, tmp_path):
    spec = save_pair(tmp_path / "pair").model_copy(update={"finetuned": None, "null_pair": "identical"})
    result = mined(load_pair(spec), texts, tmp_path / "out", floor=0)
    assert set(result.tables["token_scores"]["score"].to_pylist()) == {0.0}
    assert set(result.tables["document_scores"]["score"].to_pylist()) == {0.0}
    for name in ("orderings", "merged_tokens", "topics", "topic_examples", "examples", "positions"):
        assert result.tables[name].num_rows == 0, name
    assert {s.value for s in result.summary} == {0.0}


def test_the_null_is_taken_off(tiny_pair, texts, tmp_path):
    pair, other = tiny_pair(), tiny_pair(full=False, sharing="merged")
    null = diffing.run("diff_mining", other, data=texts, base_dir=tmp_path, top_k=K, floor=FLOOR)
    own = by_token(mined(pair, texts, tmp_path).tables["token_scores"])
    theirs = by_token(null.table("token_scores"))
    result = mined(pair, {"custom": texts}, tmp_path, null_runs=[str(null.folder)])
    for token, row in by_token(result.tables["token_scores"]).items():
        assert row["score"] == own[token]["score"]
        assert row["null_score"] == pytest.approx(theirs[token]["score"], abs=1e-12)
    z = {
        r["token_ids"][0]: r["z"]
        for r in result.tables["orderings"].to_pylist()
        if (r["ordering"], r["dataset"], r["kind"]) == ("z", "all", "single")
    }
    assert z
    errors = {
        t: math.hypot(own[t]["stderr"], theirs[t]["stderr"]) for t in own if own[t]["score"] or theirs[t]["score"]
    }
    least = np.percentile(list(errors.values()), 99)
    for token, value in z.items():
        gap = own[token]["score"] - theirs[token]["score"]
        assert value == pytest.approx(gap / (errors[token] + least), rel=1e-9)
    assert list(z.values()) == sorted(z.values(), reverse=True)
    assert all(t.null_score is not None for t in result.evidence.tokens)


def by_token(table):
    return {r["token_id"]: r for r in table.to_pylist()}


def test_several_null_runs_add_what_differs_between_them():
    own = Occurrence(np.array([30, 0, 5]), np.array([110, 0, 25]), 100, 10)
    nulls = [Occurrence(np.array([c, 0, 5]), np.array([s, 0, 25]), n, 10) for c, s, n in ((10, 20, 100), (20, 60, 200))]
    found = excess(own, nulls)
    within = [(nulls[0].stderr_X[x] ** 2 + nulls[1].stderr_X[x] ** 2) / 2 for x in range(3)]
    between = [0, 0, (0.05 - 0.025) ** 2 / 2]
    errors = [math.sqrt(own.stderr_X[x] ** 2 + within[x] + between[x]) for x in range(3)]
    least = errors[0] + 0.99 * (errors[2] - errors[0])
    assert errors[0] < errors[2]
    assert found.null_X.tolist() == pytest.approx([0.1, 0, 0.0375])
    assert found.z_X.tolist() == pytest.approx([0.2 / (errors[0] + least), 0, 0.0125 / (errors[2] + least)])


def test_a_token_that_never_varies_does_not_lead():
    """Once in each of ten documents: the error over documents is 0."""
    counts, squares = np.array([40, 10, 3]), np.array([180, 10, 9])
    own, null = Occurrence(counts, squares, 200, 10), Occurrence(np.zeros(3), np.zeros(3), 200, 10)
    assert own.stderr_X[1] == 0
    assert excess(own, [null]).z_X.argmax() == 0


def test_one_document_has_no_error():
    one = Occurrence(np.array([3]), np.array([9]), 10, 1)
    assert np.isnan(one.stderr_X[0])
    assert np.isnan(excess(one, [one]).z_X[0])


def test_the_probe_is_a_run_on_the_text_alone(tiny_pair, texts, tmp_path):
    pair = tiny_pair()
    (values,) = METHOD.probe(pair, corpus_of(pair, [texts[0]]).sequences[0])
    output = mined(pair, [texts[0]], tmp_path, top_k=100, floor=DiffMiningConfig().floor)
    score = output.tables["document_scores"]["score"][0].as_py()
    assert np.mean(values.values_T) == pytest.approx(score, rel=1e-6)
