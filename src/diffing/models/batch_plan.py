"""Which texts grow together: few batches, few steps, and no more memory than a budget.

A function of the texts and models alone, so that nothing depends on a machine's load.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch

from diffing.models.batch_reading import cache_facts
from diffing.models.handle import ModelHandle

_MOST_ROWS = 32
_MOST_ROWS_ACCELERATOR = 128
_STEP_ROWS = 8
_STEP_ROWS_ACCELERATOR = 64
_BUDGET = 2**30


def plan_rows(handles: Sequence[ModelHandle], lengths: Sequence[int], n_new: int) -> list[list[int]]:
    """Places of the texts that make up each batch.

    Args:
        handles: The models that read in lock-step.
        lengths: Tokens of each prompt.
        n_new: Tokens that may be written after each.
    """
    on_cpu = handles[0].device.type == "cpu"
    most = _MOST_ROWS if on_cpu else _MOST_ROWS_ACCELERATOR
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    limits = [min(most, rows_in_memory(handles, lengths[i] + n_new)) for i in order]
    step = _STEP_ROWS if on_cpu else _STEP_ROWS_ACCELERATOR
    ends = cheapest_cuts([lengths[i] for i in order], limits, n_new, step)
    return [order[start:end] for start, end in pairwise([0, *ends])]


def rows_in_memory(handles: Sequence[ModelHandle], n_positions: int) -> int:
    """Rows whose caches and logits fit the budget; at least one.

    Args:
        handles: The models that read in lock-step.
        n_positions: Of each row, prompt and new tokens.
    """
    size = 0
    for handle in handles:
        logits = handle.vocab_size * (torch.float32.itemsize + handle.module.dtype.itemsize)
        size += n_positions * cache_facts(handle).bytes_per_token + logits
    return max(1, _BUDGET // size)


def cheapest_cuts(lengths: Sequence[int], limits: Sequence[int], n_new: int, step: int) -> list[int]:
    """Where to cut ascending lengths into batches, as ends, so that reading and writing them costs least.

    A batch takes as many steps as tokens are written, and one more for each token by which its longest prompt passes
    its shortest; a step costs as much as `step` rows in it.

    Args:
        lengths: Of the prompts, ascending.
        limits: Rows of a batch that ends with this prompt.
        n_new: Tokens written after each prompt.
        step: Cost of a step beside that of a row.
    """
    best = [0] + [2**62] * len(lengths)
    start_of = [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        for start in range(max(0, end - limits[end - 1]), end):
            n_steps = n_new + lengths[end - 1] - lengths[start]
            cost = best[start] + n_steps * (step + end - start)
            if cost < best[end]:
                best[end], start_of[end] = cost, start
    ends = [len(lengths)] if lengths else []
    while ends and start_of[ends[0]]:
        ends.insert(0, start_of[ends[0]])
    return ends
