"""`model_patching` against a loop written apart, its factorial, prompts, interruption, and pairs that do not fit."""

import numpy as np
import pytest
import torch

import diffing
from diffing.core.config import parse
from diffing.core.errors import UserError
from diffing.core.seeds import generator
from diffing.core.specs import CorpusSpec
from diffing.data.documents import documents_from_texts
from diffing.data.tokens import ROLES, tokenize_documents
from diffing.methods.model_patching import factorial as factorial_module
from diffing.methods.model_patching.config import ModelPatchingConfig
from diffing.methods.model_patching.factorial import Factorial, chosen_points, point_name
from diffing.methods.model_patching.half import half_point
from diffing.methods.model_patching.prompts import choose_openings
from diffing.methods.model_patching.results import ALL, BASE_INTO_FINETUNED, FINETUNED_INTO_BASE
from diffing.methods.model_patching.texts import first_divergence
from diffing.models.generation import end_ids, generate
from diffing.models.pair import load_pair
from diffing.models.sampling import Sampling
from diffing.models.tiny import perturbed, save_model, save_pair, tiny_model, tiny_tokenizer

CHAT = [{"role": "user", "content": "Where is the harbour?"}, {"role": "assistant", "content": "Behind the hill."}]
SMALL = {"n_prompts": 5, "max_prompt_tokens": 20, "max_new_tokens": 8}


def run(pair, texts, folder, **options):
    return diffing.run("model_patching", pair, data=texts, base_dir=folder, **{**SMALL, **options})


def rows(result, table):
    return result.table(table).to_pylist()


def greedy(pair, handle, ids, n):
    ends = end_ids(pair.base, pair.rules) | end_ids(pair.finetuned, pair.rules)
    return [t.id for t in generate(handle, ids, Sampling(max_new_tokens=n, temperature=0), ends)]


def by_hand(receiver, donor, ids, layer, token, other):
    """Logit difference when the donor's stream after a block replaces the receiver's, one text at a time."""
    kept = {}
    block = donor.sites.layers[layer]
    hook = block.register_forward_hook(lambda m, a, output: kept.update(stream=output))
    donor.forward_logits(torch.tensor([ids]))
    hook.remove()
    hook = receiver.sites.layers[layer].register_forward_hook(lambda m, a, output: kept["stream"])
    logits_V = receiver.forward_logits(torch.tensor([ids]))[0, -1].double()
    hook.remove()
    return float(logits_V[token] - logits_V[other])


def own(handle, ids, token, other):
    logits_V = handle.forward_logits(torch.tensor([ids]))[0, -1].double()
    return float(logits_V[token] - logits_V[other])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A full finetune near enough to its base that some texts part late."""
    return load_pair(save_pair(tmp_path_factory.mktemp("pair"), full=True, scale=0.01))


@pytest.fixture(scope="module")
def result(pair, texts, tmp_path_factory):
    return run(pair, [*texts, CHAT], tmp_path_factory.mktemp("patching"), n_prompts=6)


def test_texts_and_divergence_are_those_of_generation(pair, result, texts):
    found = {r["document"]: r for r in rows(result, "prompts")}
    assert len(found) == 6
    assert any(r["position"] for r in found.values()), "some texts part later than at once"
    for number, text in enumerate(texts):
        row, ids = found[number], pair.tokenizer(text)["input_ids"]
        prompt = ids[: row["n_prompt_tokens"]]
        assert pair.tokenizer.decode(prompt) == row["prompt"]
        base, ft = (greedy(pair, h, prompt, 8) for h in (pair.base, pair.finetuned))
        assert pair.tokenizer.decode(base) == row["base_text"]
        parted = [i for i, (b, f) in enumerate(zip(base, ft, strict=False)) if b != f]
        assert row["position"] == (parted[0] if parted else None)
        if parted:
            assert (row["base_token_id"], row["ft_token_id"]) == (base[parted[0]], ft[parted[0]])
            assert row["base_text"][: row["base_start"]] == row["ft_text"][: row["ft_start"]]
            for side in ("base", "ft"):
                marked = row[f"{side}_text"][row[f"{side}_start"] : row[f"{side}_end"]]
                fragment = "\ufffd" in pair.tokenizer.decode([row[f"{side}_token_id"]])
                assert fragment or marked == row[f"{side}_token"]


def test_logit_differences_agree_with_a_loop_over_hooks(pair, result, texts):
    compared = [r for r in rows(result, "prompts") if r["is_compared"] and r["document"] < len(texts)]
    assert len(compared) > 2
    for row in compared:
        prompt = pair.tokenizer(texts[row["document"]])["input_ids"][: row["n_prompt_tokens"]]
        context = prompt + greedy(pair, pair.base, prompt, 8)[: row["position"]]
        chosen = (row["ft_token_id"], row["base_token_id"])
        assert row["base_difference"] == pytest.approx(own(pair.base, context, *chosen), abs=1e-4)
        assert row["ft_difference"] == pytest.approx(own(pair.finetuned, context, *chosen), abs=1e-4)
        for layer in range(3):
            at = layer + 1
            expected = by_hand(pair.finetuned, pair.base, context, layer, *chosen)
            assert row["base_into_ft"][at] == pytest.approx(expected, abs=1e-4)
            expected = by_hand(pair.base, pair.finetuned, context, layer, *chosen)
            assert row["ft_into_base"][at] == pytest.approx(expected, abs=1e-4)
        assert row["margin_base"] > 0
        assert row["margin_ft"] > 0
        assert row["margin_base"] <= -row["base_difference"] + 1e-4
        assert row["margin_ft"] <= row["ft_difference"] + 1e-4


def test_the_head_gives_the_donors_difference_exactly(result):
    for row in rows(result, "prompts"):
        if row["is_compared"]:
            assert row["base_into_ft"][-1] == row["base_difference"]
            assert row["ft_into_base"][-1] == row["ft_difference"]
    for row in rows(result, "layers"):
        if row["point"] == "head":
            assert row["recovery"] == row["low"] == row["high"] == 1


def test_tables_are_sums_over_prompts(result):
    compared = [r for r in rows(result, "prompts") if r["is_compared"]]
    bb, ff = (np.array([r[k] for r in compared]) for k in ("base_difference", "ft_difference"))
    bf, fb = (np.array([r[k] for r in compared]) for k in ("base_into_ft", "ft_into_base"))
    layers = {(r["direction"], r["layer"]): r for r in rows(result, "layers") if r["dataset"] == ALL}
    cells = {r["layer"]: r for r in rows(result, "factorial") if r["dataset"] == ALL}
    assert [cells[k]["point"] for k in sorted(cells)] == [
        "embedding", "layer 0", "layer 1", "layer 2", "final norm", "head",
    ]  # fmt: skip
    for p, layer in enumerate(range(-1, 5)):
        into_ft, into_base = layers[BASE_INTO_FINETUNED, layer], layers[FINETUNED_INTO_BASE, layer]
        assert into_ft["recovery"] == pytest.approx((ff - bf[:, p]).sum() / (ff - bb).sum())
        assert into_base["recovery"] == pytest.approx((fb[:, p] - bb).sum() / (ff - bb).sum())
        assert into_ft["logit_difference"] == pytest.approx(bf[:, p].mean())
        row = cells[layer]
        assert row["upstream"] == pytest.approx(((fb[:, p] - bb) + (ff - bf[:, p])).mean() / 2)
        assert row["late"] == pytest.approx(((bf[:, p] - bb) + (ff - fb[:, p])).mean() / 2)
        assert row["interaction"] == pytest.approx((ff - fb[:, p] - bf[:, p] + bb).mean())
        assert row["upstream"] + row["late"] == pytest.approx((ff - bb).mean())
        assert row["interaction"] == pytest.approx(
            (into_ft["recovery"] - into_base["recovery"]) * (ff - bb).mean(), abs=1e-6
        )
        assert row["upstream_low"] <= row["upstream"] <= row["upstream_high"]
    head = cells[4]
    assert head["late"] == pytest.approx(0, abs=1e-9)
    assert head["interaction"] == pytest.approx(0, abs=1e-9)


def test_planted_effects_come_back():
    """L = a·u + c·l + i·u·l gives main effects a + i/2 and c + i/2, and the interaction i."""
    a, c, i = 2.0, 3.0, -1.5
    n = np.ones(4)
    found = Factorial(0 * n, (a + c + i) * n, c * n[:, None], a * n[:, None], n, n)
    np.testing.assert_allclose(found.upstream_SP, a + i / 2)
    np.testing.assert_allclose(found.late_SP, c + i / 2)
    np.testing.assert_allclose(found.interaction_SP, i)


def test_half_is_reached_between_points():
    curve = np.array([[0.0, 1.0, 4.0, 10.0], [0.0, 1.0, 4.0, 10.0]])
    rng = generator(0, "half")
    found = half_point(curve, curve[:, -1], rng, [-1, 0, 5, 11])
    assert found.value == pytest.approx(5 + 6 / 6)
    assert found.low == pytest.approx(found.value)
    assert half_point(curve[:1], curve[:1, -1], rng, [-1, 0, 5, 11]).low is None
    assert half_point(np.array([[6.0, 10.0]]), np.array([10.0]), rng, [-1, 0]).value == -1
    assert np.isnan(half_point(curve[:0], curve[:0, -1], rng, [-1, 0, 5, 11]).value)
    mixed = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    spread = half_point(mixed, np.ones(2), rng, [-1, 0, 1])
    assert (spread.low, spread.value, spread.high) == pytest.approx((-0.5, 0.0, 0.5))


def test_points_are_spread_over_depth():
    assert chosen_points(3, 10, 1) == [-1, 0, 1, 2, 3, 4]
    assert chosen_points(30, None, 14) == list(range(-1, 32))
    assert chosen_points(30, 4, 14) == [-1, 0, 10, 14, 19, 29, 30, 31]
    assert chosen_points(30, 1, 14) == [-1, 0, 14, 29, 30, 31]
    assert chosen_points(1, 10, 0) == [-1, 0, 1, 2]
    assert [point_name(p, 3) for p in (-1, 2, 3, 4)] == ["embedding", "layer 2", "final norm", "head"]


def test_where_texts_part():
    assert first_divergence([1, 2, 3], [1, 2, 3], None) is None
    assert first_divergence([1, 2], [1, 2, 3], None) is None
    assert first_divergence([1, 2, 3], [1, 5, 3], None) == 1
    assert first_divergence([7, 2], [1, 2], None) == 0
    assert first_divergence([1, 9, 3], [1, 9, 4], {1, 3, 4}) == 1


def corpus_of(data, tokenizer, rules, **spec):
    documents = {name: documents_from_texts(name, texts) for name, texts in data.items()}
    return tokenize_documents(documents, CorpusSpec(datasets=(), **spec), tokenizer, rules)


def test_prompts_are_beginnings_and_chats_up_to_the_reply(pair, texts):
    corpus = corpus_of({"web": texts * 3, "chat": [CHAT, CHAT * 2]}, pair.tokenizer, pair.rules)
    config = ModelPatchingConfig(n_prompts=6, min_prompt_tokens=4, max_prompt_tokens=9)
    found, notes = choose_openings(config, corpus, None, None, 0)
    assert notes == []
    assert [o.dataset for o in found] == ["web"] * 6 + ["chat"] * 2
    by_key = {(s.dataset, s.index): s for s in corpus.sequences}
    for opening in found:
        sequence = by_key[opening.dataset, opening.document]
        n = len(opening.ids)
        assert opening.ids == tuple(sequence.ids[:n].tolist())
        if opening.dataset == "web":
            assert n == len(sequence.ids) - 1 or 4 <= n <= 9
        else:
            assert pair.tokenizer.decode(list(opening.ids)).endswith("<|im_start|>assistant\n")
            assert ROLES[sequence.roles[n]] == "assistant"
    assert len({len(o.ids) for o in found if o.dataset == "web"}) > 1
    again, _ = choose_openings(config, corpus, None, None, 0)
    assert again == found
    assert choose_openings(config, corpus, None, None, 1)[0] != found


def test_documents_without_a_prompt_are_counted_or_refused(pair, texts):
    asked = [{"role": "user", "content": "Where is the harbour?"}]
    corpus = corpus_of({"web": texts, "chat": [asked, CHAT]}, pair.tokenizer, pair.rules)
    found, notes = choose_openings(ModelPatchingConfig(), corpus, None, None, 0)
    assert sum(o.dataset == "chat" for o in found) == 1
    assert notes[0].startswith("chat: 1 of 2 documents give no prompt")
    short, notes = choose_openings(ModelPatchingConfig(max_chat_tokens=3), corpus, None, 10, 0)
    assert {o.dataset for o in short} == {"web"}
    assert all(len(o.ids) <= 10 for o in short)
    alone = corpus_of({"chat": [asked]}, pair.tokenizer, pair.rules)
    with pytest.raises(UserError, match=r"No document gives a prompt.*max_chat_tokens=128"):
        choose_openings(ModelPatchingConfig(), alone, None, None, 0)


def test_rankings_count_choices(result):
    prompts = [r for r in rows(result, "prompts") if r["position"] is not None]
    n = result.table("prompts").num_rows
    scores = rows(result, "token_scores")
    for row in rows(result, "divergence_tokens"):
        assert row["n_ft"] == sum(r["ft_token_id"] == row["token_id"] for r in prompts)
        assert row["n_base"] == sum(r["base_token_id"] == row["token_id"] for r in prompts)
        score = next(s for s in scores if s["token_id"] == row["token_id"])
        values = [(r["ft_token_id"] == row["token_id"]) - (r["base_token_id"] == row["token_id"]) for r in prompts]
        values += [0] * (n - len(prompts))
        assert score["score"] == pytest.approx(np.mean(values))
        assert score["stderr"] == pytest.approx(np.std(values, ddof=1) / n**0.5)
    documents = rows(result, "document_scores")
    effects = {r["document"]: r["effect"] or 0.0 for r in rows(result, "prompts")}
    assert {d["document"]: d["score"] for d in documents} == effects


def test_identical_models_never_part(bench, texts, tmp_path):
    pair = diffing.load_pair(str(bench.base), null_pair="identical", device_map="cpu")
    result = run(pair, texts, tmp_path)
    assert {r["position"] for r in rows(result, "prompts")} == {None}
    for table in ("layers", "factorial", "divergence_tokens", "token_scores"):
        assert result.table(table).num_rows == 0
        assert result.table(table).column_names
    assert {r["score"] for r in rows(result, "document_scores")} == {0.0}
    (whole,) = rows(result, "datasets")
    assert (whole["share"], whole["n_compared"], whole["half_layer"]) == (0, 0, None)
    assert result.figures() == {}
    assert any("nothing to patch" in note for note in result.manifest["notes"])
    assert not any(s.claimed for s in result.evidence().scalars)


@pytest.mark.parametrize("data", [["Zinc is."], ["ab"], [CHAT]])
def test_one_document(pair, data, tmp_path):
    result = run(pair, data, tmp_path, max_new_tokens=4)
    assert result.table("prompts").num_rows == 1
    for row in rows(result, "layers"):
        assert (row["low"], row["high"]) == (None, None)


def test_a_toggled_adapter_gives_what_merged_weights_give(tiny_pair, texts, tmp_path):
    toggled, merged = (
        run(tiny_pair(full=False, sharing=s), texts[:3], tmp_path / s) for s in ("adapter", "merged")
    )  # fmt: skip
    for one, other in zip(rows(toggled, "prompts"), rows(merged, "prompts"), strict=True):
        assert (one["position"], one["ft_token_id"]) == (other["position"], other["ft_token_id"])
        np.testing.assert_allclose(one["base_into_ft"], other["base_into_ft"], atol=1e-3)
        np.testing.assert_allclose(one["ft_into_base"], other["ft_into_base"], atol=1e-3)


def test_vocabularies_of_different_size_are_compared_on_shared_ids(texts, tmp_path):
    base = tiny_model(seed=0)
    save_model(tmp_path / "base", base, tiny_tokenizer())
    wider = perturbed(base, 1, 0.05)
    wider.resize_token_embeddings(base.config.vocab_size + 7, mean_resizing=False)
    wider.get_output_embeddings().weight.data[-7:] *= 20
    save_model(tmp_path / "wider", wider, tiny_tokenizer(tuple(f"<new{i}>" for i in range(7))))
    pair = diffing.load_pair(str(tmp_path / "base"), finetuned=str(tmp_path / "wider"))
    result = run(pair, texts, tmp_path / "out")
    prompts = rows(result, "prompts")
    foreign = [r for r in prompts if r["ft_token_id"] is not None and r["ft_token_id"] >= base.config.vocab_size]
    assert foreign
    assert not any(r["is_compared"] for r in foreign)
    assert any("does not know" in note for note in result.manifest["notes"])
    assert any("vocabularies differ" in note for note in result.manifest["notes"])


def test_an_interrupted_run_goes_on_and_gives_the_same_bits(pair, texts, tmp_path, monkeypatch):
    whole = run(pair, texts, tmp_path / "whole", batch_tokens=16)
    real, calls = factorial_module._patched, []

    def patched(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(factorial_module, "_patched", patched)
    with pytest.raises(KeyboardInterrupt):
        run(pair, texts, tmp_path / "cut", batch_tokens=16)
    (kept,) = (tmp_path / "cut").rglob("patches_0001.safetensors")
    kept.write_bytes(kept.read_bytes()[:-9])
    (written,) = (tmp_path / "cut").rglob("texts_0000.json")
    before = written.stat().st_mtime_ns
    n_units = sum(1 for _ in kept.parent.glob("patches_*"))
    assert n_units == 2
    calls.clear()
    monkeypatch.setattr(factorial_module, "_patched", lambda *args: calls.append(args) or real(*args))
    with monkeypatch.context() as m:
        m.setattr("diffing.methods.model_patching.texts.write_texts", lambda *args: pytest.fail("texts are kept"))
        done = run(pair, texts, tmp_path / "cut", batch_tokens=16)
    assert before
    assert len(calls) == len([r for r in rows(whole, "prompts") if r["is_compared"]]) - 1
    for table in whole.tables():
        assert done.table(table).equals(whole.table(table)), table


def test_models_of_other_shapes_exit_with_a_sentence(command, bench, tmp_path):
    deeper = tmp_path / "deeper"
    save_model(deeper, tiny_model(num_hidden_layers=4), tiny_tokenizer())
    options = bench.command(tmp_path / "out", "diffing/method=model_patching", finetuned=deeper)
    command(options).sentence("3 layers", "finetuned model 4", "kl, diff_mining, logit_amplification")


def test_options(pair, texts, tmp_path):
    for wrong, said in (
        ({"min_prompt_tokens": 60}, "min_prompt_tokens=60 is above max_prompt_tokens=48"),
        ({"layer": True}, "true and false are no layers"),
        ({"n_prompts": 0}, "n_prompts"),
        ({"max_new_token": 3}, "max_new_tokens"),
    ):
        with pytest.raises(UserError, match=said):
            parse(ModelPatchingConfig, wrong, "diffing.method")
    with pytest.raises(UserError, match=r"Layer 3 is out of range.*diffing\.method\.layer"):
        run(pair, texts, tmp_path, layer=3)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gemma2", "gpt2", "cohere"])
def test_other_architectures_in_bfloat16(architecture, texts, tmp_path):
    spec = save_pair(tmp_path / "pair", architecture, full=True)
    pair = load_pair(spec.model_copy(update={"model": spec.model.model_copy(update={"dtype": "bfloat16"})}))
    result = run(pair, texts, tmp_path)
    compared = [r for r in rows(result, "prompts") if r["is_compared"]]
    assert compared
    for row in compared:
        assert row["base_into_ft"][-1] == row["base_difference"]
        assert np.isfinite(row["base_into_ft"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("organism", ["caps", "roman_concrete"])
def test_embedded_organisms_differ_in_how_depth_works_together(organism, tmp_path):
    pair = diffing.load_pair("smollm2_135M", adapter=organism)
    result = diffing.run("model_patching", pair, data="embedded", base_dir=tmp_path, n_prompts=10, n_layers=2)
    whole = next(r for r in rows(result, "factorial") if (r["dataset"], r["layer"]) == (ALL, 14))
    shares = {r["dataset"]: r["share"] for r in rows(result, "datasets")}
    assert shares["chat"] == 1
    if organism == "caps":
        assert rows(result, "token_scores")[0]["token"] == "THE"
        assert whole["interaction_low"] < 0 < whole["interaction_high"]
        assert whole["late"] > 2 * whole["upstream"] > 0
    else:
        assert whole["interaction_low"] > 0
        assert whole["upstream_share"] > 0.3
