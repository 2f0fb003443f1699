"""Stability: halves of the text are disjoint and whole, reruns are kept apart, what comes back is counted right."""

import json

import numpy as np
import pytest

import diffing
from diffing.core.result import Result
from diffing.core.specs import CorpusSpec, DatasetSpec
from diffing.core.stability import NAME
from diffing.core.templates import TemplateRules
from diffing.data.tokens import tokenize_corpus
from diffing.models.tiny import tiny_tokenizer
from diffing.pipeline.stability import FOLDER, HEAD
from workbench import run_folder, run_folders, sentences, write_jsonl


@pytest.fixture
def texts(tmp_path):
    return write_jsonl(tmp_path / "texts.jsonl", sentences(11))


def documents(texts, half, seed=0, max_tokens=None):
    dataset = DatasetSpec(name="custom", id=str(texts))
    spec = CorpusSpec(datasets=(dataset,), half=half, seed=seed, max_tokens=max_tokens)
    corpus = tokenize_corpus(spec, tiny_tokenizer(), TemplateRules())
    return [s.index for s in corpus.sequences]


@pytest.mark.parametrize("max_tokens", [None, 200])
def test_two_halves_are_disjoint_and_make_up_what_would_be_read(texts, max_tokens):
    whole, first, second = (documents(texts, half, max_tokens=max_tokens) for half in (None, 1, 2))
    assert sorted([*first, *second]) == whole
    assert not set(first) & set(second)
    assert 0 <= len(first) - len(second) <= 1
    assert documents(texts, 1, max_tokens=max_tokens) == first


def test_other_seeds_draw_other_halves(texts):
    assert len({tuple(documents(texts, 1, seed)) for seed in range(6)}) > 1


def test_one_document_has_no_halves(command, bench, tmp_path):
    write_jsonl(tmp_path / "one.jsonl", sentences(1))
    words = bench.command(tmp_path / "out", f"data.path={tmp_path / 'one.jsonl'}", "data.half=1")
    command(words).sentence("one document", "data.half")


@pytest.mark.slow
def test_a_result_says_how_much_of_it_comes_back(command, bench, tmp_path):
    out = tmp_path / "out"
    outcome = command(bench.command(out, "stability=true")).done()
    folder = run_folder(out)
    result = Result(folder)
    stability = result.stability()
    assert stability.n_reruns == 3
    halves, seeds = (c for c in stability.comebacks if c.what == "tokens")
    assert (halves.between, seeds.between) == ("two halves of the text", "two seeds")
    assert seeds.share == 1.0
    reruns = run_folders(out / FOLDER)
    assert len(reruns) == 3
    tops = [set(_top(r, halves.k)) for r in reruns if Result(r).manifest["data"]["spec"]["half"]]
    assert halves.share == pytest.approx(len(tops[0] & tops[1]) / halves.k)
    assert len(stability.tokens) == len(result.measured_evidence().tokens)
    ranks = [{t: n for n, t in enumerate(_top(r, 10**6), 1)} for r in reruns]
    for place, (token, n_back) in enumerate(zip(result.measured_evidence().tokens, stability.tokens, strict=True), 1):
        assert n_back == sum(of[token.token_ids[0]] <= max(HEAD, 2 * place) for of in ranks)
    for page in (outcome.out, (folder / "report.html").read_text(encoding="utf-8")):
        assert "come back between two halves" in page.replace("\n", " ")
    assert len(diffing.open_results(out).find(method="kl")) == 1


def _top(folder, k):
    rows = Result(folder).table("token_scores")
    scores, ids = np.array(rows["score"].to_pylist()), rows["token_id"].to_numpy()
    return ids[np.argsort(-scores, kind="stable")][:k].tolist()


@pytest.mark.slow
def test_stability_is_of_one_evidence_and_damage_is_named(command, bench, tmp_path):
    out = tmp_path / "out"
    command(bench.command(out, "stability=true")).done()
    path = run_folder(out) / NAME
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "of": "0" * 64}))
    assert Result(path.parent).stability() is None
    for content in ("{", "[]", '{"schema": 1}', '{"schema": 99, "of": ""}'):
        path.write_text(content)
        command(bench.command(out)).sentence(NAME)
