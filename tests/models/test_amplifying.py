"""Scaling what finetuning changed: against dense matrices in float64, put back to the bit, and what is refused."""

import copy
import json

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, get_peft_model
from safetensors.torch import load_file, save_file

from diffing.core.amplification import AmplificationRule, AmplificationSpec, only, uniform
from diffing.core.errors import UserError
from diffing.core.specs import PairSpec, VariantSpec
from diffing.models.adapters import attach
from diffing.models.amplifying import Amplifier, amplified
from diffing.models.merging import merge
from diffing.models.pair import load_pair, pair_fingerprint
from diffing.models.tiny import perturbed, save_adapter, save_model, save_pair, tiny_model, tiny_tokenizer

IDS = torch.arange(20, 40).view(2, 10)
LATE_MLP = AmplificationSpec(
    rules=(
        AmplificationRule(factor=0.5),
        AmplificationRule(layers="1-2", modules=("mlp",), factor=-1.5),
        AmplificationRule(layers="2", modules=("down_proj",), factor=3),
    )
)


def logits(handle):
    with torch.no_grad():
        return handle.forward_logits(IDS)


def factor_of(name):
    """The factors of `LATE_MLP` by hand."""
    layer = next((i for i in range(3) if f".{i}." in name), None)
    if layer == 2 and "down_proj" in name:
        return 3.0
    return -1.5 if layer in (1, 2) and ".mlp." in name else 0.5


def by_hand(base, finetuned, factor):
    """A float64 copy of the base with W + factor · ΔW."""
    made = copy.deepcopy(base).double()
    theirs = finetuned.state_dict()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            change = theirs[name].double() - base.state_dict()[name].double()
            weight.add_(factor(name) * change)
    return made(input_ids=IDS).logits


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("amplified")
    return {"adapter": save_pair(root / "a"), "full": save_pair(root / "f", full=True)}


def spec_of(made, sharing, amplification=None) -> PairSpec:
    kind = "full" if sharing == "separate" else "adapter"
    return made[kind].model_copy(update={"sharing": sharing, "amplification": amplification})


@pytest.fixture(scope="module")
def pairs(made):
    return {sharing: load_pair(spec_of(made, sharing)) for sharing in SHARINGS}


SHARINGS = ("adapter", "merged", "separate")


@pytest.mark.parametrize("sharing", SHARINGS)
def test_scaled_logits_are_those_of_scaled_matrices(made, pairs, sharing):
    twin = pairs["merged" if sharing == "adapter" else sharing]
    expected = by_hand(twin.base.module, twin.finetuned.module, factor_of)
    loaded = load_pair(spec_of(made, sharing, LATE_MLP))
    torch.testing.assert_close(logits(loaded.finetuned).double(), expected, atol=3e-4, rtol=1e-4)
    assert torch.equal(logits(loaded.base), logits(pairs[sharing].base))
    pair = pairs[sharing]
    before = logits(pair.finetuned)
    with amplified(pair, LATE_MLP):
        torch.testing.assert_close(logits(pair.finetuned).double(), expected, atol=3e-4, rtol=1e-4)
        assert torch.equal(logits(pair.base), logits(loaded.base))
    assert torch.equal(logits(pair.finetuned), before)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_factor_one_is_the_pair_and_factor_zero_the_base(made, pairs, sharing):
    pair = pairs[sharing]
    plain, base = logits(pair.finetuned), logits(pair.base)
    one = load_pair(spec_of(made, sharing, uniform(1)))
    assert torch.equal(logits(one.finetuned), plain)
    assert one.fingerprint == pair.fingerprint
    assert torch.equal(logits(load_pair(spec_of(made, sharing, uniform(0))).finetuned), base)
    with amplified(pair, uniform(0)):
        assert torch.equal(logits(pair.finetuned), base)
    assert torch.equal(logits(pair.finetuned), plain)


def test_factor_zero_says_that_nothing_is_to_be_found(made):
    pair = load_pair(spec_of(made, "adapter", uniform(0)))
    assert any("nothing is to be found" in w for w in pair.facts["warnings"])
    assert pair.facts["amplification"]["n_scaled"] == pair.facts["amplification"]["n_modules"] == 21


@pytest.mark.parametrize("sharing", SHARINGS)
def test_everything_is_put_back_to_the_bit(pairs, sharing):
    pair = pairs[sharing]
    module = pair.finetuned.module
    weights = {k: v.clone() for k, v in module.state_dict().items()}
    scalings = [dict(m.scaling) for m in module.modules() if hasattr(m, "lora_A")]
    amplifier = Amplifier(pair)
    with pytest.raises(RuntimeError, match="stop"), amplifier.set(LATE_MLP), amplifier.set(uniform(0.1)):
        raise RuntimeError("stop")
    assert all(torch.equal(v, weights[k]) for k, v in module.state_dict().items())
    assert [dict(m.scaling) for m in module.modules() if hasattr(m, "lora_A")] == scalings


def test_nested_factors_multiply(pairs):
    pair = pairs["adapter"]
    with amplified(pair, uniform(4)):
        expected = logits(pair.finetuned)
    with amplified(pair, uniform(2)), amplified(pair, uniform(2)):
        assert torch.equal(logits(pair.finetuned), expected)


def test_fingerprints(made):
    plain = pair_fingerprint(spec_of(made, "adapter"))
    two, rules = (pair_fingerprint(spec_of(made, "adapter", a)) for a in (uniform(2), LATE_MLP))
    assert len({plain, two, rules}) == 3
    named = LATE_MLP.model_copy(update={"name": "mine"})
    assert pair_fingerprint(spec_of(made, "adapter", named)) == rules


def test_the_fingerprint_without_amplification_is_what_it_was(made, monkeypatch):
    from diffing.models import plan

    keys = []
    monkeypatch.setattr(plan, "fingerprint", lambda key: keys.append(key) or "x")
    plan.plan_pair(spec_of(made, "adapter"))
    assert list(keys[-1]) == [
        "base", "finetuned", "kind", "sharing", "dtypes", "attention", "quantization", "tokenizers", "rules",
        "null_pair",
    ]  # fmt: skip


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_other_architectures_know_their_attention_and_mlp(tmp_path, architecture):
    pair = load_pair(save_pair(tmp_path, architecture).model_copy(update={"sharing": "adapter"}))
    places = Amplifier(pair).places
    assert {p.layer for p in places} == {0, 1, 2}
    assert {(p.kind, "attn" in p.path, "mlp" in p.path) for p in places} == {
        ("attention", True, False), ("mlp", False, True),
    }  # fmt: skip


def test_places_of_a_full_finetune_cover_norms_and_embeddings(pairs):
    kinds = {p.path: (p.layer, p.kind) for p in Amplifier(pairs["separate"]).places}
    assert kinds["model.layers.1.input_layernorm"] == (1, "other")
    assert kinds["model.embed_tokens"] == (None, "other")
    assert kinds["model.layers.2.self_attn.o_proj"] == (2, "attention")


@pytest.mark.slow
@pytest.mark.parametrize("config", [LoHaConfig, LoKrConfig], ids=["loha", "lokr"])
def test_hadamard_and_kronecker_adapters_scale_as_merged_ones(tmp_path, config):
    base = tiny_model()
    save_model(tmp_path / "base", base, tiny_tokenizer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(copy.deepcopy(base), config(r=4, alpha=8, target_modules=["q_proj", "up_proj"]))
        for name, p in model.named_parameters():
            if "hada" in name or "lokr" in name:
                p.data.normal_(std=0.3)
    model.save_pretrained(str(tmp_path / "finetuned"))
    spec = save_pair(tmp_path / "other").model_copy(update={"sharing": "adapter"})
    spec = spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"id": str(tmp_path / "base")}),
            "finetuned": VariantSpec(id=str(tmp_path / "finetuned")),
        }
    )
    merged, _ = merge(attach(copy.deepcopy(base), tmp_path / "finetuned", "a"))
    expected = by_hand(base, merged, lambda name: -2.0)
    pair = load_pair(spec.model_copy(update={"amplification": uniform(-2)}))
    torch.testing.assert_close(logits(pair.finetuned).double(), expected, atol=3e-4, rtol=1e-4)
    assert (logits(pair.finetuned) - logits(pair.base)).abs().max() > 1e-2


@pytest.mark.parametrize("sharing", ["adapter", "merged"])
def test_modules_saved_whole_are_interpolated(tmp_path, sharing):
    base = tiny_model()
    save_model(tmp_path / "base", base, tiny_tokenizer())
    save_adapter(tmp_path / "finetuned", base, modules_to_save=("lm_head",))
    spec = _named(tmp_path).model_copy(update={"sharing": sharing})
    merged, _ = merge(attach(copy.deepcopy(base), tmp_path / "finetuned", "a"))
    half = AmplificationSpec(rules=(AmplificationRule(factor=2), AmplificationRule(modules=("lm_head",), factor=0.5)))
    expected = by_hand(base, merged, lambda name: 0.5 if "lm_head" in name else 2.0)
    loaded = load_pair(spec.model_copy(update={"amplification": half}))
    torch.testing.assert_close(logits(loaded.finetuned).double(), expected, atol=3e-4, rtol=1e-4)
    pair = load_pair(spec)
    plain = logits(pair.finetuned)
    with amplified(pair, half):
        torch.testing.assert_close(logits(pair.finetuned).double(), expected, atol=3e-4, rtol=1e-4)
    assert torch.equal(logits(pair.finetuned), plain)


def _named(folder) -> PairSpec:
    spec = save_pair(folder / "spec")
    return spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"id": str(folder / "base")}),
            "finetuned": VariantSpec(id=str(folder / "finetuned")),
        }
    )


def test_tied_weights_are_scaled_once(tmp_path):
    base = tiny_model("gemma2", tie_word_embeddings=True)
    finetuned = perturbed(base, 3, 0.05)
    save_model(tmp_path / "base", base, tiny_tokenizer())
    save_model(tmp_path / "finetuned", finetuned, tiny_tokenizer())
    pair = load_pair(_named(tmp_path).model_copy(update={"amplification": uniform(2)}))
    expected = by_hand(pair.base.module, finetuned, lambda name: 2.0)
    torch.testing.assert_close(logits(pair.finetuned).double(), expected, atol=1e-3, rtol=1e-4)
    found = pair.finetuned.module
    assert found.get_input_embeddings().weight.data_ptr() == found.get_output_embeddings().weight.data_ptr()


@pytest.mark.slow
def test_rows_that_the_base_has_not_stay(tmp_path):
    base, wide = tiny_model(), tiny_model(vocab_size=270, seed=5)
    with torch.no_grad():
        for name, weight in wide.named_parameters():
            own = base.state_dict()[name]
            weight[: len(own)] = own + 0.01
    save_model(tmp_path / "base", base, tiny_tokenizer())
    save_model(tmp_path / "finetuned", wide, tiny_tokenizer(extra_tokens=("zebra", "quokka", "okapi")))
    pair = load_pair(_named(tmp_path).model_copy(update={"amplification": uniform(0)}))
    scaled = pair.finetuned.module.state_dict()
    assert torch.equal(scaled["lm_head.weight"][:267], base.state_dict()["lm_head.weight"])
    assert torch.equal(scaled["lm_head.weight"][267:], wide.state_dict()["lm_head.weight"][267:])


def test_sixteen_bit_finetunes_say_what_rounding_costs(made):
    spec = spec_of(made, "separate", uniform(0.3))
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"dtype": "bfloat16"})})
    pair = load_pair(spec)
    assert 0 < pair.facts["amplification"]["rounding_error"] < 1
    plain = load_pair(spec.model_copy(update={"amplification": None}))
    base, theirs = plain.base.module, plain.finetuned.module
    name = "model.layers.0.mlp.up_proj.weight"
    b, f = base.state_dict()[name].float(), theirs.state_dict()[name].float()
    assert torch.equal(pair.finetuned.module.state_dict()[name], (b + 0.3 * (f - b)).bfloat16())


def test_a_pair_without_change_has_nothing_to_scale(made):
    pair = load_pair(made["adapter"].model_copy(update={"finetuned": None, "null_pair": "identical"}))
    with amplified(pair, LATE_MLP):
        assert torch.equal(logits(pair.finetuned), logits(pair.base))


def test_a_null_pair_is_not_amplified(made):
    spec = made["adapter"].model_copy(update={"finetuned": None, "null_pair": "identical", "amplification": uniform(2)})
    with pytest.raises(UserError, match="no change to amplify: null_pair=identical"):
        load_pair(spec)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_a_rule_for_nothing_is_refused(made, pairs, sharing):
    typo = only(AmplificationRule(modules=("o_prj",), factor=1))
    with pytest.raises(
        UserError, match=r"Rule 2 of organism\.amplification names modules 'o_prj'.*did you mean o_proj"
    ):
        load_pair(spec_of(made, sharing, typo))
    with pytest.raises(UserError, match=r"the model has 3: 0 to 2"):
        load_pair(spec_of(made, sharing, only(AmplificationRule(layers="2-3", factor=1))))
    before = logits(pairs[sharing].finetuned)
    with pytest.raises(UserError, match="o_prj"), amplified(pairs[sharing], typo):
        pass
    assert torch.equal(logits(pairs[sharing].finetuned), before)


def test_a_part_that_was_not_changed_is_refused(tmp_path):
    spec = save_pair(tmp_path)
    save_adapter(tmp_path / "finetuned", tiny_model(), target_modules=("q_proj",))
    with pytest.raises(UserError, match="names modules 'mlp', which finetuning did not change"):
        load_pair(spec.model_copy(update={"amplification": only(AmplificationRule(modules=("mlp",), factor=1))}))


def _rewritten(tmp_path, **settings):
    spec = save_pair(tmp_path)
    path = tmp_path / "finetuned" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return spec.model_copy(update={"amplification": uniform(2)})


def test_dora_is_refused_by_name(tmp_path):
    spec = _rewritten(tmp_path, use_dora=True)
    with pytest.raises(UserError, match="is a DoRA, whose change of the weights is not proportional"):
        pair_fingerprint(spec)
    weights = load_file(tmp_path / "finetuned" / "adapter_model.safetensors")
    for name in [n for n in weights if n.endswith("lora_B.weight")]:
        weights[name.replace("lora_B.weight", "lora_magnitude_vector")] = torch.ones(len(weights[name]))
    save_file(weights, tmp_path / "finetuned" / "adapter_model.safetensors")
    pair = load_pair(spec.model_copy(update={"amplification": None, "sharing": "adapter"}))
    with pytest.raises(UserError, match="DoRA"), amplified(pair, uniform(2)):
        pass


def test_a_quantised_full_finetune_is_refused(made):
    spec = spec_of(made, "separate", uniform(2))
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"quantization": "4bit"})})
    with pytest.raises(UserError, match="is a full model in 4bit weights"):
        pair_fingerprint(spec)


def test_models_of_different_shape_are_refused(tmp_path, made):
    save_model(tmp_path / "other", tiny_model("llama", 5, num_hidden_layers=4))
    spec = made["full"].model_copy(update={"finetuned": VariantSpec(id=str(tmp_path / "other"))})
    with pytest.raises(UserError, match="amplification needs models of one architecture"):
        load_pair(spec.model_copy(update={"amplification": uniform(2)}))
    with pytest.raises(UserError, match="amplification needs models of one architecture"):
        Amplifier(load_pair(spec))


def test_a_factor_that_breaks_the_model_is_blamed(made):
    with pytest.raises(UserError, match=r"organism\.amplification ×1e\+30 is too much"):
        load_pair(spec_of(made, "adapter", uniform(1e30)))
