"""All per-token columns in corpus order, with what each token belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from diffing.data.token_table import TokenTable


@dataclass(frozen=True)
class Gathered:
    """Every token read, in corpus order.

    Args:
        tokens: What each token is and where it stands.
        columns: Per-token arrays by name; ids are vocabulary ids.
        sums: Sums over kept tokens per dataset and shared id, and of the squares of sequence sums.
        shared_ids: Vocabulary ids of the sums' columns.
        kept_N: Whether the token counts in statistics.
    """

    tokens: TokenTable
    columns: Mapping[str, np.ndarray]
    sums: Mapping[str, np.ndarray]
    shared_ids: np.ndarray
    kept_N: np.ndarray

    def values(self, metric: str) -> np.ndarray:
        """One metric per token in float64; `top1_agree` is 0 or 1; NaN where it is not defined."""
        if metric == "top1_agree":
            return (self.columns["top_ft"] == self.columns["top_base"]).astype(np.float64)
        return self.columns[metric].astype(np.float64)

    def sequence_sums(self, metric: str, mask_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum and count per sequence over the masked tokens where the metric is defined."""
        return self.tokens.sums_by_sequence(self.values(metric), mask_N)


def gather(
    tokens: TokenTable,
    columns: Mapping[str, np.ndarray],
    sums: Mapping[str, np.ndarray],
    shared_ids: np.ndarray,
    kept_N: np.ndarray,
) -> Gathered:
    """Put per-token columns, which come in batch order and cover all tokens, into corpus order."""
    order = _corpus_order(columns["sequence"], columns["length"])
    placed = {k: v[order] for k, v in columns.items() if k not in ("sequence", "length")}
    return Gathered(tokens, placed, sums, shared_ids, kept_N)


def _corpus_order(sequence_S: np.ndarray, length_S: np.ndarray) -> np.ndarray:
    starts = (np.cumsum(length_S) - length_S).tolist()
    by_sequence = np.argsort(sequence_S, kind="stable").tolist()
    return np.concatenate([np.arange(starts[i], starts[i] + int(length_S[i])) for i in by_sequence])
