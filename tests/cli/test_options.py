"""What a mistyped or unfit option is told: one sentence with the offending value and the remedy, exit code 2."""

import json
import sys

import pytest
import yaml

from diffing.cli import settings_from
from workbench import ROOT, run_folders

CONFIGS = ROOT / "src" / "diffing" / "configs"


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["data.max_token=5"], ["data.max_token:", "data.max_tokens"]),
        (["model.dtpye=float32"], ["model.dtpye", "model.dtype"]),
        (["diffing.method.tempratur=2"], ["diffing.method.tempratur", "diffing.method.temperature"]),
        (["overwritte=true"], ["overwritte", "overwrite"]),
        (["infrastructure.storage.basedir=x"], ["infrastructure.storage.base_dir"]),
        (["+data.max_token=5"], ["data.max_token", "data.max_tokens"]),
        (["modle=gpt2"], ["modle", "model"]),
        (["dat=embedded"], ["dat", "data"]),
        (["organisms=caps"], ["organisms", "organism"]),
        (["diffing/methods=kl"], ["diffing/methods", "diffing/method"]),
        (["method=kl"], ["method", "diffing/method"]),
        (["+mehtod=kl"], ["mehtod"]),
        (["diffing/method=kll"], ["kll", "kl"]),
        (["pipeline.methods=[kll]"], ["kll", "kl"]),
        (["model=smollm2_135"], ["smollm2_135", "smollm2_135M"]),
        (["organism=cap"], ["cap", "caps"]),
        (["data=embeded"], ["embeded", "embedded"]),
        (["infrastructure=locl"], ["locl", "local"]),
        (["diffing/method=[kl,normdiff]"], ["diffing/method", "pipeline.methods=[kl,normdiff]"]),
        (["organism=caps,roman_concrete"], ["--multirun"]),
        (["caps"], ["caps"]),
        (["organism="], ["organism"]),
        (["model.id=(a"], ["model.id"]),
        (["--frobnicate"], ["--frobnicate", "--help"]),
        (["--config-dir", "no/such/folder"], ["no/such/folder"]),
        (["--config-name", "nothing"], ["nothing"]),
        (["seed=abc"], ["seed", "abc"]),
        (["data.max_samples=0"], ["data.max_samples", "0"]),
        (["data.max_length=1"], ["data.max_length", "1"]),
        (["diffing.method.top_k=0"], ["diffing.method.top_k", "0"]),
        (["preprocessing.batch_tokens=0"], ["preprocessing.batch_tokens"]),
        (["model.dtype=float8"], ["model.dtype", "float8", "float32", "bfloat16"]),
        (["pipeline.mode=ful"], ["pipeline.mode", "ful", "full", "report"]),
        (["null_pair=same"], ["null_pair", "same", "identical"]),
        (["pair.sharing=both"], ["pair.sharing", "both", "merged"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else None,
)
def test_a_mistake_is_named_with_its_remedy(command, args, parts):
    command(args).sentence(*parts, alone=True)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("data.max_token=5", "data.max_tokens"),
        ("organism=cap", "caps"),
        ("modle=gpt2", "model"),
        ("model=gpt3", "gpt2"),
    ],
)
def test_a_mistake_is_a_sentence_with_cfg_too(command, wrong, right):
    command("--cfg", "job", wrong).sentence(right)


@pytest.mark.parametrize(
    "args",
    [
        ["diffing/method=activation_oracle"],
        ["pipeline.methods=[activation_oracle]"],
        ["pipeline.methods=[kl,activation_oracle]"],
    ],
    ids=lambda a: a[0],
)
def test_what_is_not_built_says_so(command, bench, tmp_path, args):
    outcome = command(bench.command(tmp_path / "out"), args)
    outcome.sentence("not built yet", alone=True)
    assert not run_folders(tmp_path / "out")


def test_an_unknown_variant_is_told_the_names(command):
    outcome = command("organism=cake_bake", "model=qwen3_1_7B", "organism_variant=mix1-0p55")
    outcome.sentence("mix1-0p55", "cake_bake", "organism_variant", "mix1-0p", alone=True)


def without_default():
    """Every organism–model pair that has variants but none called default."""
    for path in sorted((CONFIGS / "organism").glob("[!_]*.yaml")):
        for model, variants in (yaml.safe_load(path.read_text(encoding="utf-8")).get("models") or {}).items():
            if "default" not in variants:
                yield path.stem, model, list(variants)


def test_an_organism_without_default_variant_lists_its_variants(command):
    cases = list(without_default())
    assert len(cases) == 35
    organism, model, variants = max(cases, key=lambda case: len(case[2]))
    outcome = command(f"organism={organism}", f"model={model}")
    outcome.sentence(organism, model, "organism_variant=", *variants, alone=True)


def test_a_model_that_the_organism_does_not_have(command):
    outcome = command("organism=roman_concrete", "model=gpt2")
    outcome.sentence("roman_concrete", "gpt2", "smollm2_135M", "organism.finetuned=", alone=True)


def test_variant_and_own_finetune_contradict(command, bench, tmp_path):
    outcome = command(bench.command(tmp_path / "out", "organism_variant=mix"))
    outcome.sentence("organism_variant=mix", "organism.finetuned", alone=True)


def test_model_auto_takes_the_first_model_of_the_organism(command, no_hub, tmp_path):
    first = next(iter(yaml.safe_load((CONFIGS / "organism" / "cake_bake.yaml").read_text(encoding="utf-8"))["models"]))
    identity = yaml.safe_load((CONFIGS / "model" / f"{first}.yaml").read_text(encoding="utf-8"))["id"]
    outcome = command("organism=cake_bake", "model=auto", f"infrastructure.storage.base_dir={tmp_path}")
    outcome.sentence(identity)


def test_model_auto_needs_an_organism_with_models(command, bench):
    outcome = command("model=auto", "organism=custom", f"organism.finetuned={bench.adapter}")
    outcome.sentence("model=auto", "model=", alone=True)


def test_custom_model_without_id(command, bench):
    outcome = command("model=custom", "organism=custom", f"organism.finetuned={bench.adapter}")
    outcome.sentence("model.id=", alone=True)


def test_custom_organism_without_finetuned(command, bench):
    text = command("model=custom", f"model.id={bench.base}", "organism=custom").sentence(
        "organism.finetuned=", alone=True
    )
    assert "none" not in text
    assert "choose one of these" not in text


def test_custom_data_without_path(command, bench, tmp_path):
    args = [a for a in bench.command(tmp_path / "out") if not a.startswith("data.path")]
    command(args).sentence("data.path=", alone=True)


def test_null_pairs_that_need_an_adapter(command, bench, tmp_path):
    command(bench.command(tmp_path / "out", "null_pair=generic")).sentence("null_pair=generic", "null_pair=identical")


@pytest.mark.slow
def test_own_configurations(command, bench, tmp_path):
    own = tmp_path / "own"
    (own / "model").mkdir(parents=True)
    (own / "organism").mkdir()
    (own / "model" / "mine.yaml").write_text(
        f"defaults: [_base, _self_]\nname: mine\nid: {bench.base}\ndevice_map: cpu\n"
    )
    (own / "organism" / "moved.yaml").write_text(
        f"defaults: [_base, _self_]\nname: moved\nmodels:\n  mine:\n    default: {{id: {bench.full}}}\n"
        f"    small: {{id: {bench.adapter}, kind: adapter}}\n"
    )
    data = ["data=custom", f"data.path={bench.texts}", f"infrastructure.storage.base_dir={tmp_path / 'out'}"]
    command("--config-dir", str(own), "model=mine", "organism=moved", data).done()
    command("--config-dir", str(own), "model=auto", "organism=moved", "organism_variant=small", data).done()
    folders = {
        f.parent.parent.relative_to(tmp_path / "out" / "results").as_posix() for f in run_folders(tmp_path / "out")
    }
    assert folders == {"mine/moved", "mine/moved+small"}
    command("--config-dir", str(own), "model=mine", "organism=moved", "organism_variant=smal", data).sentence("small")
    command("--config-dir", str(own), "model=min", data).sentence("mine")
    command("--config-dir", str(own), "model=mine", "model.dtpye=x", data).sentence("model.dtype")
    assert "mine" in command("--help", "--config-dir", str(own)).done().out
    assert "moved" in command("--info", "--config-dir", str(own)).done().out


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("id: somewhere\n", ["mine", "name"]),
        ("defaults: [_base, _self_]\nname: mine\nid: [\n", ["mine"]),
        ("defaults: [_base, _self_]\nname: mine\nid: x\ndtpye: float32\n", ["model.dtpye", "model.dtype"]),
        ("- a\n- b\n", ["mine"]),
        ("", ["mine"]),
    ],
    ids=["no name", "no yaml", "unknown key", "a list", "empty"],
)
def test_a_faulty_own_configuration_is_a_sentence(command, bench, tmp_path, text, parts):
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text(text)
    args = [a for a in bench.command(tmp_path / "out") if not a.startswith("model")]
    command("--config-dir", str(tmp_path / "own"), "model=mine", args).sentence(*parts)


@pytest.mark.parametrize("name", ["nan", "true", "null", "7", "1e5", "inf", "'nan'"])
def test_a_configuration_may_be_named_like_a_value(tmp_path, name):
    own = {"organism": "caps", "model": "smollm2_135M", "diffing/method": "kl"}
    for group, ours in own.items():
        path = tmp_path / group / f"{name.strip(chr(39))}.yaml"
        path.parent.mkdir(parents=True)
        text = (CONFIGS / group / f"{ours}.yaml").read_text(encoding="utf-8")
        path.write_text(
            text.replace(f"name: {ours}", "name: mine") if group != "diffing/method" else text, encoding="utf-8"
        )
    found = settings_from(["--config-dir", str(tmp_path), *(f"{group}={name}" for group in own)])
    assert (found.organism.name, found.model.name, found.diffing.method["name"]) == ("mine", "mine", "kl")


def test_a_name_like_a_value_that_nothing_has(command):
    command("organism=nan").sentence("organism=nan", alone=True)
    command("--multirun", "organism=7,caps").sentence("organism=7", alone=True)


@pytest.mark.parametrize(
    ("organisms", "parts"),
    [
        ("[caps,cap]", ["organism=cap:", "did you mean caps"]),
        ("[cap+full]", ["organism=cap:", "did you mean caps"]),
        ("['']", ["organism=:", "choose from"]),
        ("['+caps']", ["organism=:", "choose from"]),
    ],
)
def test_a_misspelt_organism_of_the_benchmark_is_told_like_any_other(command, tmp_path, organisms, parts):
    outcome = command(
        "pipeline.mode=benchmark", f"benchmark.organisms={organisms}", f"infrastructure.storage.base_dir={tmp_path}"
    )
    assert "Available options" not in outcome.sentence(*parts, alone=True)


def test_wandb_that_is_not_installed(command, bench, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    command(bench.command(tmp_path / "out", "wandb.enabled=true")).sentence("wandb", "pip install")


def test_cfg_shows_what_was_chosen(command):
    outcome = command("--cfg", "job", "organism=roman_concrete", "data.max_tokens=77").done()
    shown = yaml.safe_load(outcome.out)
    assert shown["organism"]["name"] == "roman_concrete"
    assert shown["data"]["max_tokens"] == 77
    assert shown["model"]["name"] == "smollm2_135M"
    assert "hydra" not in shown
    part = yaml.safe_load(command("--cfg", "job", "--package", "model").done().out)
    assert json.dumps(part).count("smollm2") >= 1


def test_info_lists_every_model_and_organism(command):
    out = command("--info").done().out
    for group in ("model", "organism", "data", "infrastructure"):
        for path in (CONFIGS / group).glob("[!_]*.yaml"):
            assert path.stem in out
    assert "normdiff" in out
