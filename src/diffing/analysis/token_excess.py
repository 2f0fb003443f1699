"""Rankings of tokens and documents by a value at every token: how far it is above the average there."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from diffing.core.tables import DocumentScoreRow, TokenScoreRow, table_of
from diffing.data.token_table import TokenTable

PSEUDO_COUNT = 5


def token_excess_table(tokens: TokenTable, values_N: np.ndarray, names: Mapping[int, str]) -> pa.Table:
    """The tokens that occur, by how far above the average a value is where they are read: `token_scores.parquet`.

    Score: Σ (value − mean) over the token's n occurrences, divided by n + 5, which shrinks what rests on a few of them
    toward 0. The standard error treats sequences as the independent units.

    Args:
        tokens: The corpus.
        values_N: A value at every token; NaN where it does not count.
        names: Tokens as people read them.
    """
    used = ~np.isnan(values_N)
    ids, index_N = np.unique(tokens.ids_N[used], return_inverse=True)
    if not len(ids):
        return table_of(TokenScoreRow, [])
    excess_N = values_N[used] - values_N[used].mean()
    n = np.bincount(index_N)
    score = np.bincount(index_N, weights=excess_N) / (n + PSEUDO_COUNT)
    error = _stderr(tokens.sequence_N[used], index_N, excess_N, n)
    rows = [
        TokenScoreRow(
            int(ids[i]), names[int(ids[i])], float(score[i]), None if np.isnan(error[i]) else float(error[i]), None
        )
        for i in np.lexsort((ids, -score))
    ]  # fmt: skip
    return table_of(TokenScoreRow, rows)


def _stderr(sequence_N: np.ndarray, index_N: np.ndarray, values_N: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Standard error of the scores; NaN for a token of one sequence."""
    cell, at = np.unique(sequence_N.astype(np.int64) * len(n) + index_N, return_inverse=True)
    sums = np.bincount(at, weights=values_N)
    token = cell % len(n)
    n_sequences = np.bincount(token, minlength=len(n))
    total, squares = np.bincount(token, weights=sums), np.bincount(token, weights=sums**2)
    m = np.maximum(n_sequences, 2)
    spread = np.maximum(squares - total**2 / m, 0) * m / (m - 1)
    return np.where(n_sequences > 1, np.sqrt(spread) / (n + PSEUDO_COUNT), np.nan)


def document_mean_table(tokens: TokenTable, values_N: np.ndarray) -> pa.Table:
    """All documents by the mean of a value over their tokens (NaN: not counted): `document_scores.parquet`."""
    return document_table(tokens, *tokens.sums_by_sequence(values_N, ~np.isnan(values_N)))


def document_table(tokens: TokenTable, sums_S: np.ndarray, counts_S: np.ndarray) -> pa.Table:
    """All documents by sum over count; those that count nothing are left out: `document_scores.parquet`.

    Args:
        tokens: The corpus.
        sums_S: By sequence the sum of a value.
        counts_S: Over how many tokens.
    """
    rows = [
        DocumentScoreRow(tokens.dataset_of(s), int(tokens.documents[s]), float(sums_S[s] / counts_S[s]))
        for s in np.flatnonzero(counts_S).tolist()
    ]
    return table_of(DocumentScoreRow, sorted(rows, key=lambda r: (-r.score, r.dataset, r.document)))
