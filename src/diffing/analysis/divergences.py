"""Divergences between two next-token distributions, from logits, in float32 and natural units.

With p the finetuned and q the base model's distribution at one position:
KL = Σ p (log p − log q), reverse KL = Σ q (log q − log p), JS = ½ Σ (p log(p/m) + q log(q/m)), m = (p+q)/2.
All are written so that identical logits give exactly 0.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_LARGEST_SHIFT = 1 - 2**-23
_TINY = 1e-37
_FLOOR = -1e4


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of both models over the same ids, and the mass lost by restricting to these ids."""

    finetuned_NV: Tensor
    base_NV: Tensor
    mass_cut_finetuned_N: Tensor | None = None
    mass_cut_base_N: Tensor | None = None


@dataclass(frozen=True)
class Divergences:
    """Per-position quantities, in nats (shares and booleans aside)."""

    kl_N: Tensor
    reverse_kl_N: Tensor
    js_N: Tensor
    entropy_finetuned_N: Tensor
    entropy_base_N: Tensor
    top_finetuned_N: Tensor
    top_base_N: Tensor


def log_probs(
    finetuned_NV: Float[Tensor, "N V1"],
    base_NV: Float[Tensor, "N V2"],
    temperature: float = 1.0,
    shared_ids: Int[Tensor, " V"] | None = None,
) -> LogProbs:
    """Log-softmax of both models' logits, cut to the shared ids and renormalised when these are given.

    Args:
        finetuned_NV: Logits of the finetuned model, float32.
        base_NV: Logits of the base model, float32.
        temperature: Divides both logits.
        shared_ids: Ids that mean the same token in both vocabularies; None when all do.
    """
    if temperature != 1.0:
        finetuned_NV, base_NV = finetuned_NV / temperature, base_NV / temperature
    if shared_ids is None:
        return LogProbs(_normalised(finetuned_NV), _normalised(base_NV))
    cut_f, lost_f = _cut(finetuned_NV, shared_ids)
    cut_b, lost_b = _cut(base_NV, shared_ids)
    return LogProbs(cut_f, cut_b, lost_f, lost_b)


def _cut(logits_NV: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    kept = logits_NV.index_select(-1, ids)
    lost = -torch.expm1(kept.logsumexp(-1) - logits_NV.logsumexp(-1))
    return _normalised(kept), lost.clamp_min(0)


def _normalised(logits_NV: Tensor) -> Tensor:
    """Log-softmax; ids a model masks with −inf get the floor, so that a difference of two is 0 and not NaN."""
    return logits_NV.log_softmax(-1).clamp_min_(_FLOOR)


def divergences(lp: Float[Tensor, "N V"], lq: Float[Tensor, "N V"]) -> tuple[Divergences, Tensor, Tensor]:
    """Divergences of each row, with the terms p·log(p/q) and the change p − q, both [N, V].

    Args:
        lp: Log-probabilities of the finetuned model.
        lq: Log-probabilities of the base model.
    """
    p, q = lp.exp(), lq.exp()
    log_ratio = lp - lq
    change = p - q
    kl_terms = p * log_ratio
    reverse = -torch.linalg.vecdot(q, log_ratio)
    result = Divergences(
        kl_N=kl_terms.sum(-1),
        reverse_kl_N=reverse,
        js_N=_jensen_shannon(p, q, change),
        entropy_finetuned_N=-torch.linalg.vecdot(p, lp),
        entropy_base_N=-torch.linalg.vecdot(q, lq),
        top_finetuned_N=lp.argmax(-1),
        top_base_N=lq.argmax(-1),
    )
    return result, kl_terms, change


def smoothed_log_ratio(both: LogProbs, floor: float) -> Tensor:
    """log((p + ε) / (q + ε)), [N, V]: the log-ratio of two distributions, near 0 where both are far below ε.

    Of a token that neither model expects, log p − log q is large and says nothing: its logit is hardly trained. Exactly
    0 where the two are equal; ε = 0 gives log p − log q.

    Args:
        both: Log-probabilities of the finetuned and the base model.
        floor: ε.
    """
    lp, lq = both.finetuned_NV, both.base_NV
    return lp - lq if floor == 0 else ((lp.exp() + floor) / (lq.exp() + floor)).log()


def _jensen_shannon(p: Tensor, q: Tensor, change: Tensor) -> Tensor:
    """With s = (p − q)/(p + q): p = m(1+s), q = m(1−s), so JS = ½ Σ p·log1p(s) + q·log1p(−s)."""
    shift = (change / (p + q).clamp_min(_TINY)).clamp_(-_LARGEST_SHIFT, _LARGEST_SHIFT)
    return 0.5 * (torch.linalg.vecdot(p, shift.log1p()) + torch.linalg.vecdot(q, (-shift).log1p_()))


def delta_nll(lp: Float[Tensor, "N V"], lq: Float[Tensor, "N V"], next_ids_N: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """NLL of the next token under the finetuned model minus that under the base; negative: likelier now."""
    column = next_ids_N[:, None]
    return (lq.gather(-1, column) - lp.gather(-1, column)).squeeze(-1)
