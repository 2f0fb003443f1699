"""Amplification as people write it: numbers, presets, files and rules; what each rule speaks of."""

import json

import pytest

from diffing.core.amplification import PRESETS, AmplificationRule, AmplificationSpec, Place, factors, uniform
from diffing.core.config import parse
from diffing.core.errors import UserError
from diffing.core.specs import OrganismSpec

PARTS = (("self_attn.o_proj", "attention"), ("mlp.down_proj", "mlp"), ("input_layernorm", "other"))
PLACES = (
    *(Place(f"model.layers.{i}.{part}", i, kind) for i in range(4) for part, kind in PARTS),
    Place("lm_head", None, "other"),
)


def read(value):
    return parse(OrganismSpec, {"name": "a", "amplification": value}, "organism").amplification


def of(spec):
    """Factors by (layer, last part of the path)."""
    found = factors(spec, PLACES, 4)
    return {(p.layer, p.path.rpartition(".")[2]): found[p.path] for p in PLACES}


@pytest.mark.parametrize("value", [2, 2.0, "2", "2.0", "double", [{"factor": 2}], {"factor": 2}])
def test_ways_to_write_a_factor(value):
    spec = read(value)
    assert spec.rules == uniform(2).rules
    assert spec.label == "×2"


def test_nothing_is_nothing():
    assert read(None) is None


def test_presets():
    early, late = of(PRESETS["early_only"]), of(PRESETS["late_only"])
    assert {k for k, f in early.items() if f} == {(i, n) for i, n in early if i in (0, 1)}
    assert {k for k, f in late.items() if f} == {(i, n) for i, n in late if i in (2, 3)}
    assert {n for (_, n), f in of(PRESETS["attention_only"]).items() if f} == {"o_proj"}
    assert {n for (_, n), f in of(PRESETS["mlp_only"]).items() if f} == {"down_proj"}
    assert set(of(PRESETS["reversed"]).values()) == {-1}
    assert [PRESETS[n].label for n in ("half", "reversed", "late_only")] == ["×0.5", "×-1", "×late_only"]


def test_the_last_matching_rule_wins():
    found = of(read([{"modules": "mlp", "factor": 3}, {"layers": "1-2", "factor": 0}, {"layers": 2, "factor": -1}]))
    assert found[0, "down_proj"] == found[3, "down_proj"] == 3
    assert found[0, "o_proj"] == found[None, "lm_head"] == 1
    assert {f for (layer, _), f in found.items() if layer == 1} == {0}
    assert {f for (layer, _), f in found.items() if layer == 2} == {-1}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", [0, 1, 2, 3]), (2, [2]), ("2", [2]), ("1-3", [1, 2, 3]), ([1, 3], [1, 2, 3]), ([0, 1], [0, 1]),
        ([0.0, 1.0], [0, 1, 2, 3]), ([0, 0.5], [0, 1]), ("0.5-1", [2, 3]), ([0.3, 0.8], [2, 3]), ([0.25, 0.5], [1]),
    ],
)  # fmt: skip
def test_layers(layers, expected):
    rule = AmplificationRule(layers=layers, factor=2)
    assert [i for i in range(4) if rule.matches(Place("x", i, "mlp"), 4)] == expected
    assert rule.matches(Place("lm_head", None, "other"), 4) == (layers == "all")


def test_thirds_meet_without_overlap():
    for n in (1, 2, 7, 30, 62):
        blocks = [b for i in range(3) for b in AmplificationRule(layers=[i / 3, (i + 1) / 3], factor=1).blocks(n)]
        assert blocks == list(range(n))


def test_names_end_at_a_dot():
    place = Place("model.layers.0.self_attn.o_proj", 0, "attention")
    names = {"o_proj": True, "self_attn.o_proj": True, "attention": True, "proj": False, "mlp": False}
    assert {n: AmplificationRule(modules=n, factor=1).matches(place, 1) for n in names} == names


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    path.write_text(json.dumps([{"layers": [0.5, 1.0], "modules": ["mlp", "o_proj"], "factor": 1.5}]))
    spec = read(str(path))
    assert spec.rules == (AmplificationRule(layers=[0.5, 1.0], modules=("mlp", "o_proj"), factor=1.5),)
    assert spec.label == "×mine"
    path.write_text(json.dumps({"name": "yours", "rules": [{"layers": "0-1", "factor": 1.5}]}))
    assert read(str(path)).label == "×yours"


def test_settings_survive_json():
    spec = read([{"layers": [0.5, 1.0], "modules": "mlp", "factor": 1.5}])
    again = AmplificationSpec.model_validate_json(spec.model_dump_json())
    assert again == spec == read(spec.model_dump(mode="json"))
    assert spec.label == "×1 rules"


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("doubel", ["organism.amplification='doubel'", "did you mean double?"]),
        (True, ["organism.amplification=True", "a number, a preset"]),
        ("nan", ["organism.amplification.rules.0.factor", "finite"]),
        (float("inf"), ["organism.amplification.rules.0.factor", "finite"]),
        ("no/such/file.yaml", ["no/such/file.yaml", "cannot be read"]),
        ([], ["organism.amplification.rules"]),
        ([{"layers": "1"}], ["organism.amplification.rules.0.factor is required"]),
        ([{"facto": 1}], ["organism.amplification.rules.0.fac"]),
        ([{"factor": 1, "layers": "late"}], ["rules.0.layers", "'late'", "blocks such as 10-20"]),
        ([{"factor": 1, "layers": [3, 1]}], ["rules.0.layers", "from the smaller to the larger"]),
        ([{"factor": 1, "layers": [0.5, 1.5]}], ["rules.0.layers", "from 0 to 1"]),
        ([{"factor": 1, "layers": -1}], ["rules.0.layers", "-1"]),
        ([{"factor": 1, "modules": "o_proj$"}], ["rules.0.modules", "o_proj$"]),
        ([{"factor": 1, "modules": []}], ["rules.0.modules"]),
    ],
)
def test_what_cannot_be_read_is_one_sentence(value, parts):
    with pytest.raises(UserError) as caught:
        read(value)
    for part in parts:
        assert part in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize("text", ["- [1, 2", "just words", "rules: 3"])
def test_a_file_that_holds_no_rules_is_one_sentence(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=r"amplification"):
        read(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"layers": "2-9"}, r"Rule 1 of organism\.amplification names layers 2-9 and the model has 4: 0 to 3\."),
        ({"modules": "o_prj"}, r"names modules 'o_prj', .* did you mean o_proj"),
        ({"layers": [0.1, 0.2]}, r"layers 0\.1-0\.2, which hold none of the model's 4"),
        ({"layers": "1", "modules": "lm_head"}, r"matches no changed module: lm_head in layers 1; finetuning changed"),
    ],
)
def test_a_rule_that_speaks_of_nothing_is_refused(rule, message):
    with pytest.raises(UserError, match=message):
        factors(read([{**rule, "factor": 2}]), PLACES, 4)
