"""Adapters: what does not fit is refused in a sentence, what fits is proven to have landed, merging equals toggling."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffing.core.errors import UserError
from diffing.models.adapters import WEIGHTS, attach, is_adapter
from diffing.models.merging import Toggle, delta_is_zero, merge
from diffing.models.tiny import ARCHITECTURES, save_adapter, tiny_model

IDS = torch.arange(20, 40).view(2, 10)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def rewrite(folder, change):
    """Apply `change` to the dict of the adapter's tensors."""
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / WEIGHTS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_and_toggled_agree_and_off_is_the_base(tmp_path, architecture):
    base = tiny_model(architecture)
    folder = save_adapter(tmp_path / "a", base)
    plain = logits(base)
    toggled = copy.deepcopy(base)
    toggle = Toggle(attach(toggled, folder, "a"))
    merged, error = merge(attach(copy.deepcopy(base), folder, "a"))
    on = logits(toggled)
    torch.testing.assert_close(logits(merged), on, atol=1e-4, rtol=1e-4)
    assert (on - plain).abs().max() > 1e-2
    assert error == 0.0
    with toggle.active(False):
        assert torch.equal(logits(toggled), plain)
        with toggle.active(True):
            assert torch.equal(logits(toggled), on)
        assert torch.equal(logits(toggled), plain)
    assert torch.equal(logits(toggled), on)
    assert not any(p.requires_grad for p in toggled.parameters())


def test_toggle_comes_back_after_an_error(tmp_path):
    base = tiny_model()
    toggle = Toggle(attach(base, save_adapter(tmp_path, base), "a"))
    with pytest.raises(RuntimeError, match="stop"), toggle.active(False):
        raise RuntimeError("stop")
    assert toggle.is_on


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_adapter_on_a_tied_head_moves_the_head_alone(tmp_path, architecture):
    base = tiny_model(architecture, tie_word_embeddings=True)
    folder = save_adapter(tmp_path, base, target_modules=("q_proj", "lm_head"))
    toggled = copy.deepcopy(base)
    Toggle(attach(toggled, folder, "a"))
    merged, _ = merge(attach(copy.deepcopy(base), folder, "a"))
    torch.testing.assert_close(logits(merged), logits(toggled), atol=1e-4, rtol=1e-4)
    assert torch.equal(merged.get_input_embeddings().weight, base.get_input_embeddings().weight)


def test_modules_saved_whole_are_toggled_and_merged(tmp_path):
    base = tiny_model()
    folder = save_adapter(tmp_path, base, modules_to_save=("lm_head",))
    plain = logits(base)
    toggled = copy.deepcopy(base)
    toggle = Toggle(attach(toggled, folder, "a"))
    merged, _ = merge(attach(copy.deepcopy(base), folder, "a"))
    torch.testing.assert_close(logits(merged), logits(toggled), atol=1e-4, rtol=1e-4)
    with toggle.active(False):
        assert torch.equal(logits(toggled), plain)


def test_a_module_saved_whole_counts_as_a_change(tmp_path):
    base = tiny_model()
    folder = save_adapter(tmp_path, base, modules_to_save=("lm_head",))
    rewrite(folder, lambda w: [t.zero_() for k, t in w.items() if "lora_B" in k])
    assert not delta_is_zero(attach(base, folder, "a"))


def test_inert_is_told_from_small(tmp_path):
    base = tiny_model()
    assert delta_is_zero(attach(copy.deepcopy(base), save_adapter(tmp_path / "0", base, scale=0.0), "a"))
    assert not delta_is_zero(attach(copy.deepcopy(base), save_adapter(tmp_path / "1", base, scale=1e-4), "a"))


def test_sixteen_bit_adapter_file_lands_exactly(tmp_path):
    base = tiny_model()
    folder = save_adapter(tmp_path, base)
    rewrite(folder, lambda w: w.update({k: t.to(torch.bfloat16) for k, t in w.items()}))
    peft_model = attach(base, folder, "a")
    own = load_file(folder / WEIGHTS)["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    landed = peft_model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").lora_A["default"].weight
    assert torch.equal(landed, own.float())


def test_merging_below_float32_measures_its_rounding(tmp_path):
    base = tiny_model()
    folder = save_adapter(tmp_path, base, scale=0.01)
    narrow = copy.deepcopy(base).to(torch.bfloat16)
    before = {k: v.clone() for k, v in narrow.state_dict().items()}
    peft_model = attach(narrow, folder, "a")
    exact = {
        n: m.get_delta_weight("default") for n, m in peft_model.base_model.model.named_modules() if n.endswith("proj")
    }
    merged, error = merge(peft_model)
    lost = moved = 0.0
    for name, delta in exact.items():
        want = before[f"{name}.weight"].float() + delta
        lost += (want.to(torch.bfloat16).float() - want).double().square().sum().item()
        moved += delta.double().square().sum().item()
        assert torch.equal(merged.get_submodule(name).weight, want.to(torch.bfloat16))
    assert error == pytest.approx((lost / moved) ** 0.5, rel=1e-3)
    assert error > 0.05


def test_adapter_of_another_width_is_refused(tmp_path):
    folder = save_adapter(tmp_path, tiny_model(hidden_size=64))
    with pytest.raises(
        UserError, match=r"Adapter wide does not fit the base: .*down_proj.* is \(64, 4\), the base needs \(32, 4\)"
    ):
        attach(tiny_model(), folder, "wide")


def test_adapter_of_a_deeper_base_is_refused(tmp_path):
    folder = save_adapter(tmp_path, tiny_model(num_hidden_layers=4))
    with pytest.raises(UserError, match=r"14 of 56 tensors of adapter deep match no module .*layers\.3"):
        attach(tiny_model(), folder, "deep")


def test_adapter_of_a_shallower_base_is_refused(tmp_path):
    folder = save_adapter(tmp_path, tiny_model(num_hidden_layers=2), target_modules=("q_proj", "up_proj"))
    with pytest.raises(UserError, match=r"has no weights for 4 tensors"):
        attach(tiny_model(), folder, "shallow")


def test_adapter_of_another_architecture_is_refused(tmp_path):
    folder = save_adapter(tmp_path, tiny_model("gpt2"))
    with pytest.raises(UserError, match=r"Adapter other does not fit LlamaForCausalLM: .*c_attn"):
        attach(tiny_model(), folder, "other")


def test_tensors_that_match_nothing_are_refused(tmp_path):
    base = tiny_model()
    folder = save_adapter(tmp_path, base)
    rewrite(folder, lambda w: w.update({"base_model.model.model.extra.lora_A.weight": torch.ones(4, 32)}))
    with pytest.raises(UserError, match=r"1 of 43 tensors of adapter a match no module of the base .*model\.extra"):
        attach(base, folder, "a")


def test_nan_names_its_tensor(tmp_path):
    base = tiny_model()
    folder = save_adapter(tmp_path, base)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    rewrite(folder, lambda w: w[name].view(-1)[:1].fill_(float("nan")))
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.lora_B\.weight .*NaN"):
        attach(base, folder, "a")


def test_base_weights_in_the_file(tmp_path):
    base = tiny_model()
    folder = save_adapter(tmp_path, base)
    name = "base_model.model.model.embed_tokens.weight"
    embedding = base.get_input_embeddings().weight
    rewrite(folder, lambda w: w.update({name: embedding.clone()}))
    attach(copy.deepcopy(base), folder, "copies")
    rewrite(folder, lambda w: w.update({name: embedding + 1}))
    with pytest.raises(UserError, match=r"replaces the base weight model\.embed_tokens\.weight"):
        attach(copy.deepcopy(base), folder, "a")
    rewrite(folder, lambda w: w.update({name: torch.ones(300, 32)}))
    with pytest.raises(UserError, match=r"resizes the base weight model\.embed_tokens\.weight"):
        attach(copy.deepcopy(base), folder, "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": "all"}, "trains biases"),
        ({"peft_type": "PROMPT_TUNING"}, "of kind PROMPT_TUNING"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"target_modules": ["nowhere_proj"]}, "nowhere_proj"),
    ],
)
def test_kinds_that_cannot_be_had_are_refused(tmp_path, change, message):
    base = tiny_model()
    folder = save_adapter(tmp_path, base)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        attach(base, folder, "a")


def test_pickled_missing_and_damaged_weights_are_refused(tmp_path):
    base = tiny_model()
    folder = save_adapter(tmp_path, base)
    assert is_adapter(folder)
    (folder / WEIGHTS).write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="damaged"):
        attach(base, folder, "a")
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors; check"):
        attach(base, folder, "a")
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="never loaded"):
        attach(base, folder, "a")
