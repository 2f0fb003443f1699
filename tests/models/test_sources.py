"""Sources on this disk: what is told apart, hashed and refused, each fault in one sentence."""

import json
import shutil
from dataclasses import FrozenInstanceError

import pytest
from safetensors.torch import load_file, save_file

from diffing.core.errors import UserError
from diffing.core.specs import ModelSpec
from diffing.models import sources
from diffing.models.folders import wanted_files
from diffing.models.merged_folder import merged_model
from diffing.models.sources import ResolvedSource, resolve
from diffing.models.tiny import save_adapter, save_model, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model (`model`) and an adapter (`adapter`); tests that change files copy them."""
    root = tmp_path_factory.mktemp("sources")
    base = tiny_model()
    save_model(root / "model", base, tiny_tokenizer())
    save_adapter(root / "adapter", base)
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DIFFING_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def model(made, tmp_path):
    return shutil.copytree(made / "model", tmp_path / "model")


@pytest.fixture
def adapter(made, tmp_path):
    return shutil.copytree(made / "adapter", tmp_path / "adapter")


def refused(folder, match, **options):
    """The folder is refused in one sentence that matches and ends like one."""
    with pytest.raises(UserError, match=match) as caught:
        resolve(str(folder), **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))


def edit_config(folder, **values):
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}), encoding="utf-8")


def shard(folder):
    """Split `model.safetensors` into two files with an index, as transformers writes large models."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, keys in parts.items():
        save_file({k: weights[k] for k in keys}, folder / file, metadata={"format": "pt"})
    placed = {k: file for file, keys in parts.items() for k in keys}
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "model.safetensors").unlink()


def test_a_folder_is_a_source(model, adapter):
    found = resolve(str(model))
    assert (found.folder, found.id, found.origin, found.revision) == (model, str(model), "local", None)
    assert resolve(str(adapter)).origin == "local"
    assert resolve(str(adapter), what="adapter").content_hash == resolve(str(adapter)).content_hash
    with pytest.raises(FrozenInstanceError):
        found.id = "other"


def test_a_relative_path_and_home(model, monkeypatch):
    monkeypatch.chdir(model.parent)
    assert resolve("model").folder.samefile(model)
    assert resolve("./model/").folder.samefile(model)
    monkeypatch.setenv("HOME", str(model.parent))
    assert resolve("~/model").folder.samefile(model)


def test_the_hash_is_of_what_is_read(made, model):
    first = resolve(str(made / "model")).content_hash
    for name in ("README.md", "training_args.bin", "generation_config.json", "trainer_state.json", "old.safetensors"):
        (model / name).write_text("{}", encoding="utf-8")
    assert resolve(str(model)).content_hash == first
    edit_config(model, rms_norm_eps=1e-3)
    edited = resolve(str(model)).content_hash
    assert edited != first
    weights = load_file(model / "model.safetensors")
    save_file({k: v + 1e-3 for k, v in weights.items()}, model / "model.safetensors", metadata={"format": "pt"})
    assert resolve(str(model)).content_hash not in (first, edited)


def test_a_tokenizer_is_hashed_by_its_own_files(made, model):
    first = resolve(str(made / "model"), what="tokenizer").content_hash
    (model / "model.safetensors").unlink()
    assert resolve(str(model), what="tokenizer").content_hash == first


def test_wanted_files_are_the_standard_ones():
    names = [
        "config.json",
        "model.safetensors",
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "pytorch_model.bin",
    ]
    names += ["tokenizer.json", "chat_template.jinja", "modeling.py", "README.md", "generation_config.json"]
    wanted = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert wanted_files(names, "model", False) == wanted
    assert wanted_files(names, "model", True) == sorted([*wanted, "modeling.py"])
    assert wanted_files(names, "tokenizer", False) == ["chat_template.jinja", "config.json", "tokenizer.json"]
    assert wanted_files([*names, "adapter_config.json", "adapter_model.safetensors"], "model", False) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
    ]


def test_subfolder(made):
    assert resolve(str(made), subfolder="model").folder == made / "model"
    refused(made, r"is no model: .* set subfolder to one of adapter, model\.")
    refused(made, "There is no folder .*nothing; check the path and subfolder", subfolder="nothing")


def test_shards(model):
    shard(model)
    assert resolve(str(model)).origin == "local"
    (model / "model-00002-of-00002.safetensors").unlink()
    refused(model, "lacks 1 of its 2 weight files .*model-00002-of-00002")
    (model / "model.safetensors.index.json").write_text('{"weight_map": {}}', encoding="utf-8")
    refused(model, "index.json is corrupt")


def test_missing_folder(tmp_path):
    refused(tmp_path / "nothing", "There is no folder .*nothing; check the path")


def test_folder_that_is_no_model(tmp_path):
    refused(tmp_path, "is no model: it holds neither config.json nor adapter_config.json; check the path")


def test_a_file_that_is_no_gguf(model):
    refused(model / "model.safetensors", "is a file; name the folder")


@pytest.mark.parametrize("spec_id", ["a/b/c", "two words", "org/na me", "", "C:\\model", "-x/y"])
def test_neither_path_nor_id(spec_id):
    refused(spec_id, "is neither an existing path nor a hub id")


def test_a_file_that_is_not_there():
    refused("models/tiny.gguf", "There is no file models/tiny.gguf")


def test_no_weights(model, adapter):
    (model / "model.safetensors").unlink()
    refused(model, "has no model.safetensors; copy it there")
    (model / "pytorch_model.bin").touch()
    (model / "training_args.bin").touch()
    refused(model, "only pytorch_model.bin, which is never loaded .*convert it")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused(adapter, "has no adapter_model.safetensors, only adapter_model.bin")


@pytest.mark.parametrize("which", ["model", "adapter"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "garbage", "empty", "header", "list"])
def test_damaged_weights(request, which, damage):
    folder = request.getfixturevalue(which)
    path = next(folder.glob("*.safetensors"))
    whole = path.read_bytes()
    content = {
        "truncated": whole[:-100],
        "longer": whole + b"x",
        "garbage": b"\xff" * 4096,
        "empty": b"",
        "header": whole[:8] + b"x" * 100 + whole[108:],
        "list": (2).to_bytes(8, "little") + b"[]",
    }[damage]
    path.write_bytes(content)
    refused(folder, rf"{path.name} is (damaged|no safetensors file) \(.* bytes.*fetch or write it again")


def test_damaged_config(model):
    for content in ("{", "[]"):
        (model / "config.json").write_text(content, encoding="utf-8")
        refused(model, "config.json is corrupt")


def test_unknown_architecture(model):
    edit_config(model, model_type="lama")
    refused(model, r"model_type lama .*transformers .* does not know .*llama")
    edit_config(model, model_type=None)
    refused(model, "no model_type in config.json")


def test_custom_code_needs_consent(model):
    own = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    edit_config(model, model_type="lama", auto_map=own, architectures=["XForCausalLM"])
    refused(model, "own model code .*model.trust_remote_code=true")
    assert resolve(str(model), trust_remote_code=True).folder == model
    edit_config(model, model_type="llama")
    refused(model, r"own model code .*model\.trust_remote_code=true")


def test_code_that_transformers_has_taken_in_needs_no_consent(model):
    edit_config(model, auto_map={"AutoModelForCausalLM": "modeling_x.LlamaForCausalLM"})
    assert resolve(str(model)).folder == model


def test_code_counts_in_the_hash_when_it_runs(model):
    before = [resolve(str(model), trust_remote_code=trust).content_hash for trust in (False, True)]
    (model / "modeling_x.py").write_text("x = 1", encoding="utf-8")
    after = [resolve(str(model), trust_remote_code=trust).content_hash for trust in (False, True)]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


def test_tokenizer_folder_without_tokenizer(adapter):
    refused(adapter, r"holds no tokenizer .*model\.tokenizer_id", what="tokenizer")


def test_embedded_names_are_told_apart(model, adapter, monkeypatch):
    monkeypatch.setattr(sources, "embedded_names", lambda: (("small",), ("loud",)))
    monkeypatch.setattr(sources, "embedded_model", lambda name: model)
    monkeypatch.setattr(sources, "embedded_organism", lambda name: adapter)
    (model / "card.json").write_text('{"licence": "MIT"}', encoding="utf-8")
    found = resolve("embedded:small")
    assert (found.folder, found.origin, found.card) == (model, "embedded", {"licence": "MIT"})
    assert resolve("embedded:loud").folder == adapter
    assert resolve("embedded:loud", what="adapter").folder == adapter
    refused("embedded:lod", r"Nothing named embedded:lod is embedded: did you mean loud")
    refused("embedded:small", "choose from loud", what="adapter")
    refused("embedded:loud", "choose from small", what="tokenizer")


def test_a_damaged_conversion_says_what_to_delete(model, monkeypatch):
    monkeypatch.setattr(sources, "embedded_names", lambda: (("small",), ()))
    monkeypatch.setattr(sources, "embedded_model", lambda name: model)
    (model / "model.safetensors").write_bytes(b"half")
    refused("embedded:small", r"embedded model small.*delete .*model and run again")


def test_subfolders_of_one_hub_commit_are_told_apart(model):
    first, second = (ResolvedSource(model, "org/many", "c0ffee", s, "org/many@c0ffee", "hub") for s in ("a", "b"))
    assert first.content_hash == second.content_hash
    assert first.identity != second.identity
    here, moved = (ResolvedSource(model, name, None, None, "same bytes", "local") for name in ("./x", "./y"))
    assert here.identity == moved.identity


def test_merged_models_of_two_subfolders_are_two(made, model, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFING_CACHE", str(tmp_path / "cache"))
    base = ResolvedSource(model, "base", None, None, "base bytes", "local")
    places = []
    for subfolder in ("a", "b"):
        adapter = ResolvedSource(made / "adapter", "org/many", "c0ffee", subfolder, "org/many@c0ffee", "hub")
        places.append(merged_model(ModelSpec(name="tiny", device_map="cpu"), base, adapter).folder)
    assert places[0] != places[1]
