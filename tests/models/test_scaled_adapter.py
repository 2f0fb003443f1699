"""A scaled adapter as a folder: it loads like any other and gives what amplification gives."""

import copy
import json

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from diffing.core.amplification import PRESETS, AmplificationRule, AmplificationSpec, uniform
from diffing.core.errors import UserError
from diffing.core.specs import VariantSpec
from diffing.models.pair import load_pair
from diffing.models.scaled_adapter import check_exportable, write_scaled_adapter
from diffing.models.tiny import save_adapter, save_pair, tiny_model

IDS = torch.arange(20, 40).view(2, 10)
MIXED = AmplificationSpec(
    rules=(AmplificationRule(factor=-0.7), AmplificationRule(modules=("mlp",), layers="1-2", factor=3))
)


def logits(handle):
    with torch.no_grad():
        return handle.forward_logits(IDS)


def exported(spec, amplification, folder):
    """The pair whose adapter is the exported one."""
    write_scaled_adapter(load_pair(spec), amplification, folder)
    plain = spec.model_copy(update={"finetuned": VariantSpec(id=str(folder)), "amplification": None})
    return load_pair(plain)


@pytest.mark.parametrize("sharing", ["adapter", pytest.param("merged", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "amplification", [MIXED, pytest.param(PRESETS["late_only"], marks=pytest.mark.slow)], ids=["mixed", "late"]
)
def test_the_exported_adapter_gives_what_amplification_gives(tmp_path, sharing, amplification):
    spec = save_pair(tmp_path / "p").model_copy(update={"sharing": sharing})
    expected = load_pair(spec.model_copy(update={"amplification": amplification}))
    found = exported(spec, amplification, tmp_path / "e")
    torch.testing.assert_close(logits(found.finetuned), logits(expected.finetuned), atol=1e-5, rtol=1e-5)
    settings = [json.loads((f / "adapter_config.json").read_text()) for f in (tmp_path / "p/finetuned", tmp_path / "e")]
    assert settings[0] == settings[1]


def test_peft_itself_reads_it(tmp_path):
    spec = save_pair(tmp_path / "p").model_copy(update={"sharing": "adapter"})
    expected = logits(load_pair(spec.model_copy(update={"amplification": uniform(2)})).finetuned)
    write_scaled_adapter(load_pair(spec), uniform(2), tmp_path / "e")
    model = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "e"))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_one_matrix_of_each_module_is_scaled(tmp_path):
    spec = save_pair(tmp_path / "p")
    write_scaled_adapter(load_pair(spec), uniform(3), tmp_path / "e")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "p/finetuned", tmp_path / "e"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor * 3 if "lora_B" in name else tensor)


@pytest.mark.slow
def test_it_goes_over_what_the_pair_was_loaded_with(tmp_path):
    spec = save_pair(tmp_path / "p").model_copy(update={"sharing": "adapter"})
    expected = logits(load_pair(spec.model_copy(update={"amplification": uniform(3)})).finetuned)
    found = exported(spec.model_copy(update={"amplification": uniform(2)}), uniform(1.5), tmp_path / "e")
    torch.testing.assert_close(logits(found.finetuned), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["adapter", "merged"])
def test_modules_saved_whole_are_interpolated(tmp_path, sharing):
    spec = save_pair(tmp_path / "p").model_copy(update={"sharing": sharing})
    save_adapter(tmp_path / "p" / "finetuned", tiny_model(), modules_to_save=("lm_head",))
    expected = logits(load_pair(spec.model_copy(update={"amplification": MIXED})).finetuned)
    torch.testing.assert_close(logits(exported(spec, MIXED, tmp_path / "e").finetuned), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [LoHaConfig, LoKrConfig], ids=["loha", "lokr"])
def test_hadamard_and_kronecker_adapters(tmp_path, config):
    spec = save_pair(tmp_path / "p").model_copy(update={"sharing": "adapter"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(copy.deepcopy(tiny_model()), config(r=4, alpha=8, target_modules=["q_proj", "up_proj"]))
        for name, p in model.named_parameters():
            if "hada" in name or "lokr" in name:
                p.data.normal_(std=0.3)
    model.save_pretrained(str(tmp_path / "p" / "finetuned"))
    expected = logits(load_pair(spec.model_copy(update={"amplification": uniform(-2)})).finetuned)
    torch.testing.assert_close(
        logits(exported(spec, uniform(-2), tmp_path / "e").finetuned), expected, atol=1e-5, rtol=1e-5
    )


def test_what_has_no_scaled_adapter_is_refused(tmp_path):
    full = load_pair(save_pair(tmp_path / "f", full=True))
    with pytest.raises(UserError, match=r"a full finetune is none; leave it out"):
        check_exportable(full, uniform(2))
    spec = save_pair(tmp_path / "p")
    with pytest.raises(UserError, match=r"Rule 1 of diffing\.method\.export_factor names modules 'o_prj'"):
        check_exportable(load_pair(spec), AmplificationSpec(rules=(AmplificationRule(modules=("o_prj",), factor=2),)))
    null = load_pair(spec.model_copy(update={"finetuned": None, "null_pair": "identical"}))
    with pytest.raises(UserError, match="null_pair=identical is none"):
        check_exportable(null, uniform(2))
