"""How likely a model finds texts that were written after prompts."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffing.data.batches import plan_batches
from diffing.models.handle import ModelHandle

_LOGIT_BYTES = 2**26
_BATCH_TOKENS = 2048


@torch.no_grad()
def continuation_log_probs(
    handle: ModelHandle,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    done: Callable[[int], None] = lambda n: None,
) -> list[np.ndarray]:
    """Log-probability in nats of each new token of each text, float64.

    Args:
        handle: The model that reads.
        texts: (ids of the prompt, ids of what follows) each; the prompt has at least one token.
        done: Told the number of tokens, as they are read.
    """
    lengths = [len(prompt) + len(new) for prompt, new in texts]
    found: list[np.ndarray] = [np.zeros(0)] * len(texts)
    for places in plan_batches(lengths, _BATCH_TOKENS):
        longest = max(lengths[i] for i in places)
        ids_BT = torch.zeros(len(places), longest, dtype=torch.long)
        for row, i in enumerate(places):
            ids_BT[row, : lengths[i]] = torch.tensor([*texts[i][0], *texts[i][1]])
        states_BTX, are_logits = _states(handle, ids_BT, [lengths[i] for i in places])
        for row, i in enumerate(places):
            start = len(texts[i][0])
            states_NX = states_BTX[row, start - 1 : lengths[i] - 1]
            found[i] = _log_probs(handle, states_NX, are_logits, ids_BT[row, start : lengths[i]])
            done(lengths[i])
    return found


def _states(handle: ModelHandle, ids_BT: Tensor, lengths: Sequence[int]) -> tuple[Tensor, bool]:
    """What the head is given, or, where the read-out is not known, logits."""
    if handle.transform is None:
        return handle.forward_logits(ids_BT, lengths), True
    return handle.final_hidden(ids_BT, lengths), False


def _log_probs(handle: ModelHandle, states_NX: Tensor, are_logits: bool, next_N: Tensor) -> np.ndarray:
    step = max(1, _LOGIT_BYTES // (4 * handle.vocab_size))
    parts = []
    for start in range(0, len(next_N), step):
        rows_NX = states_NX[start : start + step]
        logits_NV = rows_NX if are_logits else handle.logits(rows_NX)
        next_here = next_N[start : start + step].to(logits_NV.device)
        chosen_N = logits_NV.gather(1, next_here[:, None]).squeeze(1)
        parts.append((chosen_N.double() - logits_NV.double().logsumexp(-1)).cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros(0)
