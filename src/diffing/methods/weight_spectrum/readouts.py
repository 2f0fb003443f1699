"""What the output vectors of residual-writing matrices say through the finetuned model's final norm and head.

A singular vector has no sign, so both ends are read, at mean square 1. Tokens are ranked beside what the base's own
matrices write at random inputs: that speaks of some tokens more than of others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diffing.analysis.context import RunContext
from diffing.analysis.lenses import has_lens, logit_lens, mean_lens
from diffing.analysis.token_text import token_strings
from diffing.core.progress import bar
from diffing.core.seeds import generator
from diffing.core.tables import TokenScoreRow, table_of
from diffing.methods.weight_spectrum.config import WeightSpectrumConfig
from diffing.methods.weight_spectrum.gather import Gathered, Vector
from diffing.methods.weight_spectrum.results import ReadoutRow

ENDS = ("positive", "negative")
_N_DRAWS = 64
_PERCENTILE = 95.0
_LEAST = 0.01  # of an even share: keeps the logarithm of what is never said in bounds
Key = tuple[int, int, str]


@dataclass(frozen=True)
class Readout:
    """Tokens read from one end of a vector, likeliest first."""

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Said:
    """Everything that was read.

    Args:
        readouts: By vector and end.
        scores: The token ranking; None where nothing was read.
        threshold: The best token's score in a draw of random directions, 95th percentile.
        notes: Sentences for the reader.
    """

    readouts: dict[Key, Readout] = field(default_factory=dict)
    scores: pa.Table | None = None
    threshold: float | None = None
    notes: tuple[str, ...] = ()


def read_out(data: Gathered, context: RunContext, config: WeightSpectrumConfig) -> Said:
    """Read all vectors, and rank tokens; the models are loaded only if there is something to read."""
    vectors = data.vectors if config.n_readout else ()
    if not vectors:
        return Said()
    handle = context.pair.finetuned
    if not has_lens(handle):
        return Said(notes=("The finetuned model's read-out is not known; no tokens are read.",))
    both_ND = torch.from_numpy(np.concatenate([[v.vector_D, -v.vector_D] for v in vectors]))
    both_ND = both_ND * both_ND.shape[1] ** 0.5
    with bar("weight_spectrum: reading vectors out", 2 * len(both_ND), "directions") as advance:
        readings = logit_lens(handle, both_ND, config.n_readout)
        advance(len(both_ND))
        ranking = _ranking(vectors, both_ND, context, config)
        advance(len(both_ND))
    names = token_strings(handle.tokenizer, np.unique(readings.ids_NK).tolist())
    found = {}
    for row, (ids, probabilities) in enumerate(zip(readings.ids_NK, readings.probabilities_NK, strict=True)):
        vector = vectors[row // len(ENDS)]
        tokens = tuple(names[i] for i in ids.tolist())
        key = (vector.weight.unit, vector.index, ENDS[row % len(ENDS)])
        found[key] = Readout(tuple(ids.tolist()), tokens, tuple(probabilities.tolist()))
    threshold = float(np.percentile(ranking.draws_DV.max(1), _PERCENTILE))
    return Said(found, _score_table(ranking, handle.tokenizer), threshold)


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Scores of all tokens, and the same of random directions."""

    score_V: np.ndarray
    draws_DV: np.ndarray


def _ranking(
    vectors: tuple[Vector, ...], both_ND: Tensor, context: RunContext, config: WeightSpectrumConfig
) -> _Ranking:
    """Log of each token's mean probability over both ends of all vectors, weighted by σ, beside random directions.

    Half of the random directions of each matrix make the mean that is usual; of the others one for each vector makes a
    draw of what is compared with it.
    """
    handle = context.pair.finetuned
    weight_N = np.array([v.singular_value for v in vectors])
    weight_N /= weight_N.sum() * len(ENDS)
    rng = generator(context.seed, "weight_spectrum", "random directions")
    random_RD, first_N = _random(vectors, config.n_random, rng)
    half = config.n_random // 2
    share_MR = np.zeros((1 + _N_DRAWS, len(random_RD) // len(ENDS)))
    for first, weight in zip(first_N, weight_N, strict=True):
        share_MR[0, first : first + half] += weight / half
        picked_D = first + half + rng.integers(config.n_random - half, size=_N_DRAWS)
        share_MR[1 + np.arange(_N_DRAWS), picked_D] += weight
    random_MV = mean_lens(handle, random_RD, torch.from_numpy(share_MR.repeat(len(ENDS), axis=1))).numpy()
    said_V = mean_lens(handle, both_ND, torch.from_numpy(weight_N.repeat(len(ENDS)))[None])[0].numpy()
    least = _LEAST / handle.vocab_size
    usual_V = np.log(random_MV[0] + least)
    return _Ranking(np.log(said_V + least) - usual_V, np.log(random_MV[1:] + least) - usual_V)


def _random(vectors: tuple[Vector, ...], n: int, rng: np.random.Generator) -> tuple[Tensor, list[int]]:
    """Random directions of each matrix at mean square 1, each followed by its negative; and each vector's first one."""
    found: dict[int, np.ndarray] = {}
    for v in vectors:
        if v.weight.unit not in found:
            drawn_ND = v.weight.measured.random_ND
            if drawn_ND is None:
                drawn_ND = rng.standard_normal((n, len(v.vector_D))).astype(np.float32)
                drawn_ND /= np.linalg.norm(drawn_ND, axis=1, keepdims=True)
            found[v.weight.unit] = np.stack([drawn_ND, -drawn_ND], 1).reshape(-1, drawn_ND.shape[1])
    firsts = {unit: i * n for i, unit in enumerate(found)}
    random_RD = torch.from_numpy(np.concatenate(list(found.values())))
    return random_RD * random_RD.shape[1] ** 0.5, [firsts[v.weight.unit] for v in vectors]


def _score_table(ranking: _Ranking, tokenizer: Any) -> pa.Table:
    """The ranking; `null_score` is a draw's 95th percentile, `stderr` its standard deviation."""
    n = min(len(ranking.score_V), len(tokenizer))
    names = token_strings(tokenizer, range(n))
    null_V, spread_V = np.percentile(ranking.draws_DV, _PERCENTILE, axis=0), ranking.draws_DV.std(0, ddof=1)
    order = np.argsort(-ranking.score_V[:n], kind="stable")
    return table_of(
        TokenScoreRow,
        [
            TokenScoreRow(i, names[i], float(ranking.score_V[i]), float(spread_V[i]), float(null_V[i]))
            for i in order.tolist()
        ],
    )


def readout_table(readouts: Mapping[Key, Readout]) -> pa.Table:
    """Every token that was read."""
    return table_of(
        ReadoutRow,
        [
            ReadoutRow(unit, index + 1, end, rank, *token)
            for (unit, index, end), r in readouts.items()
            for rank, token in enumerate(zip(r.ids, r.tokens, r.probabilities, strict=True))
        ],
    )
