"""From the hidden state to logits: the head, and the transform an architecture applies to what the head gives.

Soft caps and logit scales matter: leaving them out moves logits of Gemma-2 by 45 and of Cohere by 75.
The transform is measured, not assumed: the head's output is replaced by known numbers of real size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

FAKE_SIZE = 60.0
FAKE_TOLERANCE = 1e-4
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_SCALES = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)
_REAL_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class LogitTransform:
    """z ↦ c·tanh(s·z / c) with soft cap c (None: none) and scale s.

    Args:
        softcap: c, in logits.
        scale: s.
    """

    softcap: float | None = None
    scale: float = 1.0

    def __call__(self, raw: Tensor) -> Tensor:
        """Transform raw logits of any shape."""
        scaled = raw if self.scale == 1.0 else raw * self.scale
        return scaled if self.softcap is None else torch.tanh(scaled / self.softcap) * self.softcap


def head_logits(hidden_ND: Tensor, head: nn.Module, transform: LogitTransform) -> Tensor:
    """Logits in float32, shape (N, V): the head in its own dtype, the transform in float32."""
    return transform(head(hidden_ND).float())


def find_transform(module: PreTrainedModel, head: nn.Module, probe_ids_BT: Tensor) -> LogitTransform | None:
    """The transform between the head's output and the model's `.logits`, or None if none of the candidates fits.

    The head's output is replaced by random numbers in ±60 (float32 whatever the model's dtype) and what comes
    out as logits is compared with each candidate of the config.
    """
    fake, seen = _through(module, head, probe_ids_BT)
    if seen.shape != fake.shape:
        return None
    fits = (c for c in _candidates(module.config) if _relative(c(fake), seen) < FAKE_TOLERANCE)
    return next(fits, None)


def reproduces(
    transform: LogitTransform, module: PreTrainedModel, head: nn.Module, hidden_BTD: Tensor, ids_BT: Tensor
) -> bool:
    """Whether transform(head(hidden)) gives the model's own logits on `ids_BT`, within its dtype's rounding."""
    with torch.no_grad():
        own = module(input_ids=ids_BT, use_cache=False).logits.float()
        ours = head_logits(hidden_BTD, head, transform).to(own.device)
    return ours.shape == own.shape and _relative(ours, own) < tolerance(hidden_BTD.dtype)


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative difference between two ways to the same logits that rounding in `dtype` explains."""
    return _REAL_TOLERANCE.get(dtype, 4e-2)


def _through(module: PreTrainedModel, head: nn.Module, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The fake logits and what the model makes of them."""
    made: list[Tensor] = []

    def replace(m: nn.Module, args: Any, output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        fake = (torch.rand(output.shape, generator=generator) * 2 - 1) * FAKE_SIZE
        made.append(fake.to(output.device))
        return made[-1]

    with _hooked(head, replace), torch.no_grad():
        seen = module(input_ids=ids_BT, use_cache=False).logits
    return made[-1], seen.float().to(made[-1].device)


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _candidates(config: PretrainedConfig) -> list[LogitTransform]:
    """Transforms that the numbers in the config allow; the plain one first."""
    values = {**config.to_dict(), **config.get_text_config(decoder=True).to_dict()}
    softcaps = [None, *(float(values[k]) for k in _SOFTCAPS if _usable(values.get(k)))]
    scales = [1.0, *(float(values[k]) for k in _SCALES if _usable(values.get(k)))]
    scales += [1.0 / float(values[k]) for k in _DIVISORS if _usable(values.get(k))]
    return [LogitTransform(c, s) for c, s in product(softcaps, scales)]


def _usable(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value; infinite when anything is not finite."""
    gap = ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item()
    return gap if gap == gap else float("inf")
