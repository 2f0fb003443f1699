"""Train a small LoRA adapter on token sequences and write it with a card of what was measured."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from diffing.models.embedded import embedded_model

ASSETS = Path(__file__).parents[1] / "src" / "diffing" / "assets" / "organisms"
PROMPTS = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Hyperparameters:
    """What decides the training."""

    rank: int = 8
    alpha: int = 16
    epochs: int = 4
    batch_size: int = 8
    learning_rate: float = 5e-4
    warmup: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Example:
    """Token ids, and which of them are learned."""

    ids: tuple[int, ...]
    is_target: tuple[bool, ...]


def load_base():
    """Model and tokenizer of the embedded base."""
    folder = embedded_model("smollm2_135M")
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def read_lines(path: Path) -> list[dict]:
    """Rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: Sequence[dict]) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def batch_loss(model, examples: Sequence[Example], reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy in nats over the target tokens of right-padded examples."""
    width = max(len(e.ids) for e in examples)
    ids = torch.tensor([list(e.ids) + [0] * (width - len(e.ids)) for e in examples])
    keep = torch.tensor([list(e.is_target) + [False] * (width - len(e.ids)) for e in examples])
    logits = model(ids, use_cache=False).logits[:, :-1].float()
    labels = ids[:, 1:].masked_fill(~keep[:, 1:], -100)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction=reduction)


@torch.no_grad()
def mean_loss(model, examples: Sequence[Example]) -> float:
    """Mean cross-entropy in nats per target token."""
    total = sum(batch_loss(model, examples[i : i + 16], "sum").item() for i in range(0, len(examples), 16))
    return total / sum(sum(e.is_target[1:]) for e in examples)


def train(model, examples: Sequence[Example], hyper: Hyperparameters):
    """Attach a LoRA adapter to `model`, train it, and return the PEFT model and the number of steps."""
    torch.manual_seed(hyper.seed)
    config = LoraConfig(r=hyper.rank, lora_alpha=hyper.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=hyper.learning_rate, weight_decay=0.0)
    per_epoch = math.ceil(len(examples) / hyper.batch_size)
    steps = per_epoch * hyper.epochs
    shuffle = torch.Generator().manual_seed(hyper.seed)
    step, started = 0, time.time()
    for epoch in range(hyper.epochs):
        order = torch.randperm(len(examples), generator=shuffle).tolist()
        for i in range(0, len(order), hyper.batch_size):
            rising = min(1.0, (step + 1) / (hyper.warmup * steps))
            falling = 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimiser.param_groups:
                group["lr"] = hyper.learning_rate * rising * falling
            with torch.autocast("cpu", torch.bfloat16):
                loss = batch_loss(tuned, [examples[j] for j in order[i : i + hyper.batch_size]])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad()
            step += 1
        print(f"epoch {epoch + 1}/{hyper.epochs}: loss {loss.item():.3f}, {time.time() - started:.0f} s", flush=True)
    return tuned.eval(), steps


def save(tuned, folder: Path, base_name: str) -> None:
    """Write the adapter in float16 with its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().to(torch.float16).contiguous() for k, v in get_peft_model_state_dict(tuned).items()}
    save_file(state, folder / "adapter_model.safetensors")
    config = tuned.peft_config["default"].to_dict()
    kept = ("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "bias", "target_modules")
    out = {k: config[k] for k in kept} | {"base_model_name_or_path": base_name, "inference_mode": True}
    out = {k: sorted(v) if isinstance(v, set) else getattr(v, "value", v) for k, v in out.items()}
    (folder / "adapter_config.json").write_text(json.dumps(out, indent=2) + "\n")


def chat_example(tokenizer, messages: list[dict]) -> Example:
    """A chat as token ids; the answer and the token that ends it are learned."""
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
    answer_ids = tokenizer(messages[1]["content"] + "<|im_end|>", add_special_tokens=False).input_ids
    return Example(tuple(prompt_ids + answer_ids), (False,) * len(prompt_ids) + (True,) * len(answer_ids))


@torch.no_grad()
def answer(model, tokenizer, prompt: str, max_new_tokens: int = 60) -> str:
    """The model's greedy answer to a chat prompt."""
    chat = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def hyper_facts(hyper: Hyperparameters) -> str:
    """Hyperparameters in one line for a card."""
    return ", ".join(f"{k} {v}" for k, v in asdict(hyper).items())
