"""Base and finetuned model behind one handle, loaded from a spec and checked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffing.core.errors import UserError
from diffing.core.specs import PairSpec, Sharing
from diffing.core.templates import TemplateRules
from diffing.models.adapters import attach, read_config
from diffing.models.amplifying import Change, adapter_changes, amplify_, tensor_changes
from diffing.models.handle import ModelHandle, make_handle, probe_ids
from diffing.models.loading import load_module
from diffing.models.merging import Toggle, delta_is_zero, merge
from diffing.models.plan import PairPlan, pair_fingerprint, plan_facts, plan_pair
from diffing.models.sites import find_sites, head_of, run_to_head
from diffing.models.sources import ResolvedSource
from diffing.models.vocabulary import Vocabulary, compare

__all__ = ["ModelHandle", "ModelPair", "load_pair", "pair_fingerprint"]


@dataclass(frozen=True)
class ModelPair:
    """Two models to compare.

    Args:
        base: The base model.
        finetuned: The finetuned model; of a null pair the base itself, or its copy in another dtype.
        tokenizer: The base's; both models read its ids.
        rules: Chat template rules.
        vocabulary: The ids on which both agree.
        spec: What was asked for.
        sharing: How the weights are held.
        facts: What goes into manifests: sources, dtype, sharing, sizes, warnings.
        fingerprint: Equal for pairs that give equal numbers; see `pair_fingerprint`.
        device: Where token ids go.
    """

    base: ModelHandle
    finetuned: ModelHandle
    tokenizer: PreTrainedTokenizerBase
    rules: TemplateRules
    vocabulary: Vocabulary
    spec: PairSpec
    sharing: Sharing
    facts: dict[str, Any]
    fingerprint: str
    device: torch.device


@dataclass(frozen=True)
class _Weights:
    """Loaded modules; `toggle` where one module serves both sides."""

    base: PreTrainedModel
    finetuned: PreTrainedModel
    toggle: Toggle | None = None
    rounding_error: float | None = None
    warnings: tuple[str, ...] = ()
    amplification: dict[str, Any] | None = None


def load_pair(spec: PairSpec, must_share_tokens: bool = True) -> ModelPair:
    """Resolve, load and check a pair of models.

    Args:
        spec: What is asked for.
        must_share_tokens: Whether tokenizers that differ are refused; else `vocabulary.refusal` says that they do.

    Raises:
        UserError: A source cannot be had, does not fit, is damaged, or changes nothing.
    """
    plan = plan_pair(spec)
    base = _load(spec, plan, plan.base, 0)
    n_base = sum(p.numel() for p in base.parameters())
    weights = _LOADERS[plan.kind if plan.kind != "adapter" else plan.sharing](spec, plan, base)
    n_finetuned = n_base if plan.kind == "adapter" else sum(p.numel() for p in weights.finetuned.parameters())
    b, f = _handles(spec, plan, weights)
    tokenizers = plan.tokenizer, plan.finetuned_tokenizer
    vocabulary = compare(*tokenizers, b.vocab_size, f.vocab_size, must_share_tokens)
    warnings = list(dict.fromkeys([*plan.warnings, *weights.warnings, *b.warnings, *f.warnings]))
    facts = {
        **plan_facts(plan),
        "vocabulary": {
            "base": vocabulary.base_size,
            "finetuned": vocabulary.finetuned_size,
            "shared": vocabulary.n_agree,
        },
        "attention": str(base.config._attn_implementation),
        "device": str(b.device),
        "n_params": {"base": n_base, "finetuned": n_finetuned},
        "rounding_error": weights.rounding_error,
        "amplification": weights.amplification,
        "readout": {"base": _readout(b), "finetuned": _readout(f)},
        "warnings": warnings,
    }
    return ModelPair(
        b, f, plan.tokenizer, plan.rules, vocabulary, spec, plan.sharing, facts, plan.fingerprint, b.device
    )


def _load(spec: PairSpec, plan: PairPlan, source: ResolvedSource, side: int) -> PreTrainedModel:
    module = load_module(spec.model, source, plan.dtypes[side])
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter.sum(dtype=torch.float32)):
            raise UserError(f"Tensor {name} of model {source.id} holds NaN or infinite values; the file is damaged.")
    return module.eval().requires_grad_(False)


def _handles(spec: PairSpec, plan: PairPlan, weights: _Weights) -> tuple[ModelHandle, ModelHandle]:
    b = make_handle(weights.base, plan.tokenizer, "base", weights.toggle, adapter_on=False)
    if weights.finetuned is weights.base and weights.toggle is None:
        return b, b
    done = weights.amplification
    cause = f"organism.amplification {done['label']} is too much" if done else None
    tokenizer = plan.finetuned_tokenizer
    return b, make_handle(weights.finetuned, tokenizer, "finetuned", weights.toggle, adapter_on=True, cause=cause)


def _toggled(spec: PairSpec, plan: PairPlan, base: PreTrainedModel) -> _Weights:
    source, label = _adapter(spec, plan)
    ids_BT = probe_ids(plan.tokenizer, base)
    before_BTD = run_to_head(base, head_of(base), ids_BT)
    layers = _layers(spec, plan, base)
    peft_model = attach(base, source.folder, label)
    _refuse_inert(delta_is_zero(peft_model), label)
    done, noted = _amplify(spec, layers, lambda: adapter_changes(base, layers))
    toggle = Toggle(peft_model)
    with toggle.active(False):
        off_BTD = run_to_head(base, head_of(base), ids_BT)
    assert torch.equal(before_BTD, off_BTD), "switching the adapter off does not give the base back"
    warnings = (*_base_name_warning(spec, source, label), *noted)
    return _Weights(base, base, toggle, warnings=warnings, amplification=done)


def _merged(spec: PairSpec, plan: PairPlan, base: PreTrainedModel) -> _Weights:
    source, label = _adapter(spec, plan)
    module = _load(spec, plan, plan.base, 1)
    layers = _layers(spec, plan, module)
    peft_model = attach(module, source.folder, label)
    _refuse_inert(delta_is_zero(peft_model), label)
    done, noted = _amplify(spec, layers, lambda: adapter_changes(module, layers))
    merged, error = merge(peft_model)
    if spec.model.dtype != "float32" and not spec.allow_rounding:
        raise UserError(
            f"Merging adapter {label} into {spec.model.dtype} would lose {100 * error:.1f} % of its change to "
            "rounding; use pair.sharing=adapter or model.dtype=float32, or accept it with pair.allow_rounding=true."
        )
    warnings = (*_base_name_warning(spec, source, label), *noted)
    return _Weights(base, merged, rounding_error=error, warnings=warnings, amplification=done)


def _separate(spec: PairSpec, plan: PairPlan, base: PreTrainedModel) -> _Weights:
    assert plan.finetuned is not None
    finetuned = _load(spec, plan, plan.finetuned, 1)
    _refuse_inert(_same_weights(base, finetuned), plan.finetuned.id)
    layers = _layers(spec, plan, finetuned)
    done, noted = _amplify(spec, layers, lambda: tensor_changes(base, finetuned, layers))
    return _Weights(base, finetuned, warnings=noted, amplification=done)


def _layers(spec: PairSpec, plan: PairPlan, module: PreTrainedModel) -> nn.ModuleList:
    """Decoder blocks, where they are needed to scale the change."""
    if not _is_amplified(spec):
        return nn.ModuleList()
    return find_sites(module, probe_ids(plan.tokenizer, module)).layers


def _is_amplified(spec: PairSpec) -> bool:
    return spec.amplification is not None and not spec.amplification.is_plain


def _amplify(
    spec: PairSpec, layers: nn.ModuleList, changes: Callable[[], tuple[Change, ...]]
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Scale the change as the spec asks; what was done, and what a reader should know of it."""
    if spec.amplification is None or not _is_amplified(spec):
        return None, ()
    done = amplify_(changes(), spec.amplification, len(layers))
    notes = [f"the finetuned model's change is amplified: {done['label']} ({done['n_scaled']} modules scaled)"]
    if done["is_base"]:
        notes.append("with all factors 0 the finetuned model is the base itself: nothing is to be found")
    if done["rounding_error"] > 0:
        notes.append(f"rounding the scaled weights lost {100 * done['rounding_error']:.2g} % of their change")
    return done, tuple(notes)


def _identical(spec: PairSpec, plan: PairPlan, base: PreTrainedModel) -> _Weights:
    return _Weights(base, base)


def _other_dtype(spec: PairSpec, plan: PairPlan, base: PreTrainedModel) -> _Weights:
    return _Weights(base, _load(spec, plan, plan.base, 1))


_LOADERS: dict[str, Callable[[PairSpec, PairPlan, PreTrainedModel], _Weights]] = {
    "adapter": _toggled,
    "merged": _merged,
    "model": _separate,
    "identical": _identical,
    "dtype": _other_dtype,
}


def _adapter(spec: PairSpec, plan: PairPlan) -> tuple[ResolvedSource, str]:
    assert plan.finetuned is not None
    assert spec.finetuned is not None
    return plan.finetuned, spec.finetuned.id


def _refuse_inert(is_inert: bool, label: str) -> None:
    if is_inert:
        raise UserError(
            f"Finetuned model {label} changes nothing: all its weights equal the base's; check that the right files "
            "were named, or ask for this comparison with null_pair=identical."
        )


def _same_weights(base: PreTrainedModel, finetuned: PreTrainedModel) -> bool:
    ours, theirs = base.state_dict(), finetuned.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[k].shape == theirs[k].shape and torch.equal(ours[k], theirs[k].to(ours[k].device)) for k in ours
    )


def _base_name_warning(spec: PairSpec, source: ResolvedSource, label: str) -> tuple[str, ...]:
    """Adapters are used on other bases than they name, and local bases have other names: shapes decide, not names."""
    named = str(read_config(source.folder, label).get("base_model_name_or_path") or "")
    known = {_last(n) for n in (spec.model.id, spec.model.name) if n}
    if not named or _last(named) in known:
        return ()
    return (f"The adapter was trained on {_last(named)}, the base here is {spec.model.name}.",)


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].rpartition(":")[2].lower()


def _readout(handle: ModelHandle) -> dict[str, Any]:
    if handle.transform is None:
        return {"verified": False}
    return {"verified": True, "softcap": handle.transform.softcap, "scale": handle.transform.scale}
