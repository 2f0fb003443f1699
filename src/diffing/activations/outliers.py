"""Tokens whose activation is far larger than all others: attention sinks at any position.

A few of them carry more variance than all other tokens together: in the embedded model a norm of 22,000 where the rest
have 180. Scales, components and dictionaries would describe these tokens and nothing else.
"""

import numpy as np
import torch
from torch import Tensor

from diffing.activations.source import ActivationSource
from diffing.core.layers import Slot

_ENOUGH_ROWS = 4096


def norm_limit(source: ActivationSource, slot: Slot, kept_N: np.ndarray, ratio: float | None) -> float:
    """`ratio` times the median norm of kept tokens at a slot; infinite where `ratio` is None.

    Args:
        source: Where activations come from.
        slot: Which.
        kept_N: Rows of the token table that count.
        ratio: How many times the median is still usual.

    The median is over some thousand tokens of the source's first blocks, always the same ones.
    """
    if ratio is None:
        return float("inf")
    norms: list[Tensor] = []
    n = 0
    for block in source.blocks([slot], _first_blocks(source, kept_N)):
        keep_N = torch.from_numpy(kept_N[block.token_N]).to(block.rows[slot].base_ND.device)
        norm_N = largest_norms(torch.stack([r[keep_N] for r in block.rows[slot]], 1))
        norms.append(norm_N[torch.isfinite(norm_N)].cpu())
        n += len(norms[-1])
    return ratio * float(torch.cat(norms).median()) if n else float("inf")


def _first_blocks(source: ActivationSource, kept_N: np.ndarray) -> list[int]:
    """Blocks that hold enough kept rows."""
    chosen, n = [], 0
    for number, rows in enumerate(source.block_tokens):
        here = int(kept_N[rows].sum())
        if here and n < _ENOUGH_ROWS:
            chosen.append(number)
            n += here
    return chosen


def largest_norms(rows_N2D: Tensor) -> Tensor:
    """max(‖b‖, ‖f‖) of each row, float32."""
    return rows_N2D.float().norm(dim=2).amax(1)
