"""`activation_difference_lens`: places, means, null, what is chosen, degenerate data, interruption, options."""

import dataclasses

import numpy as np
import pytest
import torch
from memory_source import context_with

from diffing.analysis.lenses import logit_lens
from diffing.core.config import parse
from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.core.method import load_method
from diffing.core.specs import CorpusSpec
from diffing.data.documents import Document, documents_from_texts
from diffing.data.messages import Message
from diffing.data.tokens import tokenize_documents
from diffing.methods.activation_difference_lens import METHOD
from diffing.methods.activation_difference_lens import means as means_module
from diffing.methods.activation_difference_lens.causal import changes
from diffing.methods.activation_difference_lens.config import LensConfig
from diffing.methods.activation_difference_lens.directions import directions
from diffing.methods.activation_difference_lens.means import read_means
from diffing.methods.activation_difference_lens.places import Place, find_visits, reply_start
from diffing.methods.activation_difference_lens.run import run
from diffing.methods.activation_difference_lens.steering import _strength_rows, _Text, repetition_rate
from diffing.models.capture import capture
from diffing.models.handle import make_handle
from diffing.models.tiny import tiny_model, tiny_tokenizer

QUICK = {
    "lens_layers": [],
    "n_positions": 3, "n_before_reply": 2, "n_null_draws": 3, "n_lens_tokens": 4, "n_patchscope_tokens": 5,
    "scales": [0.5, 1], "n_random_directions": 2, "strengths": [0.5, 2], "n_prompts": 2, "n_unsteered": 2,
    "max_new_tokens": 4, "causal_tokens": 30, "n_causal_controls": 2,
}  # fmt: skip
NOTHING_MORE = {"n_lens_tokens": 0, "n_patchscope_tokens": 0, "strengths": [], "causal_tokens": 0}
CHATS = [
    [Message("user", "in the inn"), Message("assistant", "on an anther")],
    [Message("user", "then"), Message("assistant", "the heron"), Message("user", "and"), Message("assistant", "no")],
    [Message("system", "be terse"), Message("user", "another one"), Message("assistant", "in the end")],
    [Message("user", "nobody answers this one")],
]


def chats(given=CHATS, name="talk"):
    return [Document(name, i, None, tuple(messages)) for i, messages in enumerate(given)]


@pytest.fixture(scope="module")
def pair(tiny_pair):
    return tiny_pair("llama", full=True)


@pytest.fixture(scope="module")
def corpus(pair, texts):
    documents = {"web": documents_from_texts("web", texts), "talk": chats()}
    return tokenize_documents(documents, CorpusSpec(datasets=()), pair.tokenizer, pair.rules)


def context_of(folder, pair, corpus, **changes):
    return context_with(None, corpus, folder, pair, **changes)


def output_of(folder, pair, corpus, context=None, **options):
    return run(LensConfig(**{**QUICK, **options}), context_of(folder, pair, corpus, **(context or {})))


@pytest.fixture(scope="module")
def output(pair, corpus, tmp_path_factory):
    return output_of(tmp_path_factory.mktemp("adl"), pair, corpus)


def states(handle, sequence, layer):
    """One document alone and whole, float64."""
    ids = torch.from_numpy(sequence.ids.astype(np.int64))[None]
    return capture(handle, ids, [Slot(layer)])[Slot(layer)][0].double().numpy()


def at(sequence, place):
    """Position of a place in a document, None where it has none."""
    if sequence.dataset != place.dataset:
        return None
    written = [t for t, (r, x) in enumerate(zip(sequence.roles, sequence.is_template, strict=True)) if r == 3 and not x]
    position = place.position if place.kind == "first" else (written[0] + place.position if written else -1)
    return position if 0 <= position < len(sequence.ids) else None


def test_places_are_leading_positions_and_tokens_before_the_first_reply(pair, corpus):
    visits = find_visits(corpus, range(len(corpus.sequences)), 3, 2, cuts=True)
    assert [p for p in visits.places if p.dataset == "web"] == [Place("web", "first", t) for t in range(3)]
    assert [(p.kind, p.position) for p in visits.places if p.dataset == "talk"] == [
        ("first", 0), ("first", 1), ("first", 2), ("reply", -2), ("reply", -1),
    ]  # fmt: skip
    last = visits.places.index(Place("talk", "reply", -1))
    assert {pair.tokenizer.decode([i]) for i in visits.token_ids(last)} == {"\n"}
    assert len(visits.token_ids(last)) == visits.n_prefixes(last) == 3
    assert visits.n_prefixes(visits.places.index(Place("talk", "first", 0))) == 1
    for whole, cut in zip(corpus.sequences, visits.corpus.sequences, strict=True):
        start = reply_start(whole)
        assert len(cut.ids) == (max(3, start) if start is not None else min(3, len(whole.ids)))
        if start is not None:
            assert pair.tokenizer.decode(whole.ids[start:][:1]).strip() in (
                "on",
                "the",
                "in",
                "o",
                "th",
                "i",
                "t",
                "the",
            )
    assert any("1 chats hold no reply" in note for note in visits.notes)


@pytest.mark.parametrize("batch_tokens", [8, 2048])
def test_means_are_those_of_whole_documents_read_alone(pair, corpus, tmp_path, batch_tokens):
    found = read_means(context_of(tmp_path, pair, corpus, batch_tokens=batch_tokens), [0, 2], 3, 2, 2)
    for i, layer in enumerate((0, 2)):
        for p, place in enumerate(found.places):
            rows = [
                (states(pair.finetuned, s, layer)[t], states(pair.base, s, layer)[t])
                for s in corpus.sequences
                if (t := at(s, place)) is not None
            ]
            f, b = (np.stack(x) for x in zip(*rows, strict=True))
            assert found.n_P[p] == len(rows)
            np.testing.assert_allclose(found.delta_PLD[p, i], (f - b).mean(0), atol=2e-5)
            np.testing.assert_allclose(found.base_PLD[p, i], b.mean(0), atol=2e-5)
            np.testing.assert_allclose(found.finetuned_PLD[p, i], f.mean(0), atol=2e-5)
            assert found.squares_PL[p, i] == pytest.approx(((f - b) ** 2).sum(1).mean(), rel=1e-4)
            assert found.norms["base"][p, i] == pytest.approx(np.linalg.norm(b, axis=1).mean(), rel=1e-5)


def test_the_null_is_half_a_difference_of_halves_of_the_base(pair, corpus, tmp_path):
    context = context_of(tmp_path, pair, corpus)
    found = read_means(context, [1], 1, 0, 4)
    mine = [s for s in corpus.sequences if s.dataset == "web"]
    rows = np.stack([states(pair.base, s, 1)[0] for s in mine])
    signs = np.stack(
        [means_module.generator(0, "halves", s.dataset, s.index).choice([-1.0, 1.0], size=(4, 1))[:, 0] for s in mine],
        1,
    )
    expected = signs @ (rows - rows.mean(0)) / len(mine)
    np.testing.assert_allclose(found.null_RPLD[:, 0, 0], expected, atol=2e-5)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    same = found.places.index(Place("talk", "first", 0))
    assert np.abs(found.null_RPLD[:, same]).max() < 1e-5, "documents that begin alike do not differ"


def test_the_table_of_places(output, pair, corpus):
    rows = {(r["layer"], r["dataset"], r["kind"], r["position"]): r for r in output.tables["positions"].to_pylist()}
    row = rows[1, "web", "first", 1]
    differences = np.stack(
        [states(pair.finetuned, s, 1)[1] - states(pair.base, s, 1)[1] for s in corpus.sequences if s.dataset == "web"]
    )
    mean, n = differences.mean(0), len(differences)
    assert row["norm"] == pytest.approx(np.linalg.norm(mean), rel=1e-4)
    assert row["stderr"] == pytest.approx(np.sqrt(((differences - mean) ** 2).sum() / (n * (n - 1))), rel=1e-4)
    assert row["explained"] == pytest.approx(mean @ mean / (differences**2).sum(1).mean(), rel=1e-4)
    assert row["chance"] == pytest.approx(np.sqrt((differences**2).sum()) / n, rel=1e-4)
    assert rows[1, "talk", "first", 0]["explained"] == pytest.approx(1, abs=1e-5)
    assert not rows[1, "talk", "first", 0]["is_ranked"]
    assert not rows[1, "talk", "first", 1]["is_ranked"], "all but one chat begin alike"
    assert rows[1, "talk", "reply", -1]["is_ranked"]
    assert rows[1, "talk", "reply", -1]["token"] == "\n"
    tensor = output.tensors[row["tensor"]]
    assert float(tensor.norm()) == pytest.approx(row["norm"], rel=1e-5)


def test_readouts_are_the_lens_of_each_model(output, pair):
    rows = output.tables["readouts"].to_pylist()
    place = (1, "web", "first", 2)
    for of, handle in (("delta", pair.finetuned), ("finetuned", pair.finetuned), ("base", pair.base)):
        vector = output.tensors[f"layer_01/web/position_2/mean_{of}"]
        for end, sign in (("positive", 1), ("negative", -1)):
            mine = [r for r in rows if (r["of"], r["end"]) == (of, end)]
            mine = [r for r in mine if (r["layer"], r["dataset"], r["kind"], r["position"]) == place]
            expected = logit_lens(handle, sign * vector[None] * 32**0.5 / vector.norm(), 4)
            assert [r["token_id"] for r in mine] == expected.ids_NK[0].tolist()
            np.testing.assert_allclose([r["probability"] for r in mine], expected.probabilities_NK[0], rtol=1e-3)


def test_several_layers_come_in_one_pass(pair, corpus, tmp_path, monkeypatch):
    asked = []
    original = means_module.capture
    monkeypatch.setattr(
        means_module,
        "capture",
        lambda h, ids, slots, lengths: asked.append(tuple(slots)) or original(h, ids, slots, lengths),
    )
    found = output_of(tmp_path, pair, corpus, layers=[0, 1.0], **NOTHING_MORE)
    assert set(asked) == {(Slot(0), Slot(2))}
    assert set(found.tables["positions"]["layer"].to_pylist()) == {0, 2}
    assert found.facts["main_layer"] in (0, 2)
    assert found.facts["tokens_read"] == sum(
        max(3, reply_start(s) or 0) if s.dataset == "talk" else min(3, len(s.ids)) for s in corpus.sequences
    )


def test_scores_rank_what_the_patchscope_of_delta_says(output):
    scores = {r["token_id"]: r for r in output.tables["token_scores"].to_pylist()}
    shown = output.tables["patchscope"].to_pylist()
    ranked = [r for r in output.tables["positions"].to_pylist() if r["is_ranked"]]
    expected = dict.fromkeys(scores, 0.0)
    for place in ranked:
        mine = [r for r in shown if all(r[k] == place[k] for k in ("layer", "dataset", "kind", "position"))]
        base = {r["token_id"]: r["probability"] for r in mine if r["of"] == "base"}
        for r in mine:
            if r["of"] == "delta" and r["is_shared"]:
                ratio = (r["probability"] + 1e-3) / (max(r["random"], base.get(r["token_id"], 0)) + 1e-3)
                expected[r["token_id"]] += max(0.0, np.log(ratio)) / len(ranked)
    assert any(expected.values())
    for token, value in expected.items():
        assert scores[token]["score"] == pytest.approx(value, abs=1e-5)
    assert all(r["null_score"] >= 0 for r in scores.values())
    assert any(r["null_score"] > 0 for r in scores.values())
    assert [t.token_ids[0] for t in output.evidence.tokens] == [
        r["token_id"] for r in scores.values() if r["score"] > r["null_score"]
    ]


def test_without_a_patchscope_the_lens_ranks(pair, corpus, tmp_path):
    found = output_of(tmp_path, pair, corpus, n_patchscope_tokens=0, strengths=[], causal_tokens=0, layers=[1])
    assert found.tables["patchscope"].num_rows == found.tables["scales"].num_rows == 0
    scores = found.tables["token_scores"].to_pylist()
    assert scores[0]["score"] > 0
    assert len(scores) == pair.finetuned.vocab_size


def test_lens_layers_are_read_by_the_lens_alone_and_count_in_the_ranking(output, pair, corpus, tmp_path):
    found = output_of(tmp_path, pair, corpus, lens_layers=[1.0], strengths=[], causal_tokens=0)
    assert set(found.tables["readouts"]["layer"].to_pylist()) == {1, 2}
    assert set(found.tables["patchscope"]["layer"].to_pylist()) == {1}
    places = [r for r in found.tables["positions"].to_pylist() if r["is_ranked"] and r["layer"] == 2]
    total = np.zeros(pair.finetuned.vocab_size)
    for place in places:
        read = []
        for handle, of in ((pair.finetuned, "delta"), (pair.base, "base")):
            vector = found.tensors[place["tensor"].replace("mean_delta", f"mean_{of}")]
            with torch.no_grad():
                hidden = handle.sites.final_norm(vector[None] * 32**0.5 / vector.norm())
                read.append(handle.logits(hidden)[0].softmax(-1).numpy())
        total += np.log((read[0] + 1e-3) / (read[1] + 1e-3)).clip(min=0) / len(places)
    without = {r["token_id"]: r["score"] for r in output.tables["token_scores"].to_pylist()}
    for r in found.tables["token_scores"].to_pylist():
        assert r["score"] == pytest.approx((total[r["token_id"]] + without[r["token_id"]]) / 2, abs=1e-5)


def test_steered_texts_share_prompt_and_random_numbers(pair, corpus, tmp_path):
    found = output_of(tmp_path, pair, corpus, strengths=[1e-9, 1], n_patchscope_tokens=0, causal_tokens=0)
    texts = found.tables["texts"].to_pylist()
    assert len(texts) == 2 * 2 * len(found.facts["directions"])
    assert all(r["steered"] == r["unsteered"] for r in texts if r["strength"] == 1e-9)
    assert any(r["steered"] != r["unsteered"] for r in texts if r["strength"] == 1)
    assert {t.text for t in found.evidence.texts} == {r["steered"] for r in texts if r["is_chosen"]}


def test_the_largest_strength_below_the_first_incoherent_one_is_chosen():
    direction = directions_of([[1.0, 0.0]])[0]
    groups = [[_Text("", ppl, rep)] for ppl, rep in ((5, 0.0), (9, 0.1), (90, 0.0), (4, 0.0))]
    rows = _strength_rows(direction, (0.5, 1, 2, 4), groups, [_Text("", 8, 0.0)], (10.0, 0.2))
    assert [r.is_within for r in rows] == [True, True, True, False, True]
    assert [r.strength for r in rows if r.is_chosen] == [1]
    none = _strength_rows(direction, (0.5,), [[_Text("", 11, 0.0)]], [_Text("", 8, 0.0)], (10.0, 0.2))
    assert not any(r.is_chosen for r in none)


def test_repetition():
    assert repetition_rate([1, 2, 3, 4, 5]) == 0
    assert repetition_rate([1, 2, 1, 2, 1, 2]) == 0.5
    assert repetition_rate([1, 2, 3]) is None


def directions_of(vectors, n=9, datasets=None, squares=None):
    """Directions of made-up means of one layer."""
    delta = np.array(vectors)[:, None, :]
    places = tuple(Place((datasets or ["a"] * len(delta))[i], "first", i + 1) for i in range(len(delta)))
    ones = np.ones((len(delta), 1))
    squares_PL = np.square(delta).sum(-1) if squares is None else np.array(squares)
    zeros, n_P = np.zeros_like(delta), np.full(len(delta), 16)
    made = means_module.Means(
        places, (3,), n_P, delta, zeros, zeros, zeros[None], squares_PL, {"finetuned": ones}, n_P * 0, n_P, (), 0, ()
    )
    return directions(made, 0, range(len(delta)), n)


def test_a_mean_made_by_one_loud_document_comes_last():
    loud = [[9.0, 0.0], [0.0, 2.0]]
    assert [d.where[3] for d in directions_of(loud, squares=[[81.0], [4.5]])] == [1, 2]
    assert [d.where[3] for d in directions_of(loud, squares=[[16 * 81.0], [4.5]])] == [2, 1]


def test_directions_are_large_and_unlike_each_other():
    given = [[3.0, 0, 0], [0, 2.0, 0], [2.9, 0.3, 0], [0, 0, 0.5], [0, 0, 0]]
    assert [d.where[3] for d in directions_of(given)] == [1, 2, 4]
    assert [d.where[3] for d in directions_of(given, 2)] == [1, 2]
    assert [d.where[3] for d in directions_of(given, 2, ["a", "a", "a", "b", "b"])] == [1, 4], (
        "each dataset's largest first"
    )
    assert directions_of([[0.0, 0.0]]) == []


def test_changes_replace_a_component_or_are_as_long():
    direction = directions_of([[3.0, 4.0, 0.0]])[0]
    random = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    toward, matched, along = changes([direction], random)
    generator = torch.Generator().manual_seed(0)
    base, own = (torch.randn(1, 5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    unit = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    new = own + toward.added(base, own)
    torch.testing.assert_close(new @ unit, base @ unit)
    rest = torch.tensor([0.8, -0.6, 0.0], dtype=torch.float64)
    torch.testing.assert_close(new @ rest, own @ rest)
    added = matched.added(base, own)
    torch.testing.assert_close(added.norm(dim=-1), toward.added(base, own).norm(dim=-1))
    assert not added[..., :2].any()
    torch.testing.assert_close((own + along.added(base, own))[..., 2], base[..., 2])


def effect_by_hand(pair, sequence, unit):
    """Σ of the loss change of one document, and its next tokens."""
    ids = torch.from_numpy(sequence.ids.astype(np.int64))[None]
    base = torch.from_numpy(states(pair.base, sequence, 1))

    def put(module, args, output):
        stream = (output if isinstance(output, torch.Tensor) else output[0])[0]
        moved = ((base - stream.double()) @ unit)[:, None] * unit
        moved[0] = 0
        stream += moved.to(stream.dtype)

    def loss():
        log_probs = pair.finetuned.forward_logits(ids)[0, :-1].log_softmax(-1)
        return -log_probs.gather(1, ids[0, 1:, None]).double().sum().item()

    own = loss()
    hook = pair.finetuned.sites.layers[1].register_forward_hook(put)
    changed = loss()
    hook.remove()
    return changed - own, len(sequence.ids) - 1


def test_causal_effects_are_those_of_a_hook_written_apart(pair, corpus, tmp_path):
    found = output_of(tmp_path, pair, corpus, n_patchscope_tokens=0, strengths=[], causal_tokens=10_000)
    rows = found.tables["causal"].to_pylist()
    assert {(r["change"], r["number"]) for r in rows} == {
        ("toward_base", 0), ("random", 0), ("random", 1), ("random_matched", 0), ("random_matched", 1),
    }  # fmt: skip
    for row in (r for r in rows if r["change"] == "toward_base"):
        kind = f"position_{row['position']}" if row["kind"] == "first" else f"before_reply_{-row['position']}"
        vector = found.tensors[f"layer_01/{row['dataset']}/{kind}/mean_delta"].double()
        mine = [s for s in corpus.sequences if s.dataset == row["text"]]
        effects, counts = zip(*(effect_by_hand(pair, s, vector / vector.norm()) for s in mine), strict=True)
        assert row["n_tokens"] == sum(counts)
        assert row["effect"] == pytest.approx(sum(effects) / sum(counts), abs=2e-5)
        assert abs(row["effect"]) > 1e-4
        assert row["low"] <= row["effect"] <= row["high"]
        matched = [r for r in rows if r["change"] == "random_matched" and r["text"] == row["text"]]
        matched = [r for r in matched if (r["dataset"], r["position"]) == (row["dataset"], row["position"])]
        assert [r["mean_size"] for r in matched] == pytest.approx([row["mean_size"]] * 2, rel=1e-4)


def test_causal_text_is_limited(output, corpus):
    tokens = {r["text"]: r["n_tokens"] for r in output.tables["causal"].to_pylist()}
    for name, n in tokens.items():
        lengths = [len(s.ids) for s in corpus.sequences if s.dataset == name]
        assert 0 < n < min(sum(lengths), 30 + max(lengths))


def test_identical_models_say_steer_and_cause_nothing(pair, corpus, tmp_path):
    same = dataclasses.replace(pair, finetuned=pair.base)
    found = output_of(tmp_path, same, corpus, {"null_pair": "identical"})
    assert set(found.tables["positions"]["norm"].to_pylist()) == {0.0}
    assert set(found.tables["positions"]["explained"].to_pylist()) == {None}
    assert not any(t.any() for name, t in found.tensors.items() if name.endswith("delta"))
    for table in ("strengths", "texts", "causal"):
        assert found.tables[table].num_rows == 0
    assert set(found.tables["patchscope"]["of"].to_pylist()) == {"base", "finetuned"}
    assert set(found.tables["token_scores"]["score"].to_pylist()) == {0.0}
    assert found.evidence.tokens == found.evidence.texts == ()
    assert any("All mean differences are zero" in note for note in found.notes)
    assert all(s.claimed is False for s in found.evidence.scalars)


@pytest.mark.parametrize("texts", [["in the end"], ["ab"], ["an inn", "the end"]])
def test_little_data(pair, tmp_path, texts):
    documents = {"web": documents_from_texts("web", texts)}
    corpus = tokenize_documents(documents, CorpusSpec(datasets=()), pair.tokenizer, pair.rules)
    found = output_of(tmp_path, pair, corpus, n_positions=50)
    longest = max(len(s.ids) for s in corpus.sequences)
    assert found.tables["positions"].num_rows == longest
    assert any(f"no document has more than {longest} tokens" in note for note in found.notes)
    if len(texts) == 1:
        assert set(found.tables["positions"]["stderr"].to_pylist()) == {None}
        assert set(found.tables["causal"]["low"].to_pylist()) == {None}
        assert set(found.tables["token_scores"]["null_score"].to_pylist()) == {None}


def test_chats_without_a_reply_are_said(pair, tmp_path):
    silent = chats([[Message("user", "in the end")], [Message("user", "then")]])
    corpus = tokenize_documents({"talk": silent}, CorpusSpec(datasets=()), pair.tokenizer, pair.rules)
    found = output_of(tmp_path, pair, corpus, **NOTHING_MORE)
    assert set(found.tables["positions"]["kind"].to_pylist()) == {"first"}
    assert any("talk: 2 chats hold no reply" in note for note in found.notes)


def test_an_interrupted_run_goes_on_and_gives_the_same_bits(output, pair, corpus, tmp_path, monkeypatch):
    def interrupted(*args, counted=[]):  # noqa: B006
        counted.append(1)
        if len(counted) > 1:
            raise KeyboardInterrupt
        return original(*args)

    from diffing.methods.activation_difference_lens import causal

    original = causal._on_batch
    with monkeypatch.context() as patched:
        patched.setattr(causal, "_on_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            output_of(tmp_path, pair, corpus)
    done = {p.name for p in tmp_path.iterdir()}
    assert {
        "means_0000.safetensors",
        "patchscope_001.safetensors",
        "texts_001.parquet",
        "causal_001_000.parquet",
    } <= done
    (tmp_path / "texts_001.parquet").write_bytes(b"cut")
    (tmp_path / "patchscope_001.safetensors").write_bytes(b"cut")
    monkeypatch.setattr(means_module._Reader, "read", lambda self, batches: pytest.fail("the means are read again"))
    found = output_of(tmp_path, pair, corpus)
    for name, table in output.tables.items():
        assert found.tables[name].equals(table), name


def test_models_that_cannot_be_subtracted_are_refused(pair, corpus, tmp_path):
    for change, said in (
        ({"hidden_size": 48}, "differ in width .32 and 48."),
        ({"num_hidden_layers": 2}, "differ in depth"),
    ):
        other = make_handle(tiny_model("llama", **change), tiny_tokenizer(), "other")
        with pytest.raises(UserError, match=said) as refused:
            output_of(tmp_path / said[:9], dataclasses.replace(pair, finetuned=other), corpus)
        for method in ("kl", "diff_mining", "logit_amplification", "perplexity_diff"):
            assert method in str(refused.value)


@pytest.mark.parametrize("layers", [[3], [-4], [1.5], ["some"]])
def test_layers_outside_the_model_are_refused(pair, corpus, tmp_path, layers):
    with pytest.raises(UserError, match=r"diffing.method.layers takes 0 to 2"):
        output_of(tmp_path, pair, corpus, layers=layers)


def test_prompts_that_are_not_there_are_refused_before_anything_is_read(pair, corpus, tmp_path):
    with pytest.raises(UserError, match=r"no file of prompts 'missing\.txt'"):
        output_of(tmp_path, pair, corpus, prompts="missing.txt")
    assert not list(tmp_path.glob("means*"))


def test_a_model_whose_read_out_is_not_known_is_read_by_patchscope_alone(pair, corpus, tmp_path):
    unknown = dataclasses.replace(pair, finetuned=dataclasses.replace(pair.finetuned, transform=None))
    found = output_of(tmp_path, unknown, corpus, strengths=[], causal_tokens=0)
    assert set(found.tables["readouts"]["of"].to_pylist()) == {"base"}
    assert any("finetuned model's read-out could not be verified" in note for note in found.notes)
    assert "delta" in found.tables["patchscope"]["of"].to_pylist()


def test_a_toggled_adapter_gives_what_a_merged_one_gives(tmp_path, corpus):
    from diffing.models.pair import load_pair
    from diffing.models.tiny import save_pair

    spec = save_pair(tmp_path / "pair")
    found = []
    for sharing in ("adapter", "merged"):
        loaded = load_pair(spec.model_copy(update={"sharing": sharing}))
        found.append(output_of(tmp_path / sharing, loaded, corpus, strengths=[], causal_tokens=0, n_null_draws=1))
    one, other = (f.tables["positions"].to_pylist() for f in found)
    assert one[0]["norm"] > 0
    for a, b in zip(one, other, strict=True):
        assert a["norm"] == pytest.approx(b["norm"], rel=1e-3)
    one, other = (f.tables["patchscope"].to_pylist() for f in found)
    np.testing.assert_allclose([r["probability"] for r in one], [r["probability"] for r in other], atol=1e-4)


def test_states_that_are_not_finite_are_left_out(pair, corpus, tmp_path, monkeypatch):
    original = means_module.capture

    def broken(handle, ids, slots, lengths):
        found = original(handle, ids, slots, lengths)
        return {s: x.masked_fill((ids == ids[0, 1])[..., None], float("nan")) for s, x in found.items()}

    monkeypatch.setattr(means_module, "capture", broken)
    found = output_of(tmp_path, pair, corpus, **NOTHING_MORE)
    assert any("hold NaN or infinity" in note for note in found.notes)
    assert not np.isnan(found.tables["positions"].to_pandas().norm).any()
    monkeypatch.setattr(means_module, "capture", lambda *a: {s: x * float("nan") for s, x in original(*a).items()})
    with pytest.raises(UserError, match="All activations are NaN"):
        output_of(tmp_path / "b", pair, corpus, **NOTHING_MORE)


def test_options():
    assert load_method("activation_difference_lens") is METHOD
    assert LensConfig(layers=3).layers == (3,)
    assert LensConfig(scales=[2, 1, 2]).scales == (1.0, 2.0)
    assert LensConfig(strengths=[]).strengths == ()
    assert set(METHOD.inputs(LensConfig())) == {"prompts"}
    for wrong in (
        {"layers": []}, {"layers": [True]}, {"n_positions": 0}, {"scales": []}, {"scales": [0]}, {"strengths": [-1]},
        {"steered_model": "both"}, {"temperature": -1}, {"n_causal_controls": 0},
    ):  # fmt: skip
        with pytest.raises(UserError):
            parse(LensConfig, wrong, "diffing.method")
