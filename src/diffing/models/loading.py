"""From files on disk to a transformers module or tokenizer; nothing here reaches for a network."""

import importlib.util
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from diffing.core.errors import UserError, one_line
from diffing.core.progress import warn
from diffing.core.specs import Dtype, ModelSpec
from diffing.models.folders import ADAPTER_CONFIG, check_names
from diffing.models.quiet import quiet_transformers
from diffing.models.sources import ResolvedSource, resolve

# What transformers raises for files or options it cannot work with.
_REFUSALS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)


def load_module(spec: ModelSpec, source: ResolvedSource, dtype: Dtype) -> PreTrainedModel:
    """Load a causal language model for inference; every weight comes from its files.

    Args:
        spec: Device map, attention, quantisation and trust; of the base, and used for a full finetune too.
        source: Where the files are.
        dtype: Of the weights.

    Raises:
        UserError: The options cannot be met here, or files and architecture do not fit together.
    """
    _refuse_adapter(source)
    device_map = _device_map(spec.device_map)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "device_map": device_map}
    if spec.attn_implementation:
        options["attn_implementation"] = spec.attn_implementation
    if spec.quantization != "none":
        options["quantization_config"] = _quantization(spec, dtype)
    common = {"local_files_only": True, "trust_remote_code": spec.trust_remote_code}
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(source.folder, **common)
            loaded, info = _auto_class(config, source).from_pretrained(
                source.folder,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **common,
                **options,
            )
    except torch.OutOfMemoryError:
        raise UserError(
            f"Model {source.id} does not fit into the memory of {device_map} in {dtype}; "
            "set model.dtype=bfloat16, model.quantization=4bit or model.device_map=cpu."
        ) from None
    except _REFUSALS as error:
        raise UserError(f"Model {source.id} cannot be loaded: {one_line(error)}{_option_hint(spec)}.") from error
    _check_complete(info, source)
    return cast(PreTrainedModel, loaded).eval().requires_grad_(False)


def n_layers(spec: ModelSpec, source: ResolvedSource) -> int:
    """Decoder layers, as the model's configuration says.

    Raises:
        UserError: The configuration cannot be read or does not say.
    """
    return _configured(spec, source, "num_hidden_layers")


def stream_width(spec: ModelSpec, source: ResolvedSource) -> int:
    """Width of the residual stream, as the model's configuration says.

    Raises:
        UserError: The configuration cannot be read or does not say.
    """
    return _configured(spec, source, "hidden_size")


def _configured(spec: ModelSpec, source: ResolvedSource, name: str) -> int:
    """A number of the text decoder's configuration."""
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(
                source.folder, local_files_only=True, trust_remote_code=spec.trust_remote_code
            )
        return int(getattr(config.get_text_config(decoder=True), name))
    except _REFUSALS as error:
        raise UserError(f"Model {source.id} cannot be loaded: {one_line(error)}.") from error


def load_tokenizer(spec: ModelSpec, source: ResolvedSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `spec.tokenizer_id`, or the one beside the model's files.

    Raises:
        UserError: There is none, it cannot be read, or it gives no character offsets.
    """
    if spec.tokenizer_id:
        source = resolve(spec.tokenizer_id, what="tokenizer", trust_remote_code=spec.trust_remote_code)
    else:
        _refuse_adapter(source)
        names = [p.name for p in source.folder.iterdir()]
        check_names(names, "tokenizer", f"Model {source.id}")
    tokenizer = _read_tokenizer(spec, source)
    if not tokenizer.is_fast:
        raise UserError(
            f"The tokenizer of {source.id} ({type(tokenizer).__name__}) is no fast one and gives no character offsets; "
            "name one with a tokenizer.json by model.tokenizer_id."
        )
    if not tokenizer("a b", add_special_tokens=False)["input_ids"]:
        raise UserError(
            f"The tokenizer of {source.id} turns text into no tokens; check its files or model.tokenizer_id."
        )
    tokenizer.name_or_path = source.id
    return tokenizer


def _read_tokenizer(spec: ModelSpec, source: ResolvedSource) -> PreTrainedTokenizerBase:
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(
                source.folder, local_files_only=True, trust_remote_code=spec.trust_remote_code
            )
    except Exception as error:
        # The tokenizers library raises bare `Exception` for a file that it cannot read.
        if type(error) is not Exception and not isinstance(error, _REFUSALS):
            raise
        raise UserError(
            f"The tokenizer of {source.id} cannot be loaded: {one_line(error)}; name another with model.tokenizer_id."
        ) from error


def _refuse_adapter(source: ResolvedSource) -> None:
    if (source.folder / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{source.id} holds an adapter ({ADAPTER_CONFIG}), not a full model; name its base as model.id and the "
            "adapter as organism.finetuned."
        )


def _auto_class(config: PreTrainedConfig, source: ResolvedSource) -> Any:
    """Text models first; a vision-language model without a text class is loaded whole."""
    own = getattr(config, "auto_map", None) or {}
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in own:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise UserError(
        f"Model {source.id} is of type {config.model_type}, which is no causal language model; "
        "choose one that predicts the next token."
    )


def _device_map(asked: str) -> str:
    has_cuda = torch.cuda.is_available()
    if asked == "auto":
        return "cuda" if has_cuda else "cpu"
    if asked.startswith("cuda") and not has_cuda:
        raise UserError(f"model.device_map={asked} needs a CUDA device and none is visible; use model.device_map=cpu.")
    return asked


def _quantization(spec: ModelSpec, dtype: Dtype) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization={spec.quantization} needs bitsandbytes, which is not installed; "
            "run pip install 'diffing[quantization]' or use model.quantization=none."
        )
    if not torch.cuda.is_available():
        raise UserError(
            f"model.quantization={spec.quantization} needs a CUDA device and none is visible; "
            "use model.quantization=none."
        )
    if spec.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
    )


def _option_hint(spec: ModelSpec) -> str:
    """Which of the set options may be to blame."""
    asked = [f"model.attn_implementation={spec.attn_implementation}"] if spec.attn_implementation else []
    asked += [f"model.device_map={spec.device_map}"] if spec.device_map not in ("auto", "cpu", "cuda") else []
    return f"; check {' and '.join(asked)}" if asked else "; check its files"


def _check_complete(info: dict[str, Any], source: ResolvedSource) -> None:
    """Refuse weights that transformers would have made up; name those that it left aside."""
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, needed = mismatched[0]
        raise UserError(
            f"{len(mismatched)} tensors of model {source.id} have other shapes than its config.json says (such as "
            f"{name}: {tuple(found)} instead of {tuple(needed)}); its files do not belong together."
        )
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{len(missing)} tensors are missing from the weights of model {source.id} (such as {missing[0]}) and "
            "would be random; the files are incomplete or not those of a causal language model."
        )
    if unused := sorted(info["unexpected_keys"]):
        warn(f"{len(unused)} tensors of model {source.id} have no place in its architecture (such as {unused[0]}).")
