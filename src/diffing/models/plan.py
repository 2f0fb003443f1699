"""What loading a pair would do, and its fingerprint, decided without reading any weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from diffing.core.config import fingerprint
from diffing.core.errors import UserError
from diffing.core.specs import Dtype, ModelSpec, PairSpec, Sharing, VariantSpec
from diffing.core.templates import TemplateRules
from diffing.models.adapters import is_adapter, read_config
from diffing.models.loading import load_tokenizer, n_layers
from diffing.models.merged_folder import merged_model
from diffing.models.sources import ResolvedSource, resolve
from diffing.models.templates import has_tokenizer, template_rules

PairKind = Literal["adapter", "model", "identical", "dtype"]
_MEMORY_MARGIN = 2**30


@dataclass(frozen=True)
class PairPlan:
    """A pair resolved to files and decisions.

    Args:
        base: Where the base's files are; with an adapter merged into it for `null_pair=seeds`.
        finetuned: Where the finetuned model's are; None for a null pair.
        kind: What the finetuned side is.
        sharing: How weights are held; for null pairs "separate".
        dtypes: Of the base and of the finetuned model.
        tokenizer: The base's.
        finetuned_tokenizer: The finetuned model's; the same object where it ships none.
        rules: Chat template rules.
        fingerprint: Of everything that determines numbers; names contents, never places.
        base_identity: Of the base's files without any adapter: pairs that share it have nulls in common.
        warnings: What a reader should know.
        n_layers: Decoder layers of the base, as its configuration says.
        spec: What was asked for.
    """

    base: ResolvedSource
    finetuned: ResolvedSource | None
    kind: PairKind
    sharing: Sharing
    dtypes: tuple[Dtype, Dtype]
    tokenizer: PreTrainedTokenizerBase
    finetuned_tokenizer: PreTrainedTokenizerBase
    rules: TemplateRules
    fingerprint: str
    base_identity: str
    warnings: tuple[str, ...]
    n_layers: int
    spec: PairSpec


def plan_pair(spec: PairSpec) -> PairPlan:
    """Resolve sources, tell adapter from model, choose the sharing, and fingerprint the pair.

    Raises:
        UserError: A source cannot be had, or options contradict what is there or each other.
    """
    model = spec.model
    base = resolve(model.id or model.name, model.revision, model.subfolder, "model", model.trust_remote_code)
    tokenizer = load_tokenizer(model, base)
    variant = spec.finetuned if spec.null_pair not in ("identical", "dtype") else None
    finetuned = _finetuned(variant, model, base)
    base_identity = fingerprint(base.identity)
    if spec.base_adapter is not None:
        base = merged_model(model, base, resolve_variant(spec.base_adapter, model))
    kind = _kind(spec, variant, finetuned)
    sharing = _sharing(spec, kind, base, finetuned)
    theirs = _finetuned_tokenizer(model, tokenizer, finetuned if kind == "model" else None)
    rules, warnings = template_rules(model, tokenizer, theirs, finetuned.folder if finetuned else None)
    dtypes = (model.dtype, _other(model.dtype) if kind == "dtype" else model.dtype)
    key = {
        "base": base.identity,
        "finetuned": finetuned.identity if finetuned else None,
        "kind": kind,
        "sharing": sharing,
        "dtypes": dtypes,
        "attention": model.attn_implementation,
        "quantization": model.quantization,
        "tokenizers": (tokenizer_hash(tokenizer), tokenizer_hash(theirs)),
        "rules": (rules.chat_template, rules.end_of_turn, rules.has_thinking),
        "null_pair": spec.null_pair,
    }
    if spec.amplification is not None:
        _refuse_unscalable(spec, kind, finetuned)
        if not spec.amplification.is_plain:
            key["amplification"] = spec.amplification.rules
    return PairPlan(
        base,
        finetuned,
        kind,
        sharing,
        dtypes,
        tokenizer,
        theirs,
        rules,
        fingerprint(key),
        base_identity,
        warnings,
        n_layers(model, base),
        spec,
    )


def plan_facts(plan: PairPlan) -> dict[str, Any]:
    """What manifests say of a pair before any weights are read: sources, dtype, sharing, warnings."""
    spec = plan.spec
    model = spec.model
    return {
        "base": {"name": model.name, **_source_facts(model.id or model.name, plan.base)},
        "finetuned": _source_facts(spec.finetuned.id, plan.finetuned) if plan.finetuned and spec.finetuned else None,
        "organism": spec.organism,
        "variant": spec.variant,
        "kind": plan.kind,
        "base_identity": plan.base_identity,
        "null_pair": spec.null_pair,
        "dtype": {"base": plan.dtypes[0], "finetuned": plan.dtypes[1]},
        "quantization": model.quantization,
        "sharing": plan.sharing,
        "warnings": list(plan.warnings),
    }


def _source_facts(source_id: str, source: ResolvedSource) -> dict[str, Any]:
    return {
        "id": source.id if source.origin == "merged" else source_id,
        "revision": source.revision,
        "subfolder": source.subfolder,
        "content_hash": source.content_hash,
        "origin": source.origin,
        "card": source.card,
    }


def pair_fingerprint(spec: PairSpec) -> str:
    """The fingerprint that `load_pair(spec)` would have, in about the time it takes to read the tokenizer."""
    return plan_pair(spec).fingerprint


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a tokenizer's content: vocabulary, rules, special tokens and chat template."""
    fast = isinstance(tokenizer, PreTrainedTokenizerFast)
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) if fast else tokenizer.get_vocab()
    kept = {k: v for k, v in backend.items() if k not in ("truncation", "padding")}
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    return fingerprint({"tokenizer": kept, "special": special, "chat_template": tokenizer.chat_template})


def resolve_variant(variant: VariantSpec, model: ModelSpec) -> ResolvedSource:
    """Where the finetuned model's files are."""
    what = "adapter" if variant.kind == "adapter" else "model"
    return resolve(variant.id, variant.revision, variant.subfolder, what, model.trust_remote_code)


def _finetuned_tokenizer(
    model: ModelSpec, base: PreTrainedTokenizerBase, finetuned: ResolvedSource | None
) -> PreTrainedTokenizerBase:
    """The full finetune's own tokenizer; the base's object where it ships none or the same."""
    if finetuned is None or not has_tokenizer(finetuned.folder):
        return base
    own = load_tokenizer(model.model_copy(update={"tokenizer_id": None}), finetuned)
    return base if tokenizer_hash(own) == tokenizer_hash(base) else own


def _finetuned(variant: VariantSpec | None, model: ModelSpec, base: ResolvedSource) -> ResolvedSource | None:
    if variant is None:
        return None
    found = resolve_variant(variant, model)
    if not variant.merged:
        return found
    if not is_adapter(found.folder):
        raise UserError(f"merged=true is for adapters, and {variant.id} is a full model; drop it.")
    return merged_model(model, base, found)


def _kind(spec: PairSpec, variant: VariantSpec | None, finetuned: ResolvedSource | None) -> PairKind:
    if variant is None or finetuned is None:
        return "dtype" if spec.null_pair == "dtype" else "identical"
    found = "adapter" if is_adapter(finetuned.folder) else "model"
    if variant.kind not in ("auto", "adapter" if variant.merged else found):
        holds = "an adapter_config.json" if found == "adapter" else "no adapter_config.json"
        raise UserError(
            f"Finetuned model {variant.id} is said to be of kind {variant.kind} but holds {holds}; "
            f"set kind={found} or kind=auto, or correct its subfolder."
        )
    return found


def _sharing(spec: PairSpec, kind: PairKind, base: ResolvedSource, finetuned: ResolvedSource | None) -> Sharing:
    asked, model = spec.sharing, spec.model
    if kind in ("identical", "dtype"):
        return "separate"
    if kind == "model" or finetuned is None:
        if asked not in ("auto", "separate"):
            raise UserError(f"pair.sharing={asked} is for adapters, and {_name(spec)} is a full model; use separate.")
        return "separate"
    if asked == "separate":
        raise UserError(
            f"pair.sharing=separate is for full models, and {_name(spec)} is an adapter; use adapter or merged."
        )
    mergeable = model.quantization == "none" and not read_config(finetuned.folder, _name(spec)).get("target_parameters")
    if asked == "merged" and not mergeable:
        raise UserError(
            f"pair.sharing=merged cannot be had for {_name(spec)}: quantised weights and adapters of bare parameters "
            "are not merged; use pair.sharing=adapter."
        )
    if asked != "auto":
        return asked
    fits = mergeable and model.dtype == "float32" and _fits_twice(base.folder, model.device_map)
    return "merged" if fits else "adapter"


def _refuse_unscalable(spec: PairSpec, kind: PairKind, finetuned: ResolvedSource | None) -> None:
    """Raises UserError: The pair has no change that a factor could scale."""
    if finetuned is None:
        raise UserError(f"There is no change to amplify: null_pair={spec.null_pair} compares the base with itself.")
    if kind == "model" and spec.model.quantization != "none":
        raise UserError(
            f"{_name(spec)} is a full model in {spec.model.quantization} weights, whose change cannot "
            "be scaled; use model.quantization=none, or drop organism.amplification."
        )
    if kind == "adapter" and read_config(finetuned.folder, _name(spec)).get("use_dora"):
        raise UserError(
            f"Adapter {_name(spec)} is a DoRA, whose change of the weights is not proportional to any factor; "
            "drop organism.amplification, or merge it into a full model and name that as organism.finetuned."
        )


def _name(spec: PairSpec) -> str:
    return spec.finetuned.id if spec.finetuned else "the base"


def _fits_twice(folder: Path, device_map: str) -> bool:
    """Whether two float32 copies of the weights and a gibibyte for work fit into the memory now free."""
    needed = 2 * 4 * _n_weights(folder) + _MEMORY_MARGIN
    free = _free_memory(device_map)
    return free is not None and needed < free


def _n_weights(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 (not a dict)
                total += torch.Size(handle.get_slice(key).get_shape()).numel()
    return total


def _free_memory(device_map: str) -> int | None:
    """Bytes free on the device that will be used; None where that cannot be told."""
    if device_map != "cpu" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _other(dtype: Dtype) -> Dtype:
    return "bfloat16" if dtype == "float32" else "float32"
