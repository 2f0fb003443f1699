"""ΔW from files against PEFT's own and against loaded modules; what cannot be read is refused by name."""

import copy
import json

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from diffing.core.errors import UserError
from diffing.core.specs import ModelSpec, PairSpec, VariantSpec
from diffing.models.plan import plan_pair
from diffing.models.tiny import perturbed, save_adapter, save_model, tiny_model, tiny_tokenizer
from diffing.models.weight_changes import weight_changes

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def spec_of(base, finetuned=None, **changes):
    values = {
        "model": ModelSpec(name="tiny", id=str(base), device_map="cpu"),
        "finetuned": VariantSpec(id=str(finetuned)) if finetuned else None, "organism": "tiny",
    }  # fmt: skip
    return PairSpec(**{**values, **changes})


def found(base, finetuned=None, **changes):
    return weight_changes(plan_pair(spec_of(base, finetuned, **changes)))


def dense(change):
    """The whole ΔW."""
    if change.factors is not None:
        f = change.factors()
        return f.scale * (f.left_OR @ f.right_IR.T)
    return torch.cat([rows for _, rows in change.rows()]).reshape(change.shape)


def base_of(change):
    return torch.cat([rows for _, rows in change.base()]).reshape(change.shape)


def base_folder(folder, architecture="llama", **config):
    model = tiny_model(architecture, **config)
    return model, save_model(folder, model, tiny_tokenizer())


def randomised(model, scale=0.1):
    generator = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        if any(k in name for k in ("lora_", "hada_", "lokr_")) and "magnitude" not in name:
            p.data.copy_(torch.randn(p.shape, generator=generator) * scale)
        elif "magnitude" in name or "modules_to_save" in name:
            p.data.add_(torch.rand(p.shape, generator=generator) * scale)
    return model.eval()


def adapted(folder, base, config):
    """Write an adapter with random factors; what merging it adds to each weight, as PEFT computes it."""
    model = randomised(get_peft_model(copy.deepcopy(base), config))
    model.save_pretrained(str(folder))
    before = base.state_dict()
    after = model.merge_and_unload().state_dict()
    return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


LORAS = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": [*ATTENTION, "down_proj"]},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ATTENTION},
    "patterns": {
        "r": 4, "lora_alpha": 6, "target_modules": [*ATTENTION, "down_proj"],
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 7},
        "alpha_pattern": {r"model\.layers\.2\.self_attn\.o_proj": 20, "down_proj": 3},
    },
    "embedding": {"r": 3, "lora_alpha": 5, "target_modules": ["embed_tokens", "q_proj"]},
    "wide": {"r": 40, "lora_alpha": 6, "target_modules": ["k_proj"]},
    "dora": {"r": 4, "lora_alpha": 6, "use_dora": True, "target_modules": [*ATTENTION, "up_proj"]},
    "whole": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
}  # fmt: skip


@pytest.mark.parametrize("name", LORAS)
def test_lora_equals_what_peft_merges(tmp_path, name):
    base, folder = base_folder(tmp_path / "base", tie_word_embeddings=False)
    expected = adapted(tmp_path / "a", base, LoraConfig(**LORAS[name]))
    changes = {c.name: c for c in found(folder, tmp_path / "a").changes}
    assert set(changes) == set(expected)
    for key, delta in expected.items():
        torch.testing.assert_close(dense(changes[key]), delta, rtol=1e-4, atol=2e-6)
        assert torch.equal(base_of(changes[key]), base.state_dict()[key])


@pytest.mark.parametrize("name", ["plain", "dora"])
def test_lora_on_weights_that_are_stored_the_other_way_round(tmp_path, name):
    base, folder = base_folder(tmp_path / "base", "gpt2")
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, use_dora=name == "dora"
    )
    expected = adapted(tmp_path / "a", base, config)
    changes = found(folder, tmp_path / "a").changes
    assert len(changes) == len(expected) == 12
    for change in changes:
        torch.testing.assert_close(dense(change), expected[f"{change.name}"], rtol=1e-4, atol=2e-6)
        assert change.out_axis == 1
        if change.place.module == "mlp.c_proj":
            assert change.out_width == 32


@pytest.mark.parametrize(
    "config",
    [
        LoHaConfig(r=3, alpha=5, target_modules=ATTENTION, rank_pattern={"q_proj": 2}, alpha_pattern={"o_proj": 9}),
        LoKrConfig(r=3, alpha=5, target_modules=ATTENTION, decompose_both=True),
        LoKrConfig(r=16, alpha=5, target_modules=ATTENTION, rank_pattern={"k_proj": 20}),
    ],
    ids=["loha", "lokr", "lokr whole"],
)
def test_products_equal_what_peft_merges(tmp_path, config):
    base, folder = base_folder(tmp_path / "base")
    expected = adapted(tmp_path / "a", base, config)
    changes = {c.name: c for c in found(folder, tmp_path / "a").changes}
    assert set(changes) == set(expected)
    for key, delta in expected.items():
        torch.testing.assert_close(dense(changes[key]), delta, rtol=1e-4, atol=2e-6)


def test_a_bias_of_the_adapter(tmp_path):
    base, folder = base_folder(tmp_path / "base", attention_bias=True)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], lora_bias=True)
    expected = adapted(tmp_path / "a", base, config)
    changes = {c.name: dense(c) for c in found(folder, tmp_path / "a").changes}
    assert set(changes) == set(expected)
    for key, delta in expected.items():
        torch.testing.assert_close(changes[key], delta, rtol=1e-4, atol=2e-6)


def test_an_adapter_needs_no_weights_of_the_base(tmp_path):
    base, folder = base_folder(tmp_path / "base")
    save_adapter(tmp_path / "a", base)
    plan = plan_pair(spec_of(folder, tmp_path / "a"))
    with_base = weight_changes(plan)
    (folder / "model.safetensors").unlink()
    alone = weight_changes(plan)
    assert alone.base is None
    assert [c.name for c in alone.changes] == [c.name for c in with_base.changes]
    for one, other in zip(alone.changes, with_base.changes, strict=True):
        assert one.base is None
        assert torch.equal(dense(one), dense(other))


def test_what_needs_the_base_says_so_without_it(tmp_path):
    base, folder = base_folder(tmp_path / "base", tie_word_embeddings=False)
    adapted(tmp_path / "dora", base, LoraConfig(**LORAS["dora"]))
    adapted(tmp_path / "whole", base, LoraConfig(**LORAS["whole"]))
    plans = {name: plan_pair(spec_of(folder, tmp_path / name)) for name in ("dora", "whole")}
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"uses DoRA on model\.layers\.0\..*, which depends on weights"):
        weight_changes(plans["dora"])
    left_out = weight_changes(plans["whole"]).left_out
    assert {x.name for x in left_out} >= {"model.norm.weight", "lm_head.weight"}
    assert all("are not at hand" in x.reason for x in left_out)


def rewritten(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"target_parameters": ["x"]}, "uses target_parameters"),
        ({"trainable_token_indices": [1]}, "uses trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, "uses layer_replication"),
        ({"use_qalora": True}, "uses use_qalora"),
        ({"init_lora_weights": "pissa_niter_16"}, "was begun by pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "was begun by olora"),
        ({"r": 5}, "rank 4 for .* and its settings say 5"),
        ({"peft_type": "IA3"}, "is of kind IA3"),
    ],
)
def test_what_a_file_does_not_tell_is_refused_by_name(tmp_path, settings, named):
    base, folder = base_folder(tmp_path / "base")
    save_adapter(tmp_path / "a", base)
    plan = plan_pair(spec_of(folder, tmp_path / "a"))
    rewritten(tmp_path / "a", **settings)
    with pytest.raises(UserError, match=named):
        weight_changes(plan)


def test_a_copy_of_the_base_beside_its_factors_must_be_one(tmp_path):
    base, folder = base_folder(tmp_path / "base", tie_word_embeddings=False)
    adapted(tmp_path / "a", base, LoraConfig(**LORAS["embedding"]))
    copies = [k for k in load_file(tmp_path / "a" / "adapter_model.safetensors") if k.endswith("base_layer.weight")]
    assert copies
    edited(tmp_path / "a", lambda w: w[copies[0]].add_(1))
    with pytest.raises(UserError, match=r"replaces the base weight model\.embed_tokens\.weight and adapts it besides"):
        found(folder, tmp_path / "a")


def test_dora_on_an_embedding_is_refused(tmp_path):
    base, folder = base_folder(tmp_path / "base", tie_word_embeddings=False)
    adapted(tmp_path / "a", base, LoraConfig(r=2, use_dora=True, target_modules=["embed_tokens"]))
    with pytest.raises(UserError, match=r"uses DoRA on the embedding model\.embed_tokens"):
        found(folder, tmp_path / "a")


def edited(folder, change, name="adapter_model.safetensors"):
    weights = load_file(folder / name)
    change(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / name, metadata={"format": "pt"})


def test_adapters_that_do_not_fit(tmp_path):
    base, folder = base_folder(tmp_path / "base")
    save_adapter(tmp_path / "a", base)
    plan = plan_pair(spec_of(folder, tmp_path / "a"))
    whole = load_file(tmp_path / "a" / "adapter_model.safetensors")
    first = next(k for k in whole if "q_proj.lora_B" in k)
    for change, named in (
        (lambda w: w.pop(first), "which is no whole set of factors"),
        (lambda w: w.update({first: torch.ones(33, 4)}), r"does not fit the base: .* is \(33, 32\), the base needs"),
        (lambda w: w.update({"base_model.model.score.weight": torch.ones(2)}), "matches no weight of the base"),
        (lambda w: w.update({first: torch.full_like(w[first], torch.inf)}), "holds NaN or infinite"),
    ):
        save_file(whole, tmp_path / "a" / "adapter_model.safetensors", metadata={"format": "pt"})
        edited(tmp_path / "a", change)
        with pytest.raises(UserError, match=named):
            [dense(c) for c in weight_changes(plan).changes]


def test_a_full_finetune_equals_the_difference_of_modules(tmp_path):
    for architecture in ("llama", "gpt2", "gemma2"):
        base, folder = base_folder(tmp_path / architecture, architecture)
        finetuned = perturbed(base, 1, 0.05)
        save_model(tmp_path / f"{architecture}_ft", finetuned, tiny_tokenizer())
        changes = found(folder, tmp_path / f"{architecture}_ft")
        before, after = base.state_dict(), finetuned.state_dict()
        assert {c.name for c in changes.changes} == {k for k in before if k != "lm_head.weight"} | (
            {"lm_head.weight"} if not base.config.tie_word_embeddings else set()
        )
        for change in changes.changes:
            assert torch.equal(dense(change), after[change.name] - before[change.name])
            assert torch.equal(base_of(change), before[change.name])
        layers = [c.place.layer for c in changes.changes if c.place.layer is not None]
        assert layers == sorted(layers)
        assert bool(changes.notes) == base.config.tie_word_embeddings


def test_a_head_that_finetuning_untied_is_compared_with_the_embedding(tmp_path):
    base, folder = base_folder(tmp_path / "base", tie_word_embeddings=True)
    finetuned, other = base_folder(tmp_path / "ft", tie_word_embeddings=False)
    changes = {c.place.part: c for c in found(folder, other).changes if c.place.layer is None}
    expected = finetuned.lm_head.weight - base.model.embed_tokens.weight
    assert torch.equal(dense(changes["head"]), expected)


def test_resized_tables_other_shapes_and_lone_tensors(tmp_path):
    base, folder = base_folder(tmp_path / "base")
    finetuned = tiny_model(vocab_size=300)
    save_model(tmp_path / "ft", finetuned, tiny_tokenizer())

    def change(weights):
        weights["model.layers.0.mlp.up_proj.weight"] = torch.ones(8, 8)
        weights.pop("model.layers.1.mlp.up_proj.weight")
        weights["model.layers.1.mlp.extra.weight"] = torch.ones(2)

    edited(tmp_path / "ft", change, "model.safetensors")
    changes = found(folder, tmp_path / "ft")
    table = next(c for c in changes.changes if c.place.part == "embedding")
    rows = len(base.model.embed_tokens.weight)
    assert table.shape == (rows, 32)
    assert torch.equal(dense(table), finetuned.model.embed_tokens.weight[:rows] - base.model.embed_tokens.weight)
    left_out = {x.name: (x.where, x.reason) for x in changes.left_out}
    assert left_out["model.layers.0.mlp.up_proj.weight"] == ("finetuned", "has shape (8, 8), the base's (48, 32)")
    assert left_out["model.layers.1.mlp.up_proj.weight"] == ("base", "is in the base alone")
    assert left_out["model.layers.1.mlp.extra.weight"] == ("finetuned", "is in the finetuned model alone")


def test_quantised_tensors_are_left_out_by_name(tmp_path):
    base, folder = base_folder(tmp_path / "base")
    save_model(tmp_path / "ft", perturbed(base, 1, 0.05), tiny_tokenizer())
    packed = "model.layers.0.mlp.up_proj.weight"

    def change(weights):
        weights[packed] = torch.zeros(768, 1, dtype=torch.uint8)
        weights[f"{packed}.absmax"] = torch.ones(12)

    edited(folder, change, "model.safetensors")
    edited(tmp_path / "ft", change, "model.safetensors")
    changes = found(folder, tmp_path / "ft")
    left_out = {x.name: x.reason for x in changes.left_out}
    assert left_out[packed].startswith("holds U8 numbers (packed or quantised)")
    assert left_out[f"{packed}.absmax"] == "belongs to a quantised weight"
    assert packed not in {c.name for c in changes.changes}
    save_adapter(tmp_path / "a", base)
    adapter = {c.name: c for c in found(folder, tmp_path / "a").changes}
    assert adapter[packed].base is None
    assert adapter["model.layers.0.mlp.down_proj.weight"].base is not None


def test_models_without_a_weight_in_common(tmp_path):
    _, folder = base_folder(tmp_path / "base")
    _, other = base_folder(tmp_path / "ft", hidden_size=16)
    with pytest.raises(UserError, match=r"No weight of .* can be compared \(such as .*, which has shape .*\); kl"):
        found(folder, other)


def test_null_pairs(tmp_path):
    base, folder = base_folder(tmp_path / "base")
    identical = found(folder, null_pair="identical").changes
    assert identical
    assert not any(dense(c).any() for c in identical)
    for change in found(folder, null_pair="dtype").changes:
        own = base.state_dict()[change.name]
        assert torch.equal(dense(change), own.bfloat16().float() - own)
        assert change.floor == 2**-9


@pytest.mark.parametrize("is_adapter", [True, False])
def test_an_amplified_change_is_scaled(tmp_path, is_adapter):
    base, folder = base_folder(tmp_path / "base")
    if is_adapter:
        save_adapter(tmp_path / "ft", base)
    else:
        save_model(tmp_path / "ft", perturbed(base, 1, 0.05), tiny_tokenizer())
    plain = {c.name: dense(c) for c in found(folder, tmp_path / "ft").changes}
    rules = [{"factor": 3.0, "modules": "mlp"}, {"factor": -1.0, "layers": "1", "modules": "o_proj"}]
    for change in found(folder, tmp_path / "ft", amplification={"rules": rules}).changes:
        factor = 3.0 if ".mlp." in change.name else -1.0 if "layers.1.self_attn.o_proj" in change.name else 1.0
        torch.testing.assert_close(dense(change), factor * plain[change.name])
