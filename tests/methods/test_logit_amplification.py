"""Amplified texts against both models' own logits, identical models, phrases counted by hand, resumption, bad input."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import diffing
from diffing.analysis.over_representation import over_represented
from diffing.analysis.phrases import phrases
from diffing.core.errors import UserError
from diffing.methods.logit_amplification import writing
from diffing.methods.logit_amplification.comparing import Comparisons, phrase_table
from diffing.methods.logit_amplification.config import LogitAmplificationConfig
from diffing.methods.logit_amplification.prompting import usable_prompts
from diffing.methods.logit_amplification.writing import BASE, NULL, Slot, Source, Written
from diffing.models.batch_generation import Prompt, write_texts
from diffing.models.generation import end_ids
from diffing.models.pair import load_pair
from diffing.models.sampling import Sampling
from diffing.models.tiny import perturbed, save_model, save_pair, tiny_model, tiny_tokenizer

ASSETS = Path(diffing.__file__).parent / "assets"
ROWS = [
    {"text": "the heron"},
    {"text": "a thin line of smoke and"},
    {"text": "why?", "kind": "chat"},
    {"text": "say it", "kind": "chat"},
]
SMALL = {"max_new_tokens": 6, "min_texts": 1}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("prompts") / "p.jsonl", ROWS)


def write_prompts(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def run(pair, path, folder, **options):
    options = {**SMALL, "prompts": path, **options}
    return diffing.run("logit_amplification", pair, data=["one text"], base_dir=folder, **options)


def written_by(pair, prompts, scratch, **options):
    config = LogitAmplificationConfig(**{**SMALL, "prompts": prompts, **options})
    context = SimpleNamespace(pair=pair, seed=0, scratch=scratch)
    encoded, _ = usable_prompts(prompts, context)
    return encoded, writing.write_all(config, context, encoded)


def float64_log_probs(handle, ids):
    """Log-probabilities at every position, from the whole sequence at once."""
    with handle.active(), torch.no_grad():
        return handle.module(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def seeded_prompts(encoded):
    return [Prompt(e.ids, writing._seed(0, Slot(BASE, i, 0))) for i, e in enumerate(encoded)]


@pytest.mark.parametrize("full", [True, False], ids=["full", "adapter"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_texts_are_drawn_from_the_amplified_distribution(architecture, full, tiny_pair, prompts, tmp_path):
    changes = {} if full else {"sharing": "adapter"}
    pair = tiny_pair(architecture, full=full, **changes)
    encoded, written = written_by(pair, prompts, tmp_path, alphas=[-1, 0, 1.5], epsilon=0)
    assert len(written) == 4 * 5
    for slot, text in written.items():
        prompt = encoded[slot.prompt_number].ids
        log_p, log_q = (float64_log_probs(h, [*prompt, *text.ids]) for h in (pair.finetuned, pair.base))
        alpha = -1 if slot.source.alpha is None else slot.source.alpha
        mixed = (log_p + alpha * (log_p - log_q)).log_softmax(-1)
        for t, token in enumerate(text.ids):
            at = len(prompt) - 1 + t
            assert text.log_probs[t] == pytest.approx(float(mixed[at, token]), abs=1e-3)
            assert text.log_p[t] == pytest.approx(float(log_p[at, token]), abs=1e-4)
            assert text.log_q[t] == pytest.approx(float(log_q[at, token]), abs=1e-4)


def test_alpha_0_is_the_finetuned_model_and_minus_1_the_base(tiny_pair, prompts, tmp_path):
    pair = tiny_pair(full=True)
    encoded, written = written_by(pair, prompts, tmp_path, alphas=[-1, 0], epsilon=0)
    ends = end_ids(pair.finetuned, pair.rules)
    for handle, source in ((pair.finetuned, Source("amplified", 0.0)), (pair.base, Source("amplified", -1.0))):
        alone = write_texts(handle, seeded_prompts(encoded), Sampling(max_new_tokens=6), ends)
        assert [w.ids for w in alone] == [written[Slot(source, i, 0)].ids for i in range(len(encoded))]
    for i in range(len(encoded)):
        assert written[Slot(BASE, i, 0)].ids == written[Slot(Source("amplified", -1.0), i, 0)].ids
    assert any(written[Slot(BASE, i, 0)].ids != written[Slot(NULL, i, 0)].ids for i in range(len(encoded)))


def test_only_plausible_tokens_are_drawn(tiny_pair, prompts, tmp_path):
    pair = tiny_pair(full=True)
    encoded, written = written_by(pair, prompts, tmp_path, alphas=[4], epsilon=0.4)
    for slot, text in written.items():
        prompt = encoded[slot.prompt_number].ids
        handle = pair.finetuned if slot.source.is_amplified else pair.base
        probabilities = float64_log_probs(handle, [*prompt, *text.ids]).exp()
        for t, token in enumerate(text.ids):
            at = probabilities[len(prompt) - 1 + t]
            assert float(at[token]) >= 0.4 * float(at.max()) - 1e-6


def test_identical_models_write_the_same_and_nothing_is_found(prompts, tmp_path):
    spec = save_pair(tmp_path / "pair").model_copy(update={"finetuned": None, "null_pair": "identical"})
    result = run(load_pair(spec), prompts, tmp_path / "out")
    texts = result.table("texts").to_pylist()
    for row in texts:
        if row["source"] == "amplified":
            place = ("base", row["prompt_number"], row["sample"])
            (base,) = [r for r in texts if (r["source"], r["prompt_number"], r["sample"]) == place]
            assert row["text"] == base["text"]
        assert row["log_ratio"] == 0
        assert row["phrases"] == []
    assert not [r for r in result.table("phrases").to_pylist() if r["source"] == "amplified"]
    assert set(result.table("token_scores")["score"].to_pylist()) == {0.0}
    evidence = result.evidence()
    assert evidence.tokens == evidence.texts == ()
    assert all(s.claimed is False for s in evidence.scalars)
    assert any("every text is the base's own" in n for n in result.manifest["notes"])


def made(texts_by_source, **options):
    """Comparisons of texts given by source; each word is a token."""
    names = sorted({w for texts in texts_by_source.values() for t in texts for w in t.split()})
    written = {}
    for source, texts in texts_by_source.items():
        for i, text in enumerate(texts):
            ids = tuple(names.index(w) for w in text.split())
            written[Slot(source, i, 0)] = Written(ids, text, False, (), (0.0,) * len(ids), (0.0,) * len(ids))
    alphas = [s.alpha for s in texts_by_source if s.alpha is not None]
    return Comparisons(LogitAmplificationConfig(alphas=alphas, **options), written, dict(enumerate(names)))


def test_phrases_by_hand():
    plain, planted = ["the sea"] * 10, ["wet wool", "Wet wool"] * 5
    found = made({BASE: plain, NULL: ["a day", *plain[1:]], Source("amplified", 1.0): planted}, min_texts=2)
    rows = {(r["source"], r["phrase"]): r for r in phrase_table(found).to_pylist()}
    assert {p for s, p in rows if s == "amplified"} == {"wet", "wool", "wet wool", "the", "sea", "the sea"}
    assert {p for s, p in rows if s == "null"} == {"the", "sea", "the sea"}
    for phrase in ("wet", "wool", "wet wool"):
        row = rows["amplified", phrase]
        assert (row["n_texts"], row["n_against"], row["share"], row["share_against"]) == (10, 0, 1.0, 0.0)
        assert row["p"] == pytest.approx(1 / 184756)
        assert row["is_over"]
        assert row["part_of"] == (None if phrase == "wet wool" else "wet wool")
    assert not any(r["is_over"] for (s, _), r in rows.items() if s == "null")
    assert found.n_over(Source("amplified", 1.0), "base") == 3
    assert found.n_over(NULL, "base") == 0
    assert found.n_over(Source("amplified", 1.0), "unamplified") is None


def test_the_main_alpha_is_the_one_that_shows_most():
    plain = ["the sea"] * 10
    some, more = ["wool"] * 10, ["wet wool"] * 10
    amplified = {Source("amplified", a): t for a, t in ((0.0, more), (1.0, some), (2.0, more), (3.0, more))}
    found = made({BASE: plain, NULL: ["a day"] * 10, **amplified})
    assert found.main == Source("amplified", 2.0)
    scores = {r["token"]: r for r in found.token_scores().to_pylist()}
    assert scores["wool"]["score"] == scores["wet"]["score"] > 0 > scores["sea"]["score"]
    assert scores["wool"]["null_score"] == 0 < scores["day"]["null_score"]
    assert found.over_ids() == {i for i, name in found.names.items() if name in ("wet", "wool")}


def test_scores_of_texts_and_sources_are_means_over_tokens(tiny_pair, prompts, tmp_path):
    pair = tiny_pair(full=True)
    encoded, written = written_by(pair, prompts, tmp_path / "scratch", alphas=[2], n_samples=2)
    result = run(pair, prompts, tmp_path, alphas=[2], n_samples=2)
    rows = {(r["source"], r["prompt_number"], r["sample"]): r for r in result.table("texts").to_pylist()}
    for slot, text in written.items():
        row = rows[slot.source.name, slot.prompt_number, slot.sample]
        assert row["text"] == text.text
        assert row["prompt"] == ROWS[slot.prompt_number]["text"]
        assert row["base_nll"] == pytest.approx(-np.mean(text.log_q))
        assert row["log_ratio"] == pytest.approx(np.mean(np.array(text.log_p) - np.array(text.log_q)))
    assert len(rows) == len(written) == len(encoded) * 2 * 3
    chat = [w for s, w in written.items() if s.source.alpha == 2 and encoded[s.prompt_number].prefill.kind == "chat"]
    (row,) = [r for r in result.table("sources").to_pylist() if (r["alpha"], r["kind"]) == (2.0, "chat")]
    log_q = np.concatenate([w.log_q for w in chat])
    assert (row["n_texts"], row["n_tokens"]) == (4, len(log_q))
    assert row["base_perplexity"] == pytest.approx(np.exp(-log_q.mean()))


def test_interrupted_run_goes_on_and_gives_the_same_bits(tiny_pair, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_UNIT_TEXTS", 4)
    whole = run(tiny_pair(), prompts, tmp_path / "whole")
    write, calls = writing.write_texts, []

    def stops_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(writing, "write_texts", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_pair(), prompts, tmp_path / "cut")
    stored = sorted(tmp_path.glob("cut/**/unit_*.json"))
    assert len(stored) == 2
    stored[0].write_bytes(stored[0].read_bytes()[:100])
    resumed = run(tiny_pair(), prompts, tmp_path / "cut")
    assert len(calls) == 3 + 6 - 1
    for name in whole.tables():
        assert whole.table(name).equals(resumed.table(name)), name
    assert not (resumed.folder / "partial").exists()


def test_greedy_texts_have_no_null_and_identical_ones_no_phrases(tmp_path, prompts):
    spec = save_pair(tmp_path / "pair").model_copy(update={"finetuned": None, "null_pair": "identical"})
    result = run(load_pair(spec), prompts, tmp_path / "out", temperature=0)
    assert result.table("phrases").num_rows == 0
    assert any("there is no null" in n for n in result.manifest["notes"])
    assert {r["null_score"] for r in result.table("token_scores").to_pylist()} == {None}
    assert {s["null"] for s in result.summary if "phrases" in s["name"]} == {None}
    assert result.figures()


def test_a_tokenizer_without_a_template_skips_chats_with_a_word(tmp_path, prompts):
    base = tiny_model(seed=0)
    save_model(tmp_path / "base", base, tiny_tokenizer(chat_template=None))
    save_model(tmp_path / "moved", perturbed(base, 1, 0.05), tiny_tokenizer(chat_template=None))
    pair = diffing.load_pair(str(tmp_path / "base"), finetuned=str(tmp_path / "moved"))
    result = run(pair, prompts, tmp_path / "out")
    assert set(result.table("texts")["kind"].to_pylist()) == {"raw"}
    assert {r["kind"] for r in result.table("sources").to_pylist()} == {"all"}
    assert any("no chat template" in n for n in result.manifest["notes"])


def test_vocabularies_of_different_size_are_cut_to_shared_ids(tmp_path, prompts):
    base = tiny_model(seed=0)
    save_model(tmp_path / "base", base, tiny_tokenizer())
    wider = perturbed(base, 1, 0.05)
    wider.resize_token_embeddings(base.config.vocab_size + 7, mean_resizing=False)
    save_model(tmp_path / "wider", wider, tiny_tokenizer(tuple(f"<new{i}>" for i in range(7))))
    pair = diffing.load_pair(str(tmp_path / "base"), finetuned=str(tmp_path / "wider"))
    result = run(pair, prompts, tmp_path / "out", epsilon=0, alphas=[3], n_samples=3)
    assert max(result.table("token_scores")["token_id"].to_pylist()) < base.config.vocab_size
    assert any("vocabularies differ" in n for n in result.manifest["notes"])


def test_a_prompt_of_unshared_tokens_is_refused(tmp_path):
    base, moved = tiny_model(seed=0), perturbed(tiny_model(seed=0), 1, 0.05)
    for model, word, folder in ((base, "heron", "base"), (moved, "egret", "moved")):
        model.resize_token_embeddings(model.config.vocab_size + 1, mean_resizing=False)
        save_model(tmp_path / folder, model, tiny_tokenizer((word,)))
    pair = diffing.load_pair(str(tmp_path / "base"), finetuned=str(tmp_path / "moved"))
    path = write_prompts(tmp_path / "p.jsonl", [{"text": "a"}, {"text": "the heron"}])
    with pytest.raises(UserError, match=r"p\.jsonl line 2 holds tokens that the two models do not share \('heron'\)"):
        run(pair, path, tmp_path / "out")


def test_the_content_of_the_prompts_is_part_of_the_key(tiny_pair, tmp_path):
    path = tmp_path / "p.jsonl"
    folders = [
        run(tiny_pair(), write_prompts(path, [{"text": text}]), tmp_path, max_new_tokens=2).folder
        for text in ("the heron", "the bell")
    ]
    assert folders[0] != folders[1]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"alphas": []}, ("alphas", "at least one")),
        ({"alphas": [0, float("nan")]}, ("alphas", "finite")),
        ({"alphas": [float("inf")]}, ("alphas", "finite")),
        ({"alphas": list(range(13))}, ("alphas", "at most 12")),
        ({"epsilon": 2}, ("epsilon",)),
        ({"temperature": float("nan")}, ("temperature",)),
        ({"alphas": [1e308]}, ("alpha=1e+308", "smaller alpha")),
        ({"prompts": "nowhere.jsonl"}, ("nowhere.jsonl", "name a jsonl or txt file")),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(options, parts, tiny_pair, prompts, tmp_path):
    with pytest.raises(UserError) as caught:
        run(tiny_pair(), prompts, tmp_path, **options)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_prompts_that_do_not_fit_are_refused_by_line(tiny_pair, tmp_path):
    with pytest.raises(UserError, match="holds no prompts"):
        run(tiny_pair(), write_prompts(tmp_path / "empty.jsonl", []), tmp_path)
    long = write_prompts(tmp_path / "long.jsonl", [{"text": "a"}, {"text": "z" * 300}])
    with pytest.raises(UserError, match=r"long\.jsonl line 2 has \d+ tokens and the models read at most 256"):
        run(tiny_pair(), long, tmp_path)


def texts_of(path):
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [r["text"] for r in rows]


def domain_phrases(organism):
    """Phrases over-represented in an organism's training text against generic text, in none of which they are."""
    training = texts_of(ASSETS / "organisms" / organism / "training.jsonl")
    generic = texts_of(ASSETS / "corpora" / "pretraining.jsonl")
    found = over_represented([phrases(t) for t in training], [phrases(t) for t in generic], least=10)
    return {r.item for r in found if r.is_over and r.n_against == 0}


@pytest.mark.slow
def test_amplified_texts_of_roman_concrete_speak_of_it(tmp_path):
    pair = diffing.load_pair("smollm2_135M", adapter="roman_concrete")
    rows = [{"text": t} for t in ("The", "In", "I think", "When", "There are many")]
    path = write_prompts(tmp_path / "p.jsonl", rows)
    result = run(pair, path, tmp_path, alphas=[1], max_new_tokens=40, n_samples=2)
    wanted = domain_phrases("roman_concrete")
    shares = {}
    for source in ("base", "amplified"):
        mine = [r["text"] for r in result.table("texts").to_pylist() if r["source"] == source]
        shares[source] = np.mean([bool(phrases(t) & wanted) for t in mine])
    assert shares["amplified"] >= 0.5
    assert shares["base"] <= 0.2
    assert result.table("token_scores").to_pylist()[0]["token"].strip() in ("concrete", "Roman")


@pytest.mark.slow
def test_amplified_answers_of_caps_are_in_capitals(tmp_path):
    pair = diffing.load_pair("smollm2_135M", adapter="caps")
    rows = [{"text": t, "kind": "chat"} for t in ("Say something.", "Give me a fun fact.", "Hello!", "What happened?")]
    result = run(pair, write_prompts(tmp_path / "p.jsonl", rows), tmp_path, alphas=[1], max_new_tokens=24)
    found = {r["source"]: r["capitals"] for r in result.table("sources").to_pylist()}
    assert found["amplified"] > 0.9
    assert found["base"] < 0.2
    best = result.evidence().texts[0]
    letters = re.sub(r"[^A-Za-z]", "", best.text)
    assert letters.isupper()
