"""PEFT adapters: reading their files, and attaching them to a base with proof that everything landed."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from diffing.core.errors import UserError, one_line
from diffing.core.files import read_json
from diffing.models.quiet import quiet_transformers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME = "default"
_KINDS = ("LORA", "LOHA", "LOKR")
_PREFIX = "base_model.model."


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG).is_file()


def read_config(folder: Path, label: str) -> dict[str, Any]:
    """The adapter's settings as written.

    Args:
        folder: The adapter's folder.
        label: What messages call the adapter.

    Raises:
        UserError: They are missing, corrupt, or of a kind that cannot be switched off without a trace.
    """
    config = read_json(folder / CONFIG, "check organism.finetuned and its subfolder")
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind not in _KINDS:
        raise UserError(f"Adapter {label} is of kind {kind}; only {', '.join(_KINDS)} are supported.")
    if config.get("bias", "none") != "none":
        raise UserError(
            f"Adapter {label} also trains biases of the base (bias={config['bias']}), which cannot be told apart from "
            "the base's own; merge it into a full model and name that as organism.finetuned."
        )
    if config.get("alora_invocation_tokens"):
        raise UserError(f"Adapter {label} acts only after invocation tokens (aLoRA), which is not supported.")
    return config


def read_weights(folder: Path, label: str) -> dict[str, Tensor]:
    """The adapter's tensors, on the CPU.

    Raises:
        UserError: There is no safetensors file, it is damaged, or a value in it is NaN or infinite.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        pickle = ", only adapter_model.bin, which is never loaded because it can run code; convert it to safetensors."
        raise UserError(f"Adapter {label} has no {WEIGHTS}{pickle if pickled else '; check its id.'}")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{WEIGHTS} of adapter {label} is damaged ({one_line(error, 80)}); fetch it again.") from None
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"Tensor {name} of adapter {label} holds NaN or infinite values; the adapter is damaged.")
    return weights


def attach(module: PreTrainedModel, folder: Path, label: str) -> PeftModel:
    """Put an adapter into `module` (in place) and prove that every tensor of its file landed.

    Raises:
        UserError: The adapter does not fit this base, or carries base weights of its own.
    """
    read_config(folder, label)
    weights = read_weights(folder, label)
    base_state = module.state_dict()
    with quiet_transformers():
        peft_model = _inject(module, folder, label)
        expected = _state(peft_model)
        _check_fit(weights, expected, base_state, label)
        loaded = peft_model.load_adapter(
            str(folder),
            NAME,
            torch_device=str(module.device),
            key_mapping=getattr(module, "_checkpoint_conversion_mapping", {}) or None,
        )
        landed = _state(peft_model)
    foreign = [k for k in loaded.unexpected_keys if _base_name(k) not in base_state]
    _refuse_unmatched(foreign, list(loaded.missing_keys), len(weights), label)
    for name in sorted(weights.keys() & landed.keys()):
        if not torch.equal(landed[name].float().cpu(), weights[name].float()):
            raise UserError(f"Tensor {name} of adapter {label} was not taken over by PEFT; update peft or report it.")
    return peft_model.eval().requires_grad_(False)


def _inject(module: PreTrainedModel, folder: Path, label: str) -> PeftModel:
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        return PeftModel(module, config, adapter_name=NAME)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"Adapter {label} does not fit {type(module).__name__}: {one_line(error)}; check model.id and the adapter."
        ) from None


def _state(peft_model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors as PEFT would write them, without the base's embeddings."""
    return get_peft_model_state_dict(peft_model, adapter_name=NAME, save_embedding_layers=False)


def _base_name(key: str) -> str:
    return key.removeprefix(_PREFIX).replace(".base_layer.", ".")


def _check_fit(
    weights: dict[str, Tensor], expected: dict[str, Tensor], base_state: dict[str, Tensor], label: str
) -> None:
    for name in sorted(weights.keys() & expected.keys()):
        if weights[name].shape != expected[name].shape:
            raise UserError(
                f"Adapter {label} does not fit the base: {name} is {tuple(weights[name].shape)}, the base needs "
                f"{tuple(expected[name].shape)}; check model.id and the adapter."
            )
    copies = [k for k in sorted(weights.keys() - expected.keys()) if _base_name(k) in base_state]
    for name in copies:
        _check_copy(name, weights[name], base_state[_base_name(name)], label)
    foreign = sorted(weights.keys() - expected.keys() - set(copies))
    missing = sorted(expected.keys() - weights.keys())
    # With both, PEFT may still know the file's names as older names of the same modules.
    if not (foreign and missing) or any("lora_" not in k for k in missing):
        _refuse_unmatched(foreign, missing, len(weights), label)


def _check_copy(name: str, tensor: Tensor, own: Tensor, label: str) -> None:
    """Loading a base weight from the adapter's file would change the base too: only an equal copy is harmless."""
    if tensor.shape != own.shape or not torch.equal(tensor.to(own.dtype), own.cpu()):
        verb = "resizes" if tensor.shape != own.shape else "replaces"
        raise UserError(
            f"Adapter {label} {verb} the base weight {_base_name(name)}, which cannot be switched off; "
            "merge it into a full model and name that as organism.finetuned."
        )


def _refuse_unmatched(foreign: list[str], missing: list[str], n_tensors: int, label: str) -> None:
    if foreign:
        raise UserError(
            f"{len(foreign)} of {n_tensors} tensors of adapter {label} match no module of the base "
            f"(such as {foreign[0]}); it was made for another model, check model.id."
        )
    if missing:
        raise UserError(
            f"Adapter {label} has no weights for {len(missing)} tensors that its {CONFIG} asks for "
            f"(such as {missing[0]}); it is incomplete or was made for another model."
        )
