"""`diff_mining`: interruption, topics, examples, null runs that do not fit, degenerate texts, options."""

import dataclasses
import json

import numpy as np
import pytest
from memory_source import corpus_of_lengths
from mining import mined

import diffing
from diffing.analysis.merged_tokens import merge_tokens
from diffing.core.config import parse
from diffing.core.errors import UserError
from diffing.data.token_table import TokenTable
from diffing.methods.diff_mining import METHOD
from diffing.methods.diff_mining.config import DiffMiningConfig
from diffing.methods.diff_mining.gather import Gathered
from diffing.methods.diff_mining.stream import Miner
from diffing.methods.diff_mining.topics import find_topics
from diffing.methods.diff_mining.units import Frame
from diffing.models.pair import load_pair
from diffing.models.tiny import perturbed, save_model, save_pair, tiny_model, tiny_tokenizer

SMALL = {"top_k": 10, "n_topics": 3}
FITTING = {**SMALL, "floor": DiffMiningConfig().floor}


def run(pair, texts, folder, **options):
    return diffing.run("diff_mining", pair, data=texts, base_dir=folder, **{**SMALL, **options})


@pytest.fixture(scope="module")
def output(tiny_pair, texts, tmp_path_factory):
    return mined(tiny_pair(), texts, tmp_path_factory.mktemp("mined"))


@pytest.fixture(scope="module")
def null(tiny_pair, texts, tmp_path_factory):
    """A finished run of another finetuned model on the same text."""
    return run(tiny_pair(full=False, sharing="merged"), texts, tmp_path_factory.mktemp("null"))


@pytest.fixture
def lent_pair(tmp_path):
    """A pair that a test may damage."""
    save_model(tmp_path / "base", tiny_model(seed=0), tiny_tokenizer())
    save_model(tmp_path / "ft", perturbed(tiny_model(seed=0), 1, 0.05), tiny_tokenizer())
    return diffing.load_pair(str(tmp_path / "base"), finetuned=str(tmp_path / "ft"))


def test_interrupted_run_goes_on_and_gives_the_same_bits(tiny_pair, texts, tmp_path, monkeypatch):
    short, scratch = {"batch_tokens": 30}, tmp_path / "scratch"
    whole = mined(tiny_pair(), texts, tmp_path, short)
    read, calls = Miner.read, []

    def stops_at_the_third(self, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, batch)

    monkeypatch.setattr(Miner, "read", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        mined(tiny_pair(), texts, tmp_path, {**short, "scratch": scratch})
    stored = sorted(scratch.glob("unit_*.safetensors"))
    assert len(stored) == 2
    stored[0].write_bytes(stored[0].read_bytes()[:100])
    untouched = stored[1].stat().st_mtime_ns
    resumed = mined(tiny_pair(), texts, tmp_path, {**short, "scratch": scratch})
    assert stored[1].stat().st_mtime_ns == untouched
    assert len(calls) > 3
    for name, table in whole.tables.items():
        assert table.equals(resumed.tables[name]), name
    for name, tensor in whole.tensors.items():
        assert resumed.tensors[name].equal(tensor), name


def test_vocabulary_sums_do_not_grow_with_the_text(tiny_pair, texts, tmp_path, monkeypatch):
    from diffing.methods.diff_mining import run as run_module
    from diffing.methods.diff_mining.units import SUMS, UnitWriter

    seen = []
    write = UnitWriter.write

    def noting(self, path):
        write(self, path)
        seen.append((sum(self.sums[n].nbytes for n in SUMS), path.stat().st_size))

    monkeypatch.setattr(run_module.UnitWriter, "write", noting)
    for many in (1, 12):
        mined(tiny_pair(), texts * many, tmp_path, n_examples=1, max_topic_positions=20)
    (few, few_bytes), *_, (more, more_bytes) = seen
    assert few == more
    assert more_bytes - few_bytes < 100 * 12 * len(texts)


def test_examples_stand_where_tokens_rise_most(output):
    scores = {r["document"]: r["score"] for r in output.tables["document_scores"].to_pylist()}
    rows = output.tables["examples"].to_pylist()
    assert [r["rank"] for r in rows] == list(range(len(rows)))
    assert {r["sequence"] for r in rows} == set(scores)
    assert [r["score"] for r in rows] == sorted((r["score"] for r in rows), reverse=True)
    for row in rows:
        at = row["peak"] - row["start"]
        assert row["values"][at] == max(row["values"]) == pytest.approx(row["score"])
        assert len(row["risen"]) == len(row["tokens"])
        assert row["risen"][at]
        assert "".join(row["tokens"]) == row["text"]
    first = output.evidence.examples[0]
    assert first.score == rows[0]["score"]
    assert first.text[first.spans[0].start : first.spans[0].end] == rows[0]["tokens"][0]


def test_evidence_is_that_of_the_merged_tokens(output):
    rows = [r for r in output.tables["merged_tokens"].to_pylist() if r["dataset"] == "all"]
    assert [(t.token, t.token_ids, t.score) for t in output.evidence.tokens] == [
        (r["token"], tuple(r["token_ids"]), r["largest"]) for r in rows[:200]
    ]
    assert all(t.claimed is None for t in output.evidence.tokens)


def test_every_dataset_is_counted_by_itself(tiny_pair, texts, tmp_path):
    chat = [{"role": "user", "content": "Where is the harbour?"}, {"role": "assistant", "content": "Behind the hill."}]
    pair = tiny_pair()
    both, alone = (mined(pair, t, tmp_path) for t in ({"web": texts, "chat": [chat, chat]}, {"chat": [chat, chat]}))
    assert set(both.tables["orderings"]["dataset"].to_pylist()) == {"all", "web", "chat"}

    def rows(output, name):
        return [r for r in output.tables[name].to_pylist() if r["dataset"] == "chat"]

    for name in ("merged_tokens", "positions"):
        assert rows(both, name) == rows(alone, name) != [], name
    bare = mined(pair, {"chat": [chat, chat]}, tmp_path, {"skip_template_tokens": True})
    assert bare.tables["datasets"]["n_positions"][0].as_py() < alone.tables["datasets"]["n_positions"][0].as_py()


def test_planted_topics_come_back():
    """Two sets of tokens that rise at different positions, and noise."""
    corpus = corpus_of_lengths({"web": [40, 40]})
    tokens = TokenTable.of(corpus)
    names = {i: f"w{i}" for i in range(30)}
    merged = merge_tokens(list(names), names)
    rng = np.random.default_rng(0)
    ids, values = np.zeros((80, 6), np.int32), np.zeros((80, 6), np.float32)
    for row in range(80):
        planted = [3, 4, 5, 6] if row % 2 else [20, 21, 22]
        others = rng.choice([i for i in range(30) if i not in planted], 6 - len(planted), replace=False)
        ids[row] = [*planted, *others]
        values[row] = [2.0] * len(planted) + [0.1] * len(others)
    kept_N = np.ones(80, dtype=bool)
    frame = Frame(tokens, kept_N, kept_N, merged.group_V, 1)
    parts = {"sample_row": np.arange(80), "sample_ids": ids, "sample_values": values}
    data = Gathered(frame, {}, parts, np.arange(30), names, merged)
    topics = find_topics(data, 2, seed=0)
    assert topics is not None
    found = [set(np.argsort(-t)[: 4 - k].tolist()) for k, t in enumerate(topics.token_KG)]
    assert found == [{3, 4, 5, 6}, {20, 21, 22}]
    assert topics.share_K.sum() == pytest.approx(1)
    assert (topics.weight_PK[1::2, 0] > 10 * topics.weight_PK[1::2, 1]).all()
    np.testing.assert_allclose(topics.weight_PK.sum(1), values.sum(1), rtol=0.1)
    none = dataclasses.replace(data, parts={**parts, "sample_ids": np.full_like(ids, -1)})
    assert find_topics(none, 2, seed=0) is None


def test_topics_have_tokens_and_places(output):
    topics = output.tables["topics"].to_pylist()
    assert {r["topic"] for r in topics} == {1, 2, 3}
    shares = [r["share"] for r in topics if r["rank"] == 0]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    rows = output.tables["topic_examples"].to_pylist()
    assert {r["unit"] for r in rows} == {0, 1, 2}
    for row in rows:
        assert row["values"][row["peak"] - row["start"]] == pytest.approx(row["score"])


def test_topics_of_some_positions_leave_the_others_without_value(output, tiny_pair, texts, tmp_path):
    found = mined(tiny_pair(), texts, tmp_path, max_topic_positions=30)
    assert None in [v for r in found.tables["topic_examples"].to_pylist() for v in r["values"]]
    without = mined(tiny_pair(), texts, tmp_path, n_topics=0)
    assert without.tables["topics"].num_rows == without.tables["topic_examples"].num_rows == 0
    assert without.tables["token_scores"].equals(output.tables["token_scores"])


def test_one_document_and_more_tokens_than_there_are(tiny_pair, tmp_path):
    found = run(tiny_pair(), ["anx"], tmp_path, top_k=10_000)
    assert (found.folder / "report.html").exists()
    assert set(found.table("token_scores")["stderr"].to_pylist()) == {None}
    assert {s["low"] for s in found.summary} == {None}


def test_a_leading_bos_counts_in_positions_alone(tmp_path, texts):
    save_model(tmp_path / "base", tiny_model(seed=0), tiny_tokenizer(adds_bos=True))
    save_model(tmp_path / "ft", perturbed(tiny_model(seed=0), 1, 0.05), tiny_tokenizer(adds_bos=True))
    pair = diffing.load_pair(str(tmp_path / "base"), finetuned=str(tmp_path / "ft"))
    found = mined(pair, texts, tmp_path / "out")
    n = sum(len(pair.tokenizer(t)["input_ids"]) for t in texts)
    assert found.tables["datasets"]["n_positions"].to_pylist() == [n - len(texts)]
    assert found.tables["positions"].to_pylist()[0]["n_positions"] == len(texts)


def test_numbers_that_are_not_finite_are_said(lent_pair, texts, tmp_path):
    next(lent_pair.finetuned.sites.layers.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"no finite D .* model.dtype=float32"):
        mined(lent_pair, texts, tmp_path / "out")


def test_a_layer_that_cannot_be_read_is_said(tiny_pair, texts, tmp_path):
    pair = tiny_pair()
    with pytest.raises(UserError, match=r"Layer 9 is out of range: the model has 3 layers; diffing.method.layer"):
        mined(pair, texts, tmp_path, layer=9)
    unknown = dataclasses.replace(pair, finetuned=dataclasses.replace(pair.finetuned, transform=None))
    with pytest.raises(UserError, match=r"no read-out that could be verified.*layer=null"):
        mined(unknown, texts, tmp_path, layer=1)


def test_null_runs_that_do_not_fit_are_refused(tiny_pair, null, texts, tmp_path):
    pair = tiny_pair()

    def refused(match, *runs, mine=pair, data=texts, **options):
        with pytest.raises(UserError, match=match):
            mined(mine, {"custom": data}, tmp_path, null_runs=[str(r) for r in runs], **{**FITTING, **options})

    refused("missing; the run is not finished", tmp_path / "nowhere")
    refused("this very pair", null.folder, mine=tiny_pair(full=False, sharing="merged"))
    refused(r"top_k=10, this one 4", null.folder, top_k=4)
    refused(r"read none of the text .* same data and seed", null.folder, data=texts[1:])
    refused("twice", null.folder, null.folder)
    facts = {**pair.facts, "base": {**pair.facts["base"], "content_hash": "another"}}
    refused("another base model", null.folder, mine=dataclasses.replace(pair, facts=facts))
    manifest = json.loads((null.folder / "manifest.json").read_text())
    (tmp_path / "kl").mkdir()
    (tmp_path / "kl" / "manifest.json").write_text(json.dumps({**manifest, "method": "kl"}))
    refused("a run of kl; name runs of diff_mining", tmp_path / "kl")


def test_a_null_run_is_compared_on_the_text_that_both_read(tiny_pair, null, texts, tmp_path):
    data = {"custom": texts, "training": texts[:2]}
    found = mined(tiny_pair(), data, tmp_path, null_runs=str(null.folder), **FITTING)
    assert any("they read other text as training" in n for n in found.notes)
    rows = found.tables["orderings"].to_pylist()
    z = {d: [r["z"] for r in rows if r["dataset"] == d and r["ordering"] == "z"] for d in ("all", "custom", "training")}
    assert z["all"] == z["custom"] != []
    assert z["training"] == []
    assert {r["null"] for r in rows if r["dataset"] == "training"} == {None}


def test_content_of_a_null_run_is_part_of_the_key(null, tmp_path):
    manifest = json.loads((null.folder / "manifest.json").read_text())
    config = DiffMiningConfig(null_runs=(str(tmp_path),))
    digests = []
    for content in ("one", "other"):
        files = {**manifest["files"], "tensors/tensors.safetensors": content}
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
        digests.append(METHOD.inputs(config))
    assert digests == [{"null_runs.0": "one"}, {"null_runs.0": "other"}]
    assert METHOD.inputs(DiffMiningConfig()) == {}


def test_options():
    assert DiffMiningConfig(null_runs="a").null_runs == ("a",)
    assert DiffMiningConfig(null_runs=None).null_runs == ()
    assert DiffMiningConfig(layer=0.5).layer == 0.5
    for wrong in ({"top_k": 0}, {"floor": -1e-9}, {"floor": 1}, {"layer": True}, {"n_topics": -1}, {"n_listed": 0}):
        with pytest.raises(UserError):
            parse(DiffMiningConfig, wrong, "diffing.method")


def test_bfloat16_weights_are_mined_in_float32(tmp_path, texts):
    spec = save_pair(tmp_path / "pair", full=True)
    model = spec.model.model_copy(update={"dtype": "bfloat16"})
    found = mined(load_pair(spec.model_copy(update={"model": model})), texts, tmp_path / "out")
    assert found.tables["token_scores"]["score"][0].as_py() > 0
