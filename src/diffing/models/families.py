"""A tiny random model of any causal language model family in transformers, made offline from its default settings.

Settings are shrunk by their names, the same for all families; `_OWN` holds what names do not tell.
"""

from typing import Any, cast

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from diffing.models.quiet import quiet_transformers

FAMILIES = tuple(dict.fromkeys([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES]))
VOCAB_SIZE = 300
LARGEST = 3_000_000
_SPREAD = 0.2
_WIDTH, _INNER, _HEADS, _HEAD_WIDTH, _N_LAYERS = 32, 48, 4, 8, 3

_SIZES: tuple[tuple[int, tuple[str, ...]], ...] = (
    (_WIDTH, (
        "hidden_size", "n_embd", "d_model", "dim", "embed_dim", "embedding_size", "emb_dim", "word_embed_proj_dim",
        "dim_model", "width", "out_hidden_size", "projection_dim", "lru_width", "attention_hidden_size",
        "hidden_size_per_layer_input", "encoder_hidden_size", "cross_attention_hidden_size",
    )),
    (_INNER, (
        "intermediate_size", "n_inner", "ffn_dim", "d_inner", "moe_intermediate_size", "dim_ff", "mlp_dim",
        "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim",
        "ffn_hidden_size", "shared_intermediate_size", "expert_ffn_hidden_size", "feed_forward_size", "dff",
        "intermediate_size_mlp", "block_ff_dim", "dense_intermediate_size",
    )),
    (_HEADS, (
        "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
        "linear_num_value_heads", "mamba_n_heads", "rotary_dim",
    )),
    (2, (
        "num_key_value_heads", "num_kv_heads", "multi_query_group_num", "kv_n_heads", "linear_num_key_heads",
        "num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_k", "encoder_layers",
        "vision_layers", "depth", "n_local_layers",
    )),
    (4, ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")),
    (1, ("n_shared_experts", "num_shared_experts", "n_group", "topk_group", "first_k_dense_replace", "n_groups")),
    (_HEAD_WIDTH, (
        "head_dim", "attention_head_dim", "d_kv", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim",
        "linear_key_head_dim", "linear_value_head_dim", "global_head_dim", "swa_head_dim", "query_pre_attn_scalar",
        "head_size", "kv_channels",
    )),
    (_N_LAYERS, (
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers", "layers",
    )),
    (16, ("q_lora_rank", "kv_lora_rank", "sliding_window", "window_size", "attention_window_size", "mamba_d_state")),
    (128, (
        "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length", "max_sequence_length",
        "max_target_positions", "seq_length", "original_max_position_embeddings",
    )),
    (VOCAB_SIZE, ("vocab_size", "vocab_size_per_layer_input")),
)  # fmt: skip
_BY_NAME = {name: size for size, names in _SIZES for name in names}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_HALF_MROPE = _MROPE | {"mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
_MIXED = ["sliding_attention", "full_attention", "full_attention"]
_ZAMBA = {
    "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
    "num_key_value_heads": 4,
}
_OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {
        "num_expert_group": 1,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    },
    "cohere_compass": {"text_config": {"layer_types": _MIXED}},
    "deepseek_v2": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "intermediate_size": 48,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0],
    },
    "glm46v": {"text_config": {"rope_parameters": _MROPE}},
    "glm4v": {"text_config": {"rope_parameters": _MROPE}},
    "glm4v_moe": {"text_config": {"rope_parameters": _HALF_MROPE}},
    "glm_ocr": {"text_config": {"rope_parameters": _MROPE}},
    "glmga": {"text_config": {"rope_parameters": _MROPE}},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hunyuan_vl": {"text_config": {"head_dim": 8}},
    "kimi_linear": {
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention"] * 2 + ["full_attention"],
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "mamba2": {"head_dim": 16},
    "ministral": {"head_dim": 8},
    "mistral4": {"num_key_value_heads": 4},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 16},
    "olmo_hybrid": {"layer_types": ["linear_attention", "linear_attention", "full_attention"]},
    "paddleocr_vl": {"text_config": {"rope_parameters": _MROPE}},
    "qwen2_5_omni_thinker": {"text_config": {"rope_parameters": _MROPE}},
    "qwen2_5_vl": {"text_config": {"rope_parameters": _MROPE}},
    "qwen2_vl": {"text_config": {"rope_parameters": _MROPE}},
    "reformer": {"attn_layers": ["local", "local", "local"], "axial_pos_embds": False, "hidden_size": 32},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": _ZAMBA | {"n_mamba_heads": 2},
    "zamba2": _ZAMBA | {"n_mamba_heads": 4, "mamba_headdim": 16, "kv_channels": 8},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_family(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model of `family` of about three layers and width 32, in float32 and eval mode.

    Args:
        family: A `model_type` of transformers; one of `FAMILIES`.
        seed: Determines every weight; the global random state is left alone.

    Raises:
        ValueError: Its settings cannot be shrunk by name to fewer than `LARGEST` parameters.
        Exception: Whatever transformers raises for a family that cannot be built here.
    """
    config = tiny_config(family)
    auto = cast(
        Any, AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText
    )
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            n_parameters = sum(p.numel() for p in auto.from_config(config, dtype=torch.float32).parameters())
        if n_parameters > LARGEST:
            raise ValueError(f"{family} still has {n_parameters} parameters with its known settings shrunk")
        torch.manual_seed(seed)
        model = cast(PreTrainedModel, auto.from_config(config, dtype=torch.float32))
        _spread_(model)
    return model.eval().requires_grad_(False)


def tiny_config(family: str) -> PretrainedConfig:
    """The default settings of a family, shrunk; settings of parts (text, vision) likewise."""
    with quiet_transformers():
        made = CONFIG_MAPPING[family]
        return made(**_shrunk(made, _OWN.get(family, {})))


def _shrunk(made: type[PretrainedConfig], own: dict[str, Any]) -> dict[str, Any]:
    """Settings that differ from the defaults, by name; a part's own settings under its name."""
    default = made()
    values = default.to_dict()
    found: dict[str, Any] = {}
    for name, value in values.items():
        part = vars(default).get(name)
        if isinstance(part, PretrainedConfig):
            found[name] = _shrunk(type(part), own.get(name, {})) | {"model_type": part.model_type}
        elif (small := _small(name, value, values)) is not None:
            found[name] = small
    return found | {k: v for k, v in own.items() if not isinstance(v, dict) or k not in found}


def _small(name: str, value: object, values: dict[str, Any]) -> object:
    """The value a setting gets in a tiny model; None: as it is."""
    if isinstance(value, bool):
        return True if name in ("is_decoder", "causal") else None
    if isinstance(value, int):
        if name == "num_key_value_heads" and value == values.get("num_attention_heads"):
            return _HEADS
        if name.endswith("token_id"):
            return 2 if name == "eos_token_id" else 0
        return _BY_NAME.get(name)
    if isinstance(value, float):
        return _SPREAD if name in ("initializer_range", "init_std") else None
    if isinstance(value, list) and name in ("layer_types", "mlp_layer_types"):
        return value[:_N_LAYERS]
    if isinstance(value, dict) and "mrope_section" in value:
        half = int(_HEAD_WIDTH * (value.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1)) // 2
        return value | {"mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}
    return None


def _spread_(model: PreTrainedModel) -> None:
    """Make constant parameters (norm weights, biases) differ, so that leaving one out shows."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() > 1 and parameter.dim() == 1:
            parameter.data.add_(torch.randn(parameter.shape) * 0.1)
