"""Tiny random models, tokenizers and adapters for tests: real transformers and PEFT folders of a few kilobytes."""

import copy
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
from tokenizers import decoders as token_decoders
from tokenizers import models as token_models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from diffing.core.specs import ModelSpec, PairSpec, VariantSpec
from diffing.models.quiet import quiet_transformers

END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("a", "n"), ("e", "r"), ("o", "n"), ("Ġ", "a"))
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256 + len(_MERGES)

_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_OWN: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 30.0, "sliding_window": 16},
    "cohere": {"logit_scale": 0.0625},
    "granite": {"logits_scaling": 8.0, "residual_multiplier": 0.7, "embedding_multiplier": 3.0},
    "gpt2": {"n_embd": 32, "n_inner": 48, "n_layer": 3, "n_head": 4, "n_positions": 256},
}
ARCHITECTURES = tuple(_OWN)


def tiny_model(
    architecture: str = "llama", seed: int = 0, vocab_size: int = VOCAB_SIZE, std: float = 0.3, **config: object
) -> PreTrainedModel:
    """A random causal language model of three layers and width 32, in float32 and eval mode.

    Args:
        architecture: One of `ARCHITECTURES` (any `model_type` of transformers whose config takes the common names).
        seed: Determines every weight; the global random state is left alone.
        vocab_size: Rows of the embedding and of the head.
        std: Spread of the weights; large enough by default for logits that soft caps and scales act on.
        config: Further settings of the architecture's config, taking precedence.
    """
    values = dict(_OWN.get(architecture, {})) if architecture == "gpt2" else {**_COMMON, **_OWN.get(architecture, {})}
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    built = AutoConfig.for_model(
        architecture, **{**values, **ids, "vocab_size": vocab_size, "initializer_range": std, **config}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(built, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def tiny_tokenizer(
    extra_tokens: tuple[str, ...] = (), chat_template: str | None = CHAT_TEMPLATE, adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a handful of merges, three special tokens and a ChatML-like template.

    Args:
        extra_tokens: Ordinary tokens added at the end of the vocabulary.
        chat_template: Jinja text, or None for a tokenizer without a template.
        adds_bos: Whether encoding a text puts `<|endoftext|>` in front.
    """
    names = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in _MERGES)]
    model = token_models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=list(_MERGES))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = token_decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS])
    tokenizer.add_tokens(list(extra_tokens))
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT if adds_bos else None,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[START_OF_TURN],
    )
    wrapped.chat_template = chat_template
    return wrapped


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Write a model folder (safetensors); with tokenizer files when a tokenizer is given."""
    with quiet_transformers():
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return folder


def save_adapter(
    folder: Path,
    base: PreTrainedModel,
    seed: int = 1,
    scale: float = 0.05,
    rank: int = 4,
    target_modules: str | tuple[str, ...] = "all-linear",
    modules_to_save: tuple[str, ...] = (),
) -> Path:
    """Write a PEFT LoRA folder for `base` with random factors; `base` itself is left alone.

    Args:
        folder: Where `adapter_config.json` and `adapter_model.safetensors` go.
        base: The model it is for.
        seed: Determines the factors.
        scale: Standard deviation of the entries of A and B; 0 makes an adapter that changes nothing.
        rank: Rank of the factors.
        target_modules: Names of modules, or "all-linear" (every linear layer but the head).
        modules_to_save: Modules stored whole beside the factors, moved by `scale`.
    """
    has_conv1d = any(isinstance(m, Conv1D) for m in base.modules())
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
        modules_to_save=list(modules_to_save) or None,
        fan_in_fan_out=has_conv1d,
        task_type="CAUSAL_LM",
    )
    generator = torch.Generator().manual_seed(seed)
    with quiet_transformers():
        model = get_peft_model(copy.deepcopy(base), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif "modules_to_save" in name:
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * scale)
        model.save_pretrained(str(folder))
    return folder


def save_pair(
    folder: Path, architecture: str = "llama", seed: int = 0, scale: float = 0.05, full: bool = False
) -> PairSpec:
    """Write `folder/base` and `folder/finetuned` and return the spec that names them.

    Args:
        folder: An empty or missing folder.
        architecture: See `tiny_model`.
        seed: Of the base; the finetuned model differs by a random change of size `scale`.
        scale: Spread of the change.
        full: Whether the finetuned model is a full set of weights instead of an adapter.
    """
    base = tiny_model(architecture, seed)
    save_model(folder / "base", base, tiny_tokenizer())
    if full:
        save_model(folder / "finetuned", perturbed(base, seed + 1, scale), tiny_tokenizer())
    else:
        save_adapter(folder / "finetuned", base, seed + 1, scale)
    return PairSpec(
        model=ModelSpec(name=f"tiny_{architecture}", id=str(folder / "base"), device_map="cpu"),
        finetuned=VariantSpec(id=str(folder / "finetuned")),
        organism="tiny",
    )


def perturbed(model: PreTrainedModel, seed: int, scale: float) -> PreTrainedModel:
    """A copy of `model` with normal noise of standard deviation `scale` on every parameter."""
    generator = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(model)
    for parameter in moved.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return moved
