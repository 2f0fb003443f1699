"""Whole pairs from folders: kinds, sharing, nulls, fingerprints, and the sentences for what cannot be."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffing.core.errors import UserError
from diffing.core.specs import ModelSpec, PairSpec, VariantSpec
from diffing.models import plan
from diffing.models.pair import load_pair, pair_fingerprint
from diffing.models.tiny import (
    CHAT_TEMPLATE,
    perturbed,
    save_adapter,
    save_model,
    save_pair,
    tiny_model,
    tiny_tokenizer,
)

IDS = torch.arange(20, 40).view(2, 10)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An adapter pair and a full pair on disk; tests that change files copy them."""
    root = tmp_path_factory.mktemp("pairs")
    return {"adapter": save_pair(root / "a"), "full": save_pair(root / "f", full=True)}


def changed(spec: PairSpec, **values) -> PairSpec:
    """`spec` with fields replaced; those of the model are written `model_x=`."""
    of_model = {k.removeprefix("model_"): v for k, v in values.items() if k.startswith("model_")}
    rest = {k: v for k, v in values.items() if not k.startswith("model_")}
    return spec.model_copy(update={**rest, "model": spec.model.model_copy(update=of_model)})


def logits(handle):
    return handle.logits(handle.final_hidden(IDS).flatten(0, 1))


def test_toggled_and_merged_pairs_agree(made):
    toggled = load_pair(changed(made["adapter"], sharing="adapter"))
    merged = load_pair(changed(made["adapter"], sharing="merged"))
    assert toggled.base.module is toggled.finetuned.module
    assert merged.base.module is not merged.finetuned.module
    assert torch.equal(logits(toggled.base), logits(merged.base))
    torch.testing.assert_close(logits(toggled.finetuned), logits(merged.finetuned), atol=1e-4, rtol=1e-4)
    assert (logits(toggled.base) - logits(toggled.finetuned)).abs().max() > 1e-2
    assert toggled.fingerprint != merged.fingerprint
    assert merged.facts["rounding_error"] == 0.0
    assert toggled.facts["n_params"]["base"] == toggled.facts["n_params"]["finetuned"]
    json.dumps(toggled.facts)


def test_own_forward_follows_the_active_handle(made):
    pair = load_pair(changed(made["adapter"], sharing="adapter"))
    for handle in (pair.base, pair.finetuned, pair.base):
        torch.testing.assert_close(handle.forward_logits(IDS).flatten(0, 1), logits(handle), atol=1e-5, rtol=1e-5)


def test_full_finetune_is_told_by_its_files(made):
    pair = load_pair(made["full"])
    assert (pair.facts["kind"], pair.sharing) == ("model", "separate")
    assert pair.vocabulary.shared_ids is None
    assert not torch.equal(logits(pair.base), logits(pair.finetuned))


def test_full_finetune_may_differ_in_depth_and_width(tmp_path, made):
    other = tiny_model("qwen3", 5, num_hidden_layers=4, hidden_size=48)
    save_model(tmp_path / "other", other)
    pair = load_pair(changed(made["full"], finetuned=VariantSpec(id=str(tmp_path / "other"))))
    assert len(pair.finetuned.sites.layers) == 4
    assert pair.finetuned.tokenizer is pair.tokenizer


def test_larger_vocabulary_is_cut(tmp_path, made):
    save_model(tmp_path / "w", tiny_model(vocab_size=270), tiny_tokenizer(extra_tokens=("zebra", "quokka", "okapi")))
    pair = load_pair(changed(made["full"], finetuned=VariantSpec(id=str(tmp_path / "w"))))
    assert pair.vocabulary.shared_ids.tolist() == list(range(267))
    assert pair.facts["vocabulary"] == {"base": 267, "finetuned": 270, "shared": 267}


@pytest.mark.parametrize("finetuned", [True, False])
def test_identical_null_is_the_base_itself(made, finetuned):
    spec = made["adapter"] if finetuned else changed(made["adapter"], finetuned=None)
    pair = load_pair(changed(spec, null_pair="identical") if finetuned else spec)
    assert pair.finetuned.module is pair.base.module
    assert torch.equal(logits(pair.base), logits(pair.finetuned))
    assert (pair.facts["kind"], pair.facts["finetuned"]) == ("identical", None)


def test_dtype_null_is_a_second_copy_in_another_dtype(made):
    pair = load_pair(changed(made["adapter"], null_pair="dtype"))
    dtypes = [next(h.module.parameters()).dtype for h in (pair.base, pair.finetuned)]
    assert dtypes == [torch.float32, torch.bfloat16]
    gap = (logits(pair.base) - logits(pair.finetuned)).abs().max()
    assert 0 < gap < 1
    narrow = load_pair(changed(made["adapter"], null_pair="dtype", model_dtype="bfloat16"))
    assert next(narrow.finetuned.module.parameters()).dtype == torch.float32


def test_generic_null_is_the_base_and_an_adapter_trained_on_generic_text(made):
    named, null = load_pair(made["adapter"]), load_pair(changed(made["adapter"], null_pair="generic"))
    assert torch.equal(logits(named.finetuned), logits(null.finetuned))
    assert (null.facts["null_pair"], null.facts["base_identity"]) == ("generic", named.facts["base_identity"])
    assert null.fingerprint != named.fingerprint


def test_seeds_null_compares_two_adapters_merged_into_one_base(made, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFING_CACHE", str(tmp_path / "cache"))
    one = made["adapter"]
    base = tiny_model()
    save_adapter(tmp_path / "second", base, seed=9)
    second = changed(one, finetuned=VariantSpec(id=str(tmp_path / "second")))
    both = changed(
        one,
        null_pair="seeds",
        base_adapter=VariantSpec(id=one.finetuned.id, kind="adapter", merged=True),
        finetuned=VariantSpec(id=str(tmp_path / "second"), kind="adapter", merged=True),
    )
    pair = load_pair(both)
    torch.testing.assert_close(logits(pair.base), logits(load_pair(one).finetuned), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(pair.finetuned), logits(load_pair(second).finetuned), atol=1e-4, rtol=1e-4)
    assert pair.facts["kind"] == "model"
    assert pair.facts["base"]["origin"] == "merged"
    assert one.finetuned.id in pair.facts["base"]["id"]
    assert pair.facts["base_identity"] == load_pair(one).facts["base_identity"]
    assert len([p for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()]) == 2
    assert load_pair(both).fingerprint == pair.fingerprint


def test_a_merged_variant_is_the_adapter_as_a_full_finetune(made, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFING_CACHE", str(tmp_path / "cache"))
    spec = made["adapter"]
    merged = load_pair(changed(spec, finetuned=spec.finetuned.model_copy(update={"merged": True})))
    assert (merged.facts["kind"], merged.sharing) == ("model", "separate")
    torch.testing.assert_close(logits(merged.finetuned), logits(load_pair(spec).finetuned), atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(merged.base), logits(load_pair(spec).base))
    full = made["full"]
    with pytest.raises(UserError, match=r"merged=true is for adapters"):
        load_pair(changed(full, finetuned=full.finetuned.model_copy(update={"merged": True})))
    save_adapter(tmp_path / "inert", tiny_model(), scale=0.0)
    with pytest.raises(UserError, match=r"inert changes nothing"):
        load_pair(changed(spec, finetuned=VariantSpec(id=str(tmp_path / "inert"), merged=True)))
    assert not any("inert" in p.name and p.is_dir() for p in (tmp_path / "cache" / "models").iterdir())
    with pytest.raises(UserError, match=r"quantization=none"):
        load_pair(changed(spec, finetuned=VariantSpec(id=spec.finetuned.id, merged=True), model_quantization="4bit"))


def test_adapter_or_model_that_changes_nothing_is_refused(tmp_path, made):
    save_adapter(tmp_path / "inert", tiny_model(), scale=0.0)
    inert = changed(made["adapter"], finetuned=VariantSpec(id=str(tmp_path / "inert")))
    for sharing in ("adapter", "merged"):
        with pytest.raises(UserError, match=r"inert changes nothing"):
            load_pair(changed(inert, sharing=sharing))
    assert load_pair(changed(inert, null_pair="identical")).facts["kind"] == "identical"
    with pytest.raises(UserError, match="changes nothing"):
        load_pair(changed(made["full"], finetuned=VariantSpec(id=made["full"].model.id)))


def test_merging_into_sixteen_bits_is_refused_with_the_measured_error(made):
    spec = changed(made["adapter"], sharing="merged", model_dtype="bfloat16")
    with pytest.raises(UserError, match=r"bfloat16 would lose \d+\.\d % of its change.*pair\.allow_rounding=true"):
        load_pair(spec)
    allowed = load_pair(changed(spec, allow_rounding=True))
    assert 0.001 < allowed.facts["rounding_error"] < 1
    assert {p.dtype for p in allowed.finetuned.module.parameters()} == {torch.bfloat16}


def test_auto_sharing(made, monkeypatch):
    assert load_pair(made["adapter"]).sharing == "merged"
    assert load_pair(changed(made["adapter"], model_dtype="bfloat16")).sharing == "adapter"
    assert plan.plan_pair(changed(made["adapter"], model_quantization="4bit")).sharing == "adapter"
    monkeypatch.setattr(plan, "_free_memory", lambda device_map: 2**20)
    assert load_pair(made["adapter"]).sharing == "adapter"


@pytest.mark.parametrize(
    ("pair", "values", "message"),
    [
        ("adapter", {"sharing": "separate"}, "pair.sharing=separate is for full models"),
        ("full", {"sharing": "merged"}, "pair.sharing=merged is for adapters"),
        ("full", {"sharing": "adapter"}, "pair.sharing=adapter is for adapters"),
        ("adapter", {"sharing": "merged", "model_quantization": "8bit"}, "quantised weights"),
    ],
)
def test_sharing_that_does_not_fit_is_refused(made, pair, values, message):
    with pytest.raises(UserError, match=message):
        load_pair(changed(made[pair], **values))


@pytest.mark.parametrize(("pair", "said", "found"), [("adapter", "model", "adapter"), ("full", "adapter", "model")])
def test_kind_that_contradicts_the_files_is_refused(made, pair, said, found):
    variant = made[pair].finetuned.model_copy(update={"kind": said})
    with pytest.raises(UserError, match=rf"(?s){said}.*{found}"):
        load_pair(changed(made[pair], finetuned=variant))


def test_nan_weights_are_refused_by_name(tmp_path, made):
    shutil.copytree(made["full"].model.id, tmp_path / "broken")
    path = tmp_path / "broken" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight .*NaN"):
        load_pair(changed(made["full"], finetuned=VariantSpec(id=str(tmp_path / "broken"))))


def test_foreign_base_name_only_warns(tmp_path, made):
    shutil.copytree(made["adapter"].finetuned.id, tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "org/Elsewhere-1B"}))
    pair = load_pair(changed(made["adapter"], finetuned=VariantSpec(id=str(tmp_path / "a"))))
    assert any("elsewhere-1b" in w for w in pair.facts["warnings"])


def test_fingerprint_without_weights_is_the_loaded_pairs(made, monkeypatch):
    for spec in (
        made["adapter"],
        made["full"],
        changed(made["adapter"], sharing="adapter"),
        changed(made["adapter"], null_pair="dtype"),
    ):
        assert pair_fingerprint(spec) == load_pair(spec).fingerprint


def test_fingerprint_speaks_of_content_not_of_places(tmp_path, made):
    spec = made["adapter"]
    shutil.copytree(spec.model.id, tmp_path / "base")
    shutil.copytree(spec.finetuned.id, tmp_path / "moved")
    moved = changed(spec, model_id=str(tmp_path / "base"), finetuned=VariantSpec(id=str(tmp_path / "moved")))
    assert pair_fingerprint(moved) == pair_fingerprint(spec)
    save_adapter(tmp_path / "moved", tiny_model(), seed=9)
    assert pair_fingerprint(moved) != pair_fingerprint(spec)


@pytest.mark.parametrize(
    "values",
    [
        {"model_dtype": "bfloat16"},
        {"model_attn_implementation": "eager"},
        {"model_chat_template": "{{ messages }}"},
        {"sharing": "adapter"},
        {"null_pair": "identical"},
        {"null_pair": "dtype"},
    ],
)
def test_fingerprint_changes_with_what_determines_numbers(made, values):
    assert pair_fingerprint(changed(made["adapter"], **values)) != pair_fingerprint(made["adapter"])


def test_template_of_the_finetuned_model_serves_a_base_without_one(tmp_path, made):
    base = tiny_model()
    save_model(tmp_path / "base", base, tiny_tokenizer(chat_template=None))
    save_model(tmp_path / "ft", perturbed(base, 1, 0.05), tiny_tokenizer())
    spec = PairSpec(
        model=ModelSpec(name="t", id=str(tmp_path / "base"), device_map="cpu"),
        finetuned=VariantSpec(id=str(tmp_path / "ft")),
        organism="t",
    )
    pair = load_pair(spec)
    assert pair.rules.chat_template == CHAT_TEMPLATE
    assert any("chat template" in w for w in pair.facts["warnings"])
    assert load_pair(made["full"]).rules.chat_template is None


def test_chat_template_option_is_a_file_or_text(tmp_path, made):
    path = tmp_path / "t.jinja"
    path.write_text("{{ messages }}")
    assert load_pair(changed(made["full"], model_chat_template=str(path))).rules.chat_template == "{{ messages }}"
    with pytest.raises(UserError, match=r"model\.chat_template=nowhere\.jinja"):
        load_pair(changed(made["full"], model_chat_template="nowhere.jinja"))
