"""Contrastive decoding: the next token from two models' logits, the difference between them amplified."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffing.core.errors import UserError
from diffing.models.handle import ModelHandle


@dataclass(frozen=True, eq=False)
class Amplified:
    """Two models in lock-step: log p + α (log p − log q), p of the finetuned model, q of the base.

    α is each prompt's; 0 is the finetuned model, −1 the base.

    Args:
        finetuned: Gives p.
        base: Gives q.
        epsilon: Only tokens of probability p_v ≥ ε · max p may be drawn; 0: all.
        shared_ids: Ascending ids on which the vocabularies agree, where they differ; no other is drawn.

    Source: Li et al., Contrastive Decoding (2023), section 3.
    """

    finetuned: ModelHandle
    base: ModelHandle
    epsilon: float = 0.1
    shared_ids: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise UserError(f"epsilon is {self.epsilon}; give a share of the largest probability, 0 to 1.")


class Candidates(NamedTuple):
    """Logits of the tokens that may be drawn, float64, and their ascending ids."""

    logits_K: Tensor
    ids_K: Tensor


def amplified_logits(
    finetuned_V: Tensor, base_V: Tensor, alpha: float, epsilon: float, shared_ids: Tensor | None = None
) -> Candidates:
    """Logits of log p + α (log p − log q); what is constant over tokens, such as a normaliser, is left out.

    Args:
        finetuned_V: Logits whose softmax is p.
        base_V: Logits whose softmax is q.
        alpha: α.
        epsilon: Share of the largest p that a token needs.
        shared_ids: Ascending ids of the tokens to choose from; None: all.

    Raises:
        UserError: Something is not finite.
    """
    ids_K = torch.arange(len(finetuned_V)) if shared_ids is None else shared_ids.cpu()
    if epsilon > 0:
        own_K = finetuned_V if shared_ids is None else finetuned_V[ids_K]
        ids_K = ids_K[own_K.double() >= own_K.max().double() + math.log(epsilon)]
    f, b = finetuned_V[ids_K].double(), base_V[ids_K].double()
    if alpha == -1:
        mixed_K = b
    elif alpha == 0:
        mixed_K = f
    else:
        mixed_K = (f + alpha * (f - b)).masked_fill(torch.isneginf(f) & torch.isneginf(b), -torch.inf)
    if torch.isnan(mixed_K).any() or not torch.isfinite(mixed_K.max()):
        raise UserError(f"alpha={alpha} gives NaN or infinite logits; use a smaller alpha, or model.dtype=float32.")
    return Candidates(mixed_K, ids_K)
