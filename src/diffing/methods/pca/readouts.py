"""What each component, and each mean, says through the final norm and head.

A direction is read at mean square 1, so that the norm's ε does not matter; δ and f are read by the finetuned model, b
by the base.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diffing.analysis.context import RunContext
from diffing.analysis.lenses import has_lens, logit_lens
from diffing.analysis.token_text import token_strings
from diffing.core.tables import table_of
from diffing.methods.pca.gather import Gathered
from diffing.methods.pca.results import ReadoutRow

ENDS = ("positive", "negative")


@dataclass(frozen=True)
class Readout:
    """Tokens read from one end of a direction, likeliest first."""

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]


Key = tuple[str, int, str]


def read_directions(data: Gathered, context: RunContext, n_tokens: int) -> tuple[dict[Key, Readout], list[str]]:
    """Read-outs by what is read (component or mean), its unit and end, and a sentence where a model cannot be read."""
    directions = _directions(data) if n_tokens else {}
    if not directions:
        return {}, []
    found: dict[Key, Readout] = {}
    notes = []
    for is_base in (False, True):
        mine = {key: v for key, (v, target) in directions.items() if (target == "base") == is_base}
        if not mine:
            continue
        handle = context.pair.base if is_base else context.pair.finetuned
        if not has_lens(handle):
            notes.append(f"The {'base' if is_base else 'finetuned'} model's read-out is not known; no tokens are read.")
            continue
        readings = logit_lens(handle, torch.stack(list(mine.values())), n_tokens)
        names = token_strings(handle.tokenizer, np.unique(readings.ids_NK).tolist())
        for key, ids, probabilities in zip(mine, readings.ids_NK, readings.probabilities_NK, strict=True):
            tokens = tuple(names[i] for i in ids.tolist())
            found[key] = Readout(tuple(ids.tolist()), tokens, tuple(probabilities.tolist()))
    return found, notes


def _directions(data: Gathered) -> dict[Key, tuple[Tensor, str]]:
    """Both ends of components and means, at mean square 1, with what they are directions of."""
    named = [("component", c.unit, c.space.vectors_CD[c.index], c.space.target) for c in data.listed]
    named += [
        ("mean", unit, space.mean_D, space.target)
        for unit, space in enumerate(data.spaces)
        if space.mean_norm > 0 and space.centring == "uncentred"
    ]
    found = {}
    for of, unit, vector_D, target in named:
        scaled_D = vector_D * (len(vector_D) ** 0.5 / float(vector_D.norm()))
        for end, sign in zip(ENDS, (1.0, -1.0), strict=True):
            found[of, unit, end] = (sign * scaled_D, target)
    return found


def readout_table(readouts: Mapping[Key, Readout]) -> pa.Table:
    """Every token that was read."""
    return table_of(
        ReadoutRow,
        [
            ReadoutRow(of, unit, end, rank, *token)
            for (of, unit, end), r in readouts.items()
            for rank, token in enumerate(zip(r.ids, r.tokens, r.probabilities, strict=True))
        ],
    )
