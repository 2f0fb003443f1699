"""What a folder of a model, adapter or tokenizer must hold: which of its files count, and whether they are whole."""

import fnmatch
import json
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from diffing.core.errors import UserError
from diffing.core.files import read_json
from diffing.core.suggest import did_you_mean

What = Literal["model", "adapter", "tokenizer"]
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
MODEL_WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_LONGEST_HEADER = 100_000_000  # bytes; the format allows no more
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*")
_VOCABULARY = (
    "tokenizer.json",
    "tokenizer.model*",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
    "spiece.model",
    "sentencepiece*.model",
)
_TOKENIZER = (
    *_VOCABULARY,
    "tokenizer*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)


def wanted_files(names: Iterable[str], what: What, with_code: bool) -> list[str]:
    """The files that are read, out of all names of one folder (no sub-folders), sorted.

    An `adapter_config.json` makes the folder an adapter's. Weights are the standard safetensors files
    alone: copies in other formats or precisions are left where they are.
    """
    names = sorted(names)
    wanted = [n for n in names if any(fnmatch.fnmatch(n, p) for p in _TOKENIZER)]
    if what == "tokenizer":
        wanted += [n for n in names if n == CONFIG]
    elif ADAPTER_CONFIG in names:
        wanted += [n for n in names if n in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    else:
        wanted += [n for n in names if n == CONFIG]
        wanted += [MODEL_WEIGHTS] if MODEL_WEIGHTS in names else [n for n in names if n == INDEX or _SHARD.fullmatch(n)]
    if with_code:
        wanted += [n for n in names if n.endswith(".py")]
    return sorted(wanted)


def check_names(names: Iterable[str], what: What, label: str, below: Iterable[str] = ()) -> None:
    """Whether a folder's file names are those of a model, an adapter or a tokenizer.

    Args:
        names: Names of the files in the folder.
        what: What it is to be.
        label: What messages call the folder, such as "The folder ./x".
        below: Sub-folders that do hold a model or an adapter, for the remedy.

    Raises:
        UserError: A configuration, the weights, or the tokenizer is missing.
    """
    names = set(names)
    if what == "tokenizer":
        if not has_vocabulary(names):
            raise UserError(f"{label} holds no tokenizer (no tokenizer.json); name one with model.tokenizer_id.")
        return
    if not names & {CONFIG, ADAPTER_CONFIG}:
        inside = sorted(below)
        hint = f"set subfolder to one of {', '.join(inside[:6])}" if inside else "check the path or id"
        raise UserError(f"{label} is no model: it holds neither {CONFIG} nor {ADAPTER_CONFIG}; {hint}.")
    if ADAPTER_CONFIG in names:
        if ADAPTER_WEIGHTS not in names:
            raise UserError(f"{label} has no {ADAPTER_WEIGHTS}{_instead(names)}.")
    elif MODEL_WEIGHTS not in names and INDEX not in names:
        raise UserError(f"{label} has no {MODEL_WEIGHTS}{_instead(names)}.")


def has_vocabulary(names: Iterable[str]) -> bool:
    """Whether a tokenizer's vocabulary is among file names; settings alone make no tokenizer."""
    return any(fnmatch.fnmatch(n, p) for n in names for p in _VOCABULARY)


def _instead(names: set[str]) -> str:
    """What lies there in place of safetensors, and the way out."""
    pickles = sorted(
        n
        for n in names
        if any(fnmatch.fnmatch(n, p) for p in _PICKLES) and not any(fnmatch.fnmatch(n, p) for p in _NOT_WEIGHTS)
    )
    if pickles:
        return (
            f", only {pickles[0]}, which is never loaded because it can run code; where you trust it, convert it with "
            "transformers or peft (from_pretrained, then save_pretrained writes safetensors)"
        )
    return "; copy it there or fetch the model again"


def check_files(folder: Path, what: What, label: str, with_code: bool, remedy: str) -> None:
    """Whether the files of a folder that `check_names` passed are whole and of a known architecture.

    Args:
        folder: The folder.
        what: What it is to be.
        label: What messages call it.
        with_code: Whether `model.trust_remote_code` is set.
        remedy: What helps against damaged files.

    Raises:
        UserError: A file is damaged or missing, or the architecture needs code that transformers lacks.
    """
    if what == "tokenizer":
        return
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    config = read_json(folder / (ADAPTER_CONFIG if is_adapter else CONFIG), remedy)
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} is corrupt (no JSON object); {remedy}.")
    if not is_adapter:
        _check_architecture(config, label, with_code)
    weights = weight_names(folder, remedy)
    missing = [n for n in weights if not (folder / n).is_file()]
    if missing:
        raise UserError(
            f"{label} lacks {len(missing)} of its {len(weights)} weight files (such as {missing[0]}); {remedy}."
        )
    for name in weights:
        _check_safetensors(folder / name, label, remedy)


def weight_names(folder: Path, remedy: str) -> list[str]:
    """The safetensors files that belong to a folder's model or adapter, whether they are there or not.

    Raises:
        UserError: The index of a model in several files is corrupt; `remedy` says what to do.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return [ADAPTER_WEIGHTS]
    if (folder / MODEL_WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [MODEL_WEIGHTS]
    index = read_json(folder / INDEX, remedy)
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise UserError(f"{folder / INDEX} is corrupt (no weight_map); {remedy}.")
    return sorted({str(shard) for shard in placed.values()})


def _check_safetensors(path: Path, label: str, remedy: str) -> None:
    """Compare the header's offsets with the file's size, without reading a weight."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(min(length, _LONGEST_HEADER)))
        expected = (
            8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        )
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f"{label}: {path.name} is no safetensors file ({size:,} bytes); {remedy}.") from None
    if size != expected:
        raise UserError(f"{label}: {path.name} is damaged ({size:,} bytes instead of {expected:,}); {remedy}.")


def _check_architecture(config: Mapping[str, Any], label: str, with_code: bool) -> None:
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = config.get("model_type")
    if _needs_code(config, kind in CONFIG_MAPPING_NAMES):
        if not with_code:
            raise UserError(
                f"{label} brings its own model code (auto_map in {CONFIG}), which is not run unless you have read it "
                "and set model.trust_remote_code=true."
            )
    elif kind not in CONFIG_MAPPING_NAMES:
        problem = f"model_type {kind}" if kind else "no model_type"
        near = f" ({did_you_mean(kind, CONFIG_MAPPING_NAMES)[:-1]})" if isinstance(kind, str) else ""
        raise UserError(
            f"{label} has {problem} in {CONFIG}, which transformers {__version__} does not know{near}; "
            "update transformers or choose another model."
        )


def _needs_code(config: Mapping[str, Any], is_known: bool) -> bool:
    """Whether transformers has no class for the model; many repositories bring code that it has long since taken in."""
    from transformers.models.auto import modeling_auto as auto

    own = config.get("auto_map")
    if not isinstance(own, dict) or not own.keys() & {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}:
        return False
    known = {
        *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
        *auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(),
    }
    named = config.get("architectures") or []
    return not is_known or (bool(named) and not known & set(named))
