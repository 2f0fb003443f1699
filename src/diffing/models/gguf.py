"""GGUF files: dequantised once to float32 safetensors, so that every later load takes seconds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffing.core.errors import UserError, one_line
from diffing.core.files import build_once, cache_dir, write_json
from diffing.core.progress import say
from diffing.models.hashing import remembered_sha256
from diffing.models.quiet import quiet_transformers

CONVERTER = 1
_UNREADABLE = (ValueError, LookupError, OSError, RuntimeError, ImportError, AttributeError, TypeError)


def converted_folder(name: str, sha256: str) -> Path:
    """Where the converted model of a GGUF file with this hash lies, or will lie."""
    return cache_dir() / "models" / f"{name}-{sha256[:12]}-v{CONVERTER}"


def convert_cached(gguf_file: Path, name: str, card: Mapping[str, Any]) -> Path:
    """Folder with the converted model of `gguf_file`, made on first use.

    Two processes that start together convert once; a killed one leaves nothing that looks whole.

    Args:
        gguf_file: The file.
        name: Short name used in the folder's name.
        card: Facts stored beside the model in `card.json`.

    Raises:
        UserError: The file is not a GGUF model that transformers can read, or the disk refuses.
    """
    if not gguf_file.is_file():
        raise UserError(f"There is no GGUF file {gguf_file}; check model.id.")
    digest = remembered_sha256(gguf_file)
    return build_once(
        converted_folder(name, digest), lambda folder: convert(gguf_file, folder, {**card, "gguf_sha256": digest})
    )


def convert(gguf_file: Path, folder: Path, card: Mapping[str, Any]) -> None:
    """Dequantise `gguf_file` into `folder` (config, tokenizer, float32 safetensors, `card.json`)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say(f"Converting {gguf_file.name} to safetensors (once, about 20 seconds) …")
    where = {
        "pretrained_model_name_or_path": str(gguf_file.parent),
        "gguf_file": gguf_file.name,
        "local_files_only": True,
    }
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(**where)
            loaded: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
            model, info = loaded
    except _UNREADABLE as error:
        raise UserError(
            f"{gguf_file} cannot be read as a GGUF model: {one_line(error)}; give a model folder instead."
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{gguf_file} lacks {len(missing)} of the model's tensors (such as {missing[0]}); fetch it again or give a "
            "model folder instead."
        )
    _forget_quantisation(model)
    with quiet_transformers():
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
    write_json(folder / "card.json", dict(card))


def _forget_quantisation(model: Any) -> None:
    """The weights are plain float32 now; without this `save_pretrained` refuses them."""
    model.hf_quantizer = None
    model.is_quantized = False
    if "quantization_config" in model.config.__dict__:
        del model.config.quantization_config
