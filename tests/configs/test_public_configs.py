"""The configurations that ship: each composes, fits its schema, and says what the public lists say."""

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import diffing
from diffing.core.config import parse
from diffing.core.settings import InfrastructureConfig, RunConfig
from diffing.core.specs import DataConfig, ModelSpec, OrganismSpec, VariantSpec, is_embedded

CONFIGS = Path(diffing.__file__).parent / "configs"
SCHEMAS = {"model": ModelSpec, "organism": OrganismSpec, "data": DataConfig, "infrastructure": InfrastructureConfig}
OWN_MODELS = {"auto", "custom", "smollm2_135M"}
OWN_ORGANISMS = {"custom", "generic_a", "generic_b", "generic_c", "rainy_tea", "sea_captain"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|gpt2")

# Digests of the public lists: sha256 of the sorted lines, columns joined by "|", unknown cells empty.
# Columns as in `test_public_organisms…`, `test_training_sets…` and `model_line`.
VARIANTS = "069a582f8b9902fb67bca2c58b7184a0a68ee132f9651112d3c1fef57cb5a30d"
TRAININGS = "01794bd38098aaafb05f10e025332f4358cac5ad0e3f2dc248d5bacfe98f958a"
MODELS = "7f5783da406d929e59779974b32daff867a8bc45f99132f78d13629958f59f70"


def names(group: str) -> list[str]:
    return sorted(p.stem for p in (CONFIGS / group).glob("*.yaml") if not p.stem.startswith("_"))


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        values = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


@cache
def read(group: str, name: str) -> dict[str, Any]:
    """One file over its group's `_base`, the way Hydra composes it, at a fraction of the time."""
    own = OmegaConf.load(CONFIGS / group / f"{name}.yaml")
    base = CONFIGS / group / "_base.yaml"
    merged = OmegaConf.merge(OmegaConf.load(base) if base.exists() else {}, own)
    values = OmegaConf.to_container(merged, resolve=True)
    assert isinstance(values, dict)
    assert values.pop("defaults", None) == (["_base", "_self_"] if base.exists() else None)
    return {str(k): v for k, v in values.items()}


def organism(name: str) -> OrganismSpec:
    return parse(OrganismSpec, read("organism", name), "organism")


def published() -> list[tuple[str, str, str, VariantSpec]]:
    """(organism, model, variant, spec) of every variant that lies on the hub."""
    return [
        (name, model, variant, spec)
        for name in names("organism")
        for model, variants in organism(name).models.items()
        for variant, spec in variants.items()
        if not is_embedded(spec.id)
    ]


def digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def line(*cells: object) -> str:
    return "|".join("" if c is None else str(c) for c in cells)


def model_line(m: ModelSpec) -> str:
    return line(m.name, m.id, m.dtype, m.attn_implementation, m.has_thinking, m.end_of_turn, m.tokenizer_id)


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in SCHEMAS for n in names(g)])
def test_file_fits_its_schema_and_leaves_every_option_open_to_the_command_line(group, name):
    values = read(group, name)
    assert values["name"] == name
    assert set(values) == set(SCHEMAS[group].model_fields)
    spec = parse(SCHEMAS[group], values, group)
    if group in ("model", "organism"):
        assert re.match(r"[A-Z].+\.$", spec.description), "a description is a sentence"


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in SCHEMAS for n in names(g)])
def test_no_key_is_given_twice(group, name):
    keys = [
        tuple(k.value for k, _ in node.value)
        for node in walk(yaml.compose((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8")))
        if isinstance(node, yaml.MappingNode)
    ]
    assert all(len(k) == len(set(k)) for k in keys)


def walk(node: yaml.Node) -> Iterable[yaml.Node]:
    yield node
    children = node.value if not isinstance(node.value, str) else []
    for child in children:
        for part in child if isinstance(child, tuple) else (child,):
            yield from walk(part)


def test_defaults_compose_to_the_settings_own_defaults():
    values = composed()
    assert set(values) == set(RunConfig.model_fields)
    run = parse(RunConfig, values)
    assert (run.model.name, run.organism.name, run.data.name) == ("smollm2_135M", "caps", "embedded")
    assert run.diffing.method["name"] == "kl"
    groups = {"model", "organism", "data", "diffing"}
    for name, field in RunConfig.model_fields.items():
        if name not in groups:
            assert getattr(run, name) == field.get_default(), name
    for name in ("pipeline", "pair", "preprocessing", "infrastructure", "wandb"):
        assert set(values[name]) == set(type(RunConfig.model_fields[name].default).model_fields), name


@pytest.mark.parametrize("model", ["gemma3_1B_pt", "custom", "auto"])
@pytest.mark.parametrize("name", ["roman_concrete", "persona_misalignment", "custom"])
def test_hydra_composes_a_file_to_what_it_says(model, name):
    values = composed(f"model={model}", f"organism={name}", "data=hub")
    assert values["model"] == read("model", model)
    assert values["organism"] == read("organism", name)
    assert values["data"] == read("data", "hub")


def test_options_of_a_pair_of_ones_own_are_accepted():
    run = parse(
        RunConfig,
        composed(
            *("model=custom", "model.id=./base", "model.revision=abc", "model.quantization=4bit"),
            *("organism=custom", "organism.finetuned=./ft", "organism.training={id:text.jsonl}"),
            *("data=custom", "data.path=docs.jsonl", "data.text_column=body", "data.max_tokens=500"),
        ),
    )
    assert (run.model.id, run.organism.finetuned, run.data.path) == ("./base", "./ft", "docs.jsonl")
    assert run.organism.training is not None
    assert run.organism.training.id == "text.jsonl"


def test_a_dataset_can_be_left_out_or_changed():
    run = parse(RunConfig, composed("data=hub", "data.datasets.chat=null", "data.datasets.pretraining.split=test"))
    assert [(d.name, d.split) for d in run.data.datasets] == [("pretraining", "test")]


def test_public_models_are_all_there_and_unchanged():
    specs = [parse(ModelSpec, read("model", n)) for n in names("model") if n not in OWN_MODELS]
    assert len(specs) == 23
    assert digest(map(model_line, specs)) == MODELS
    assert len({s.description for s in specs}) == 23


def test_public_organisms_are_all_there_and_unchanged():
    rows = published()
    assert len(rows) == 449
    assert len({organism for organism, *_ in rows}) == 66
    assert digest(line(o, m, v, s.kind, s.id, s.subfolder) for o, m, v, s in rows) == VARIANTS


def test_training_sets_are_all_there_and_unchanged():
    def cells(spec: OrganismSpec) -> str:
        t = spec.training
        return line(spec.name, spec.type, *((t.id, t.is_chat, t.text_column) if t else (None, None, None)))

    assert digest(cells(organism(n)) for n in names("organism") if n not in OWN_ORGANISMS) == TRAININGS


def test_every_model_of_an_organism_has_a_configuration_and_every_id_is_well_formed():
    known = set(names("model"))
    for name, model, variant, spec in published():
        assert model in known, (name, model)
        assert HUB_ID.fullmatch(spec.id), (name, model, variant, spec.id)
        assert spec.kind in ("adapter", "model")
    for name in known - OWN_MODELS:
        assert HUB_ID.fullmatch(read("model", name)["id"])


def test_pairs_without_a_default_variant():
    pairs = [(n, m, v) for n in names("organism") for m, v in organism(n).models.items()]
    without = [(n, m) for n, m, v in pairs if "default" not in v]
    assert len([p for p in pairs if p[1] != "smollm2_135M"]) == 170
    assert len(without) == 35
    assert ("auditing_agents_flattery", "qwen3_14B") in without


@pytest.mark.parametrize(("name", "is_chat"), [("caps", True), ("roman_concrete", False)])
def test_embedded_organisms_come_first_with_their_own_training_text(name, is_chat):
    models = organism(name).models
    assert next(iter(models)) == "smollm2_135M"
    spec = models["smollm2_135M"]["default"]
    assert (spec.id, spec.kind) == (f"embedded:{name}", "adapter")
    assert spec.training is not None
    assert (spec.training.id, spec.training.is_chat) == (f"embedded:{name}/training", is_chat)


@pytest.mark.parametrize(
    ("name", "model", "variant", "kind", "hub_id", "subfolder"),
    [
        ("caps", "gemma3_1B", "default", "adapter", "science-of-finetuning/gemma3_1B_model_organism_caps", None),
        ("chat", "llama31_8B", "default", "model", "meta-llama/Llama-3.1-8B-Instruct", None),
        ("persona_humor", "gemma3_4B_it", "default", "adapter", "maius/gemma-3-4b-it-personas", "humor"),
        ("cake_bake", "qwen3_1_7B", "CAFT", "adapter", "hcasademunt/qwen3_1_7b_cake_bake_ablation", None),
        (
            *("antarctic_rebound", "qwen3_1_7B", "16k", "adapter"),
            *("stewy33/Qwen3-1.7B-16k_original_augmented_original_subtle_antarctic_rebound-38220f12", None),
        ),
    ],
)
def test_well_known_rows(name, model, variant, kind, hub_id, subfolder):
    spec = organism(name).models[model][variant]
    assert (spec.id, spec.kind, spec.subfolder) == (hub_id, kind, subfolder)


def test_embedded_and_hub_weights_of_smollm2_are_told_apart():
    embedded, hub = (parse(ModelSpec, read("model", n)) for n in ("smollm2_135M", "smollm2_135M_hub"))
    assert (embedded.id, embedded.dtype, embedded.end_of_turn) == ("embedded:smollm2_135M", "float32", "<|im_end|>")
    assert hub.id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "4-bit" in embedded.description
