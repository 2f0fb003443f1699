"""Modules and tokenizers from folders: exact weights, options, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizer

from diffing.core.errors import UserError
from diffing.core.specs import ModelSpec
from diffing.models import loading
from diffing.models.loading import load_module, load_tokenizer
from diffing.models.sources import ResolvedSource, resolve
from diffing.models.tiny import ARCHITECTURES, save_adapter, save_model, tiny_model, tiny_tokenizer

IDS = torch.arange(20, 30)[None]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DIFFING_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def model(tmp_path):
    return save_model(tmp_path / "model", tiny_model(), tiny_tokenizer())


def spec_of(folder, **values) -> ModelSpec:
    return ModelSpec(name="tiny", id=str(folder), **{"device_map": "cpu", **values})


def load(folder, dtype="float32", **values):
    spec = spec_of(folder, **values)
    return load_module(spec, resolve(str(folder), trust_remote_code=spec.trust_remote_code), dtype)


def refused(call, match):
    with pytest.raises(UserError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def edit_json(path, **values):
    content = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")


def edit_weights(folder, change):
    """Rewrite `model.safetensors` after `change` has altered its tensors in place."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_those_of_the_files(tmp_path, architecture):
    made = tiny_model(architecture, seed=3)
    found = load(save_model(tmp_path / architecture, made, tiny_tokenizer()))
    assert found.state_dict().keys() == made.state_dict().keys()
    assert all(torch.equal(v, made.state_dict()[k]) for k, v in found.state_dict().items())
    assert torch.equal(found(IDS).logits, made(IDS).logits)
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())


def test_dtype_and_attention(model):
    assert {p.dtype for p in load(model, "bfloat16").parameters()} == {torch.bfloat16}
    assert load(model, attn_implementation="eager").config._attn_implementation == "eager"
    refused(lambda: load(model, attn_implementation="none_such"), r"cannot be loaded: .*attn_implementation=none_such")


def test_tied_heads_are_complete(tmp_path):
    folder = save_model(tmp_path / "tied", tiny_model(tie_word_embeddings=True), tiny_tokenizer())
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    module = load(folder)
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight


def test_missing_tensors_are_never_made_up(model):
    edit_weights(model, lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    refused(lambda: load(model), r"1 tensors are missing .*such as model\.layers\.1\.mlp\.up_proj\.weight.*random")


def test_a_headless_model_is_refused(model):
    edit_json(model / "config.json", tie_word_embeddings=False)
    edit_weights(model, lambda w: w.pop("lm_head.weight", None))
    refused(lambda: load(model), r"tensors are missing .*such as lm_head\.weight")


def test_shapes_that_do_not_fit(model):
    edit_json(model / "config.json", intermediate_size=64)
    refused(lambda: load(model), r"have other shapes than its config\.json says .*\(.*\) instead of \(.*\)")


def test_tensors_without_a_place_are_named(model, capsys):
    edit_json(model / "config.json", num_hidden_layers=2)
    load(model)
    assert "tensors of model" in capsys.readouterr().err


def test_settings_that_make_no_sense(model):
    edit_json(model / "config.json", hidden_size="wide")
    refused(lambda: load(model), "cannot be loaded: ")


def test_no_language_model(model):
    edit_json(model / "config.json", model_type="vit", architectures=["ViTForImageClassification"])
    refused(lambda: load(model), "is of type vit, which is no causal language model")


def test_a_vision_language_model_is_loaded_whole(tmp_path):
    from transformers import AutoModelForImageTextToText, LlavaConfig

    text = tiny_model().config
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8, "projection_dim": 16}
    config = LlavaConfig(vision_config=vision, text_config=text.to_dict(), image_token_index=5)
    made = AutoModelForImageTextToText.from_config(config).eval()
    found = load(save_model(tmp_path / "vlm", made))
    assert type(found) is type(made)
    assert torch.equal(found(input_ids=IDS).logits, made(input_ids=IDS).logits)


def test_an_adapter_is_no_base(model, tmp_path):
    folder = save_adapter(tmp_path / "adapter", tiny_model())
    refused(lambda: load(folder), r"holds an adapter .*model\.id .*organism\.finetuned")
    refused(lambda: load_tokenizer(spec_of(folder), resolve(str(folder))), "holds an adapter")
    shutil.copytree(folder, model, dirs_exist_ok=True)
    refused(lambda: load(model), "holds an adapter")


def test_devices(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load(model, device_map="auto").device == torch.device("cpu")
    refused(lambda: load(model, device_map="cuda:1"), "device_map=cuda:1 needs a CUDA device")
    refused(lambda: load(model, device_map="nowhere"), r"cannot be loaded: .*check model\.device_map=nowhere")


def test_quantisation_needs_its_extra_and_a_device(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    refused(lambda: load(model, quantization="4bit"), r"needs bitsandbytes.*pip install 'diffing\[quantization\]'")
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: name)
    refused(lambda: load(model, quantization="8bit"), "quantization=8bit needs a CUDA device")


def test_memory_that_does_not_suffice(model, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", full)
    refused(lambda: load(model), r"does not fit into the memory of cpu .*model\.dtype=bfloat16")


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_custom_code_runs_only_when_trusted(model, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    own = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnForCausalLM"}
    edit_json(model / "config.json", model_type="own", auto_map=own, architectures=["OwnForCausalLM"])
    (model / "own_code.py").write_text(CODE, encoding="utf-8")
    refused(lambda: load(model), r"own model code .*trust_remote_code=true")
    found = load(model, trust_remote_code=True)
    assert type(found).__name__ == "OwnForCausalLM"
    assert torch.equal(found(IDS).logits, tiny_model()(IDS).logits)


def test_nothing_reaches_for_the_network(model, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    load(model)
    load_tokenizer(spec_of(model), resolve(str(model)))


def test_tokenizer_beside_the_model_or_named(model, tmp_path):
    source = resolve(str(model))
    found = load_tokenizer(spec_of(model), source)
    assert found("the thing")["input_ids"] == tiny_tokenizer()("the thing")["input_ids"]
    assert found.is_fast
    assert found.name_or_path == str(model)
    other = tmp_path / "other"
    tiny_tokenizer(("<extra>",)).save_pretrained(other)
    assert len(load_tokenizer(spec_of(model, tokenizer_id=str(other)), source)) == len(found) + 1
    refused(lambda: load_tokenizer(spec_of(model, tokenizer_id=str(tmp_path)), source), "holds no tokenizer")


def test_no_tokenizer(model):
    (model / "tokenizer.json").unlink()
    refused(lambda: load_tokenizer(spec_of(model), resolve(str(model))), r"holds no tokenizer .*model\.tokenizer_id")


@pytest.mark.parametrize("damage", ["{", "{}", '{"model": {"type": "BPE"}}', "newer", "half"])
def test_a_damaged_tokenizer(model, damage):
    whole = (model / "tokenizer.json").read_text(encoding="utf-8")
    content = {"newer": whole.replace('"BPE"', '"Newer"'), "half": whole[: len(whole) // 2]}.get(damage, damage)
    (model / "tokenizer.json").write_text(content, encoding="utf-8")
    refused(lambda: load_tokenizer(spec_of(model), resolve(str(model))), "tokenizer of .* cannot be loaded: ")


def test_a_tokenizer_without_tokens(model):
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}', encoding="utf-8")
    (model / "vocab.json").write_text("{}", encoding="utf-8")
    (model / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    refused(lambda: load_tokenizer(spec_of(model), resolve(str(model))), "turns text into no tokens|cannot be loaded")


def test_a_slow_tokenizer_is_refused(model, monkeypatch):
    class Slow(PreTrainedTokenizer):
        def __init__(self):
            pass

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: Slow())
    refused(lambda: load_tokenizer(spec_of(model), resolve(str(model))), r"Slow\) is no fast one .*tokenizer\.json")


def test_a_source_keeps_its_name_in_messages(model):
    source = ResolvedSource(model, "org/name", "abc", None, "org/name@abc", "hub")
    edit_weights(model, lambda w: w.pop("model.norm.weight"))
    refused(lambda: load_module(spec_of(model), source, "float32"), "of model org/name")
