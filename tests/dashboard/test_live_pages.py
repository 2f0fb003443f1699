"""Try it, Chat and Steer on the tiny pair: what they show is what the models say."""

import json

import pytest
import streamlit as st
import torch
from safetensors.torch import load_file, save
from streamlit.runtime.scriptrunner import StopException
from visiting import Parsed, components, fine, html_of, sentence, shown_number, spoken, token_texts, whole

import diffing
import diffing.models.pair
from diffing.dashboard.pages import chat, steer
from diffing.dashboard.writing import Writing, write_together
from diffing.data.messages import Message
from diffing.data.prompts import prompt_ids, raw_prompt_ids
from diffing.models.generation import GeneratedToken, end_ids, generate
from diffing.models.sampling import Sampling
from diffing.models.steering import Steering
from diffing.pipeline.probing import probe_text

TEXT = "The heron stood in the line of smoke."
TURNS = [{"role": "user", "content": "Who rang?"}, {"role": "assistant", "content": "The heron did."}]
PAIR = {"base": "base", "pair": "full"}
SIDES = ("base", "finetuned")


@pytest.fixture(scope="module")
def pair(bench):
    """The pair that the pages load, loaded without them."""
    return diffing.load_pair(str(bench.base), finetuned=str(bench.full), device_map="cpu")


@pytest.fixture
def at(visit, results_dir):
    """A live page on the pair; few tokens, so that it is quick."""
    return lambda page, **query: fine(visit(results_dir, page, **{**PAIR, "tokens": 8, **query}))


def written(pair, side, prompt, seed=0, n=8, steering=None):
    """What one model writes, asked directly."""
    handle = getattr(pair, side)
    ids = prompt if isinstance(prompt, list) else raw_prompt_ids(prompt, handle.tokenizer)
    return "".join(t.text for t in generate(handle, ids, Sampling(n, 0.7, 1.0, 0, seed), ends(pair, side), steering))


def ends(pair, side):
    return end_ids(getattr(pair, side), pair.rules)


def chat_ids(pair, side, *turns):
    return prompt_ids([Message(*t) for t in turns], getattr(pair, side).tokenizer, pair.rules)


def analysed(app):
    app.button(key="analyse").click()
    return fine(app.run())


@pytest.mark.parametrize(("by", "layer"), [("KL", None), ("ΔNLL", None), ("relative difference", 1)])
def test_values_of_a_text(by, layer, at, pair):
    app = analysed(at("try_it", text=TEXT, by=by, **({} if layer is None else {"layer": layer})))
    found = probe_text(pair, TEXT)
    (values,) = [v for vs in found.values.values() for v in vs if (v.name, v.layer) == (by, layer)]
    (data,) = components(app, "diffing_heatmap")
    assert "".join(token_texts(data["items"][0])) == TEXT
    for token, value in zip(data["items"][0]["tokens"], values.values_T, strict=True):
        shown = token["lines"][2].removeprefix(by).strip().split(" ")[0]
        assert (shown == "–") if value is None else shown_number(shown) == pytest.approx(value, rel=5e-3)
    known = [abs(v) for v in values.values_T[1:] if v is not None]
    assert data["items"][0]["at"] == [None if v is None else abs(v) for v in values.values_T].index(max(known))


def test_what_both_models_expect_next(at, pair):
    app = analysed(at("try_it", text=TEXT))
    (data,) = components(app, "diffing_heatmap")
    chosen, ids = data["items"][0]["at"], raw_prompt_ids(TEXT, pair.tokenizer)
    tables = [p.rows for p in map(Parsed, html_of(app)) if p.rows and "probability" in p.rows[0]]
    assert [rows[0][2] for rows in tables] == ["in the finetuned", "in the base"]
    with torch.no_grad():
        by_side = [getattr(pair, s).module(torch.tensor([ids])).logits[0, chosen].softmax(-1) for s in SIDES]
    for rows, mine, other in ((tables[0], *by_side), (tables[1], *by_side[::-1])):
        top = mine.topk(10).indices
        assert [shown_number(r[1]) for r in rows[1:]] == pytest.approx(mine[top].tolist(), rel=1e-2)
        assert [shown_number(r[2]) for r in rows[1:]] == pytest.approx(other[top].tolist(), rel=1e-2)
    assert f"At token {chosen}:" in spoken(app)


def test_a_chat_with_roles(at, pair):
    app = analysed(at("try_it", input="chat", chat=json.dumps(TURNS)))
    found = probe_text(pair, TURNS)
    (data,) = components(app, "diffing_heatmap")
    assert len(data["items"][0]["tokens"]) == len(found.token_ids)
    roles = [t["lines"][1].removesuffix(", template") for t in data["items"][0]["tokens"]]
    assert roles == list(found.roles)
    assert {"user", "assistant"} <= set(roles)


@pytest.mark.parametrize("text", ["", "   \n"])
def test_no_text_is_said(text, at):
    app = at("try_it")
    app.text_area(key="text").set_value(text)
    app.button(key="analyse").click()
    sentence(app.run(), "There is no text yet")


@pytest.mark.parametrize("side", SIDES)
def test_generate_first_then_analyse(side, at, pair):
    app = analysed(at("try_it", text=TEXT, first=side, seed=3))
    (data,) = components(app, "diffing_heatmap")
    expected = probe_text(pair, TEXT + written(pair, side, TEXT, seed=3))
    assert len(data["items"][0]["tokens"]) == len(expected.token_ids) > len(raw_prompt_ids(TEXT, pair.tokenizer))


def test_an_analysis_of_another_pair_is_not_shown(at):
    app = analysed(at("try_it", text=TEXT))
    app.selectbox(key="pair").set_value("adapter")
    assert not components(fine(app.run()), "diffing_heatmap")
    assert any("another pair" in h for h in html_of(app))


def ask(app, text):
    app.chat_input[0].set_value(text)
    return fine(app.run())


def answers(app, turn=-1):
    return {side: a.text for side, a in app.session_state["talk"].turns[turn].answers.items()}


def test_both_models_answer_and_go_on_from_their_own_words(at, pair):
    app = ask(at("chat", seed=5), "Who rang the bell?")
    first = {s: written(pair, s, chat_ids(pair, s, ("user", "Who rang the bell?")), 5) for s in SIDES}
    assert answers(app) == first
    assert first["base"] != first["finetuned"]
    ask(app, "Why?")
    turns = {s: [("user", "Who rang the bell?"), ("assistant", first[s]), ("user", "Why?")] for s in SIDES}
    assert answers(app) == {s: written(pair, s, chat_ids(pair, s, *turns[s]), 5) for s in SIDES}
    assert answers(app, 0) == first
    shown = " ".join(Parsed(h).text for h in html_of(app))
    assert "Who rang the bell?" in shown
    assert "Why?" in shown


def test_regenerate_takes_the_next_seed(at, pair):
    app = ask(at("chat", seed=5), "Who?")
    before = answers(app)
    app.button(key="regenerate").click()
    fine(app.run())
    assert answers(app) == {s: written(pair, s, chat_ids(pair, s, ("user", "Who?")), 6) for s in SIDES}
    assert answers(app) != before
    assert len(app.session_state["talk"].turns) == 1


def test_editing_a_turn_drops_what_follows(at, pair):
    app = ask(ask(at("chat", tokens=4), "One?"), "Two?")
    app.text_area(key="edit-0").set_value("Three?")
    app.button(key="again-0").click()
    fine(app.run())
    assert [t.user for t in app.session_state["talk"].turns] == ["Three?"]
    assert answers(app) == {s: written(pair, s, chat_ids(pair, s, ("user", "Three?")), n=4) for s in SIDES}


def test_editing_an_answer_is_what_that_side_goes_on_from(at, pair):
    app = ask(at("chat", tokens=4), "One?")
    kept = answers(app)["finetuned"]
    app.text_area(key="edit-0-base").set_value("Yes.")
    app.button(key="keep-0-base").click()
    fine(app.run())
    assert answers(app) == {"base": "Yes.", "finetuned": kept}
    ask(app, "Two?")
    said = {"base": "Yes.", "finetuned": kept}
    expected = {s: [("user", "One?"), ("assistant", said[s]), ("user", "Two?")] for s in SIDES}
    assert answers(app) == {s: written(pair, s, chat_ids(pair, s, *expected[s]), n=4) for s in SIDES}


def test_one_side_and_a_system_prompt(at, pair):
    app = ask(at("chat", ask="base", system="Be brief."), "Who?")
    ids = chat_ids(pair, "base", ("system", "Be brief."), ("user", "Who?"))
    assert answers(app) == {"base": written(pair, "base", ids)}


def test_plain_text_takes_no_template(at, pair):
    app = ask(at("chat", **{"as": "plain text"}), TEXT)
    assert answers(app) == {s: written(pair, s, TEXT) for s in SIDES}
    assert "system" not in {w.key for w in app.text_input}


def test_stopping_keeps_what_was_written(at, pair, monkeypatch):
    app = at("chat", tokens=6)

    def stopped(streams, into, draw):
        for name, stream in streams.items():
            into[name].add(next(stream))
            into[name].add(next(stream))
        raise StopException

    monkeypatch.setattr(chat, "write_together", stopped)
    app.chat_input[0].set_value("Who?")
    app.run()
    whole(app.run())
    expected = {s: written(pair, s, chat_ids(pair, s, ("user", "Who?")), n=6) for s in SIDES}
    assert all(text and expected[s].startswith(text) for s, text in answers(app).items())
    assert spoken(app).count("2 tokens, stopped") == 2
    monkeypatch.undo()


def test_streams_take_turns_and_are_closed_when_the_writing_ends_early():
    closed, order = [], []

    def stream(name, n):
        try:
            for i in range(n):
                order.append(name)
                yield GeneratedToken(i, f"{name}{i}", -0.5, i == n - 1)
        finally:
            closed.append(name)

    into = {"a": Writing(), "b": Writing()}
    write_together({"a": stream("a", 3), "b": stream("b", 1)}, into, lambda name, writing: None)
    assert order == ["a", "b", "a", "a"]
    assert (into["a"].text, into["a"].n_tokens, into["a"].log_prob, into["a"].has_ended) == ("a0a1a2", 3, -1.5, True)

    def leave(name, writing):
        if writing.n_tokens == 1:
            raise StopException

    closed.clear()
    into = {"a": Writing()}
    with pytest.raises(StopException):
        write_together({"a": stream("a", 3)}, into, leave)
    assert (into["a"].text, into["a"].has_ended, closed) == ("a0", False, ["a"])


def test_the_export_holds_all_that_was_said(at, monkeypatch):
    given = []
    monkeypatch.setattr(st, "download_button", lambda *arguments, **options: given.append(arguments))
    app = ask(ask(at("chat", seed=7, tokens=4), "One?"), "Two?")
    label, text, file, kind = given[-1]
    told = json.loads(text)
    assert (label, file, kind) == ("Export (JSON)", "chat-custom.json", "application/json")
    assert told["pair"]["finetuned"]["id"].endswith("/full")
    assert told["sampling"] == {"max_new_tokens": 4, "temperature": 0.7, "top_p": 1.0, "top_k": 0, "seed": 7}
    assert [t["user"] for t in told["turns"]] == ["One?", "Two?"]
    assert [{s: a["text"] for s, a in t["answers"].items()} for t in told["turns"]] == [answers(app, 0), answers(app)]


@pytest.mark.slow
def test_a_pair_that_was_compared_from_python(visit, pair, tmp_path):
    diffing.run("normdiff", pair, data=[TEXT] * 4, base_dir=tmp_path)
    app = ask(fine(visit(tmp_path, "chat", **PAIR, tokens=4)), "Who?")
    assert answers(app) == {s: written(pair, s, chat_ids(pair, s, ("user", "Who?")), n=4) for s in SIDES}
    assert set(texts(steered(visit(tmp_path, "steer", **PAIR, tokens=2)))) == {
        f"{side}, {how}" for side in SIDES for how in ("unsteered", "steered")
    }


def steered(app):
    app.button(key="steer").click()
    return fine(app.run())


def texts(app):
    return {name: w.text for name, w in app.session_state["steered"]["texts"].items()}


PROMPT = "Tell me."


@pytest.mark.parametrize("where", ["all tokens", "prompt", "fading"])
def test_a_vector_of_a_result_steers_both_models(where, at, pair, results_dir, runs, monkeypatch):
    monkeypatch.setattr(steer, "_mean_norm", lambda site, pair, layer: 10.0)
    app = steered(at("steer", prompt=PROMPT, where=where, strength=3.0, seed=2))
    tensors = load_file(results_dir / "results" / runs("full", "normdiff") / "tensors" / "tensors.safetensors")
    vector = tensors[app.selectbox(key="vector").value].float()
    layer = int(app.number_input[0].value)
    added = Steering(layer, 30 * vector / vector.norm(), {"all tokens": "all"}.get(where, where), 32)
    for side in SIDES:
        ids = chat_ids(pair, side, ("user", PROMPT))
        assert texts(app)[f"{side}, unsteered"] == written(pair, side, ids, 2)
        assert texts(app)[f"{side}, steered"] == written(pair, side, ids, 2, steering=added)
        assert texts(app)[f"{side}, steered"] != texts(app)[f"{side}, unsteered"]
    assert "3 × mean norm 10" in spoken(app)


def test_strength_zero_changes_nothing(at):
    found = texts(steered(at("steer", strength=0.0)))
    assert all(found[f"{side}, steered"] == found[f"{side}, unsteered"] for side in SIDES)


def upload(app, content, name="v.safetensors"):
    app.file_uploader[0].upload(name, content, "application/octet-stream")
    return whole(app.run())


def test_an_uploaded_vector_steers(at, pair):
    width = pair.base.module.config.hidden_size
    app = upload(at("steer", source="upload"), save({"v": torch.ones(width), "m": torch.ones(2, 2)}))
    assert app.selectbox(key="tensor").options == ["v"]
    assert texts(steered(app))["base, unsteered"] == written(
        pair, "base", chat_ids(pair, "base", ("user", app.text_area(key="prompt").value))
    )


def test_a_vector_of_another_width_is_one_sentence(at, pair):
    width = pair.base.module.config.hidden_size
    app = upload(at("steer", source="upload"), save({"v": torch.ones(width + 1)}))
    app.button(key="steer").click()
    sentence(app.run(), f"{width + 1}", f"{width}", "choose a vector of that width")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"PK\x03\x04 a zip", ["v.safetensors is no safetensors file"]),
        (b"", ["v.safetensors"]),
        (save({"v": torch.full((8,), float("nan"))}), ["NaN"]),
        (save({"v": torch.zeros(8)}), ["zero"]),
        (save({"v": torch.ones(8, dtype=torch.int64)}), ["no vector of floating-point numbers", "v (8,)"]),
        (save({"m": torch.ones(4, 4)}), ["no vector", "m (4, 4)"]),
    ],
    ids=["zip", "empty", "nan", "zero", "integers", "matrix"],
)
def test_an_upload_that_is_no_vector_is_one_sentence(content, parts, at):
    sentence(upload(at("steer", source="upload"), content), *parts)


@pytest.mark.parametrize("prompt", ["", "  "])
def test_an_empty_prompt_is_one_sentence(prompt, at):
    app = at("steer")
    app.text_area(key="prompt").set_value(prompt)
    app.button(key="steer").click()
    sentence(app.run(), "There is no prompt yet")


def test_a_layer_that_is_not_there_is_one_sentence(at):
    app = at("steer")
    app.number_input[0].set_value(99)
    app.button(key="steer").click()
    sentence(app.run(), "99")


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_server")
def test_the_models_are_loaded_once_and_can_be_unloaded(at, monkeypatch):
    loads, load = [], diffing.models.pair.load_pair

    def counted(spec):
        loads.append(spec.finetuned.id.rpartition("/")[2])
        return load(spec)

    monkeypatch.setattr(diffing.models.pair, "load_pair", counted)
    assert "No model in memory" in spoken(at("try_it"))
    assert loads == []
    analysed(at("try_it", text=TEXT))
    ask(at("chat", tokens=2), "Who?")
    app = steered(at("steer", tokens=2))
    assert loads == ["full"]
    assert "In memory: custom on custom" in spoken(app)
    analysed(at("try_it", text=TEXT, pair="adapter"))
    assert loads == ["full", "adapter"]
    app = at("overview")
    app.button(key="unload").click()
    assert "No model in memory" in spoken(fine(app.run()))
    analysed(at("try_it", text=TEXT, pair="adapter"))
    assert loads == ["full", "adapter", "adapter"]
