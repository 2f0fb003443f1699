"""Examples: where in the text the K largest D are largest."""

import numpy as np
import pyarrow as pa

from diffing.analysis.token_text import Decoder
from diffing.analysis.top_examples import TopExamples
from diffing.analysis.windows import window_table, windows
from diffing.methods.diff_mining.config import DiffMiningConfig
from diffing.methods.diff_mining.gather import Gathered
from diffing.methods.diff_mining.stream import NOT_COUNTED


def example_table(data: Gathered, tokenizer: Decoder, config: DiffMiningConfig) -> pa.Table:
    """By dataset the documents with the largest mean of the K largest D at one position: `WindowRow`, and `risen`.

    `unit` is the dataset's number, `values` that mean at every token; `risen` has for each token the leading ones of
    the K at it, joined by two spaces. Where documents begin alike, so do the predictions: what they share is looked at
    in the first of them alone.
    """
    tokens, parts = data.frame.tokens, data.parts
    first = _starts(tokens.starts, parts["example_sequence"])
    found = TopExamples(len(tokens.datasets), config.n_examples)
    for sequence in sorted(first):
        rows = tokens.rows_of(sequence)
        strength_T = parts["example_strength"][first[sequence] :][: tokens.length_of(sequence)]
        at = np.flatnonzero(data.frame.kept_N[rows] & tokens.is_new_N[rows] & (strength_T > 0))
        row_M = rows.start + at
        found.add(tokens.dataset_N[row_M], row_M, strength_T[at], np.full(len(at), sequence))
    ranked = found.top()
    before, after = config.context_before, config.context_after
    start_M, stop_M = windows(tokens, ranked.row, before, after)

    def part(name: str, i: int) -> np.ndarray:
        sequence = int(ranked.sequence[i])
        shift = first[sequence] - int(tokens.starts[sequence])
        return parts[name][start_M[i] + shift : stop_M[i] + shift]

    table = window_table(
        tokens, tokenizer, ranked, ["strength"] * len(ranked), lambda i: part("example_strength", i), before, after
    )
    risen = [[_risen(data, ids) for ids in part("example_shown", i)] for i in range(len(ranked))]
    return table.append_column("risen", pa.array(risen, type=pa.list_(pa.string())))


def _starts(corpus_starts: np.ndarray, sequences_M: np.ndarray) -> dict[int, int]:
    """Where each stored sequence begins in the stored columns."""
    lengths = corpus_starts[sequences_M + 1] - corpus_starts[sequences_M]
    return dict(zip(sequences_M.tolist(), (np.cumsum(lengths) - lengths).tolist(), strict=True))


def _risen(data: Gathered, columns: np.ndarray) -> str:
    return "  ".join(repr(data.names[int(data.ids_V[c])])[1:-1] for c in columns if c != NOT_COUNTED)
