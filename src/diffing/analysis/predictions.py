"""What each model expects next at every token of one text, and what the other makes of the same tokens."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from diffing.analysis.divergences import log_probs
from diffing.analysis.logit_rows import LogitRows
from diffing.analysis.one_text import corpus_of
from diffing.data.batches import make_batch
from diffing.data.sequences import TokenSequence
from diffing.models.pair import ModelPair

_ROWS = {"cpu": 32, "cuda": 256}


@dataclass(frozen=True, eq=False)
class ModelPredictions:
    """One model's predictions; row t speaks of the prediction made at token t.

    Args:
        ids_TK: Its likeliest tokens, best first.
        probabilities_TK: Their probabilities.
        other_probabilities_TK: What the other model gives the same tokens.
        next_probability_T: Of the token that does follow; None at the last.
        next_rank_T: Its rank, 1 being the likeliest; None at the last.
    """

    ids_TK: Int64[np.ndarray, "T K"]
    probabilities_TK: Float32[np.ndarray, "T K"]
    other_probabilities_TK: Float32[np.ndarray, "T K"]
    next_probability_T: tuple[float | None, ...]
    next_rank_T: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Both models' predictions on one text, over the ids that both vocabularies share."""

    base: ModelPredictions
    finetuned: ModelPredictions


@torch.no_grad()
def top_predictions(pair: ModelPair, sequence: TokenSequence, k: int = 10) -> Predictions:
    """The k likeliest next tokens of each model at every token, and how likely the token that follows was.

    Probabilities are those of float32 log-softmax. Vocabularies that differ are cut to the shared ids and both
    distributions renormalised, as `kl` does. The logits of a few tokens at a time exist, unless a model's read-out
    could not be verified and its own forward pass is used.

    Args:
        pair: Both models.
        sequence: The text.
        k: Tokens listed at each position; at most as many as are shared.

    Raises:
        UserError: The text has tokens that the two vocabularies do not share.
    """
    batch = make_batch(corpus_of(pair, sequence), [0], pad_id=0)
    base, finetuned = LogitRows.of(pair.base, batch), LogitRows.of(pair.finetuned, batch)
    n, step = len(sequence.ids), _ROWS.get(finetuned.device.type, _ROWS["cpu"])
    parts: list[tuple[_Part, _Part]] = []
    for start in range(0, n, step):
        stop = min(start + step, n)
        logits_NV = finetuned.logits(start, stop)
        ids = pair.vocabulary.shared_ids
        ids = None if ids is None else ids.to(logits_NV.device)
        both = log_probs(logits_NV, base.logits(start, stop).to(logits_NV.device), 1.0, ids)
        next_N = batch.ids_BT[0, start + 1 : stop + 1].to(logits_NV.device)
        targets_N = next_N if ids is None else torch.searchsorted(ids, next_N)
        lp, lq = both.finetuned_NV, both.base_NV
        parts.append((_part(lq, lp, targets_N, ids, k), _part(lp, lq, targets_N, ids, k)))
    return Predictions(_joined([b for b, _ in parts]), _joined([f for _, f in parts]))


@dataclass(frozen=True, eq=False)
class _Part:
    """A few rows of `ModelPredictions`; the last row of a text has no next token."""

    ids_NK: np.ndarray
    probabilities_NK: np.ndarray
    other_probabilities_NK: np.ndarray
    next_probability_M: np.ndarray
    next_rank_M: np.ndarray


def _part(lp_NV: Tensor, other_NV: Tensor, targets_M: Tensor, ids: Tensor | None, k: int) -> _Part:
    top = lp_NV.topk(min(k, lp_NV.shape[-1]), -1)
    with_next_MV = lp_NV[: len(targets_M)]
    next_M1 = with_next_MV.gather(-1, targets_M[:, None])
    found = (
        top.indices if ids is None else ids[top.indices],
        top.values.exp(),
        other_NV.gather(-1, top.indices).exp(),
        next_M1.squeeze(-1).exp(),
        1 + (with_next_MV > next_M1).sum(-1),
    )
    return _Part(*(x.cpu().numpy() for x in found))


def _joined(parts: list[_Part]) -> ModelPredictions:
    return ModelPredictions(
        np.concatenate([p.ids_NK for p in parts]),
        np.concatenate([p.probabilities_NK for p in parts]),
        np.concatenate([p.other_probabilities_NK for p in parts]),
        (*np.concatenate([p.next_probability_M for p in parts]).tolist(), None),
        (*np.concatenate([p.next_rank_M for p in parts]).tolist(), None),
    )
