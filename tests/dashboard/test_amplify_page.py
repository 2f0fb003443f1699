"""Amplify on the tiny pair: what it shows is what the scaled model says, and the pair is as before afterwards."""

import pytest
from visiting import fine, sentence, spoken

import diffing
from diffing.core.amplification import PRESETS, AmplificationRule, AmplificationSpec, uniform
from diffing.core.specs import OrganismSpec
from diffing.dashboard.pages.amplify import command, option
from diffing.dashboard.subjects import Subject
from diffing.data.messages import Message
from diffing.data.prompts import prompt_ids
from diffing.models.amplifying import amplified
from diffing.models.generation import end_ids, generate
from diffing.models.sampling import Sampling

PROMPT = "Tell me."


@pytest.fixture(scope="module", params=["adapter", pytest.param("full", marks=pytest.mark.slow)])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def pair(bench, kind):
    """The pair that the page loads, loaded without it."""
    return diffing.load_pair(str(bench.base), finetuned=str(getattr(bench, kind)), device_map="cpu")


@pytest.fixture
def at(visit, results_dir, kind):
    """The page on the pair; few tokens, so that it is quick."""
    return lambda **query: fine(
        visit(results_dir, "amplify", **{"base": "base", "pair": kind, "tokens": 6, "prompt": PROMPT, **query})
    )


def written(pair, side):
    """What one model writes, asked directly."""
    handle = getattr(pair, side)
    ids = prompt_ids([Message("user", PROMPT)], handle.tokenizer, pair.rules)
    return "".join(t.text for t in generate(handle, ids, Sampling(6, 0.7, 1.0, 0, 0), end_ids(handle, pair.rules)))


def texts(app):
    app.button(key="amplify").click()
    fine(app.run())
    return {name: w.text for name, w in app.session_state["amplified"]["texts"].items()}


def expected(pair, spec):
    plain = {side: written(pair, side) for side in ("base", "finetuned")}
    with amplified(pair, spec):
        return {**plain, "amplified": written(pair, "finetuned")}


def test_three_texts(at, pair):
    app = at(overall=3.0)
    found = texts(app)
    assert found == expected(pair, uniform(3))
    assert len(set(found.values())) == 3
    assert "all ×3" in spoken(app).replace("\\", "")
    assert not app.code, "no command names a pair that has no configuration"
    assert texts(app) == found, "the pair was not put back"


@pytest.mark.slow
def test_sliders_of_parts(at, pair):
    app = at(overall=2.0, early_attention=0.5, late_mlp=-1.0)
    rules = [
        AmplificationRule(factor=2), AmplificationRule(factor=1, layers="0-0", modules=("attention",)),
        AmplificationRule(factor=-2, layers="2-2", modules=("mlp",)),
    ]  # fmt: skip
    assert texts(app) == expected(pair, AmplificationSpec(rules=tuple(rules)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reversed", "late_only"])
def test_presets(name, at, pair):
    app = at(factors=name)
    assert "overall" not in {s.key for s in app.slider}
    assert texts(app) == expected(pair, PRESETS[name])


@pytest.mark.slow
def test_factor_zero_is_the_base_and_one_the_finetuned_model(at):
    zero, one = texts(at(overall=0.0)), texts(at(overall=1.0))
    assert zero["amplified"] == zero["base"]
    assert one["amplified"] == one["finetuned"]


def test_an_empty_prompt_is_one_sentence(at):
    app = at()
    app.text_area(key="prompt").set_value("  ")
    app.button(key="amplify").click()
    sentence(app.run(), "There is no prompt yet")


@pytest.mark.slow
def test_a_model_that_breaks_is_one_sentence_and_is_put_back(at, kind, monkeypatch):
    from diffing.dashboard.pages import amplify

    before = texts(at(overall=2.0))
    monkeypatch.setattr(amplify, "uniform", lambda factor: uniform(1e40))
    app = at(overall=2.0)
    app.button(key="amplify").click()
    sentence(app.run(), "NaN or infinite logits", "Smaller factors may help")
    monkeypatch.undo()
    assert texts(at(overall=2.0)) == before


def test_the_command_names_pair_and_factors(pair):
    caps = Subject("smollm2_135M", "caps")
    said = command(caps, pair.spec, uniform(2))
    assert said == "python main.py diffing/method=kl model=smollm2_135M organism=caps organism.amplification=2"
    scaled = pair.spec.model_copy(update={"amplification": uniform(3)})
    assert command(caps, scaled, uniform(2)) is None


@pytest.mark.parametrize(
    "spec",
    [
        uniform(2.5), PRESETS["late_only"],
        AmplificationSpec(rules=(AmplificationRule(factor=2), AmplificationRule(factor=-1, layers="0-1"))),
    ],
)  # fmt: skip
def test_the_option_reads_back_as_the_same_rules(spec):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (parsed,) = OverridesParser.create().parse_overrides([option(spec).strip("'")])
    found = OrganismSpec(name="a", amplification=parsed.value()).amplification
    assert found is not None
    assert found.rules == spec.rules


@pytest.mark.slow
def test_a_result_of_an_amplified_pair_is_tried_as_one(visit, bench, tmp_path):
    pair = diffing.load_pair(str(bench.base), adapter=str(bench.adapter), device_map="cpu", amplification=3)
    diffing.run("kl", pair, data=["the heron stood in a thin line of smoke"], base_dir=tmp_path)
    app = fine(visit(tmp_path, "amplify", base="base", tokens=6, prompt=PROMPT, overall=1.0))
    assert app.selectbox(key="pair").value == "adapter+default×3"
    found = texts(app)
    assert found["finetuned"] == found["amplified"] == written(pair, "finetuned")
    assert found["base"] == written(pair, "base")
