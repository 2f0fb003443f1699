"""The models' own noise: one model against itself, read in two batch shapes.

Rounding depends on the shape of a batch. What one model differs from itself by is the floor below
which a difference between two models means nothing; in bf16 it is near 5e-3 nats.
"""

import numpy as np
import torch

from diffing.analysis.divergences import delta_nll, divergences, log_probs
from diffing.analysis.logit_rows import LogitRows
from diffing.data.batches import make_batch
from diffing.data.tokens import Corpus
from diffing.models.pair import ModelHandle

_BLOCK = 32


@torch.no_grad()
def noise_floor(handle: ModelHandle, corpus: Corpus, n_sequences: int, pad_id: int) -> dict[str, float]:
    """Mean of each metric between the model read one sequence at a time and all at once.

    Args:
        handle: The model.
        corpus: Where the sequences come from; they are spread evenly over it.
        n_sequences: How many; none gives no floor.
        pad_id: Id used for padding.

    Returns:
        Means over tokens of absolute values by metric name; empty without sequences.
    """
    picks = np.unique(np.linspace(0, len(corpus.sequences) - 1, n_sequences).astype(int)).tolist()
    if not picks:
        return {}
    together = LogitRows.of(handle, make_batch(corpus, picks, pad_id))
    found: dict[str, list[np.ndarray]] = {}
    first = 0
    for i in picks:
        alone = LogitRows.of(handle, make_batch(corpus, [i], pad_id))
        ids_T = torch.from_numpy(corpus.sequences[i].ids.astype(np.int64)).to(alone.device)
        for start in range(0, len(ids_T), _BLOCK):
            stop = min(start + _BLOCK, len(ids_T))
            both = log_probs(alone.logits(start, stop), together.logits(first + start, first + stop))
            values = _values(both.finetuned_NV, both.base_NV, ids_T[start + 1 : stop + 1])
            for name, value in values.items():
                found.setdefault(name, []).append(value.double().cpu().numpy())
        first += len(ids_T)
    return {name: float(np.concatenate(v).mean()) for name, v in found.items()}


def _values(lp: torch.Tensor, lq: torch.Tensor, next_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    result = divergences(lp, lq)[0]
    n = len(next_ids)
    return {
        "kl": result.kl_N.abs(),
        "reverse_kl": result.reverse_kl_N.abs(),
        "js": result.js_N.abs(),
        "delta_nll": delta_nll(lp[:n], lq[:n], next_ids).abs(),
        "top1_agree": result.top_finetuned_N == result.top_base_N,
    }
