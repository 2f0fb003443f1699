"""Examples: documents at both ends of each component, and those with most energy above the null."""

import dataclasses

import numpy as np
import pyarrow as pa

from diffing.analysis.token_text import Decoder
from diffing.analysis.top_examples import Ranked, TopExamples
from diffing.analysis.windows import window_table, windows
from diffing.methods.pca.config import PcaConfig
from diffing.methods.pca.gather import Gathered, Listed
from diffing.methods.pca.readouts import ENDS


def example_table(data: Gathered, tokenizer: Decoder, config: PcaConfig) -> pa.Table:
    """By component the documents with the largest score at one token, at both ends; by dataset those of most energy.

    Where documents begin alike, so do the activations: what they share is looked at in the first of them alone.
    """
    parts = [_ends(data, c, tokenizer, config) for c in data.listed]
    return pa.concat_tables([*parts, _subspace(data, tokenizer, config)])


def _ends(data: Gathered, component: Listed, tokenizer: Decoder, config: PcaConfig) -> pa.Table:
    values_N = data.scores_of(component)
    examples = TopExamples(len(ENDS), config.n_examples)
    for end, signed_N in enumerate((values_N, -values_N)):
        row_M = np.flatnonzero((signed_N > 0) & data.tokens.is_new_N)
        examples.add(np.full(len(row_M), end), row_M, signed_N[row_M], data.tokens.sequence_N[row_M])
    ranked = examples.top()
    sign_M = np.array([1.0, -1.0])[ranked.unit]
    kinds = [ENDS[end] for end in ranked.unit.tolist()]
    mine = dataclasses.replace(ranked, unit=np.full(len(ranked), component.unit))
    return _table(data, tokenizer, config, mine, kinds, values_N, sign_M)


def _subspace(data: Gathered, tokenizer: Decoder, config: PcaConfig) -> pa.Table:
    energy_N = data.energy_N
    examples = TopExamples(len(data.tokens.datasets), config.n_examples)
    row_M = np.flatnonzero((energy_N > 0) & data.tokens.is_new_N)
    examples.add(data.tokens.dataset_N[row_M], row_M, energy_N[row_M], data.tokens.sequence_N[row_M])
    ranked = examples.top()
    main = next(i for i, space in enumerate(data.spaces) if space is data.main)
    mine = dataclasses.replace(ranked, unit=np.full(len(ranked), main))
    return _table(data, tokenizer, config, mine, ["subspace"] * len(mine), energy_N, np.ones(len(mine)))


def _table(
    data: Gathered, tokenizer: Decoder, config: PcaConfig, ranked: Ranked, kinds: list[str], values_N: np.ndarray,
    sign_M: np.ndarray,
) -> pa.Table:  # fmt: skip
    before, after = config.context_before, config.context_after
    start_M, stop_M = windows(data.tokens, ranked.row, before, after)

    def values(i: int) -> np.ndarray:
        return sign_M[i] * values_N[start_M[i] : stop_M[i]]

    return window_table(data.tokens, tokenizer, ranked, kinds, values, before, after)
