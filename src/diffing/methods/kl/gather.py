"""All per-token columns in corpus order, with what each token belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from diffing.data.tokens import Corpus


@dataclass(frozen=True)
class Gathered:
    """Every token read, in corpus order.

    Args:
        corpus: The token sequences.
        columns: Per-token arrays by name; ids are vocabulary ids.
        sums: Sums over kept tokens per dataset and shared id, and of the squares of sequence sums.
        shared_ids: Vocabulary ids of the sums' columns.
        sequence_N: Index into `corpus.sequences` of each token.
        position_N: Position in its sequence.
        dataset_N: Index into `corpus.datasets`.
        ids_N: Token ids.
        next_N: Next token's id, −1 at the end of a sequence.
        role_N: Role code.
        kept_N: Whether the token counts in statistics.
    """

    corpus: Corpus
    columns: Mapping[str, np.ndarray]
    sums: Mapping[str, np.ndarray]
    shared_ids: np.ndarray
    sequence_N: np.ndarray
    position_N: np.ndarray
    dataset_N: np.ndarray
    ids_N: np.ndarray
    next_N: np.ndarray
    role_N: np.ndarray
    kept_N: np.ndarray

    def tokens_of(self, sequence: int) -> slice:
        """Where the tokens of a sequence stand."""
        start, stop = np.searchsorted(self.sequence_N, [sequence, sequence + 1])
        return slice(int(start), int(stop))

    def values(self, metric: str) -> np.ndarray:
        """One metric per token in float64; `top1_agree` is 0 or 1; NaN where it is not defined."""
        if metric == "top1_agree":
            return (self.columns["top_ft"] == self.columns["top_base"]).astype(np.float64)
        return self.columns[metric].astype(np.float64)

    def sequence_sums(self, metric: str, mask_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum and count per sequence of `corpus` over the masked tokens where the metric is defined."""
        values = self.values(metric)
        used = mask_N & ~np.isnan(values)
        n = len(self.corpus.sequences)
        sums = np.bincount(self.sequence_N[used], weights=values[used], minlength=n)
        return sums, np.bincount(self.sequence_N[used], minlength=n)


def gather(
    corpus: Corpus,
    columns: Mapping[str, np.ndarray],
    sums: Mapping[str, np.ndarray],
    shared_ids: np.ndarray,
    kept: Mapping[int, np.ndarray],
) -> Gathered:
    """Put per-token columns, which come in batch order, into corpus order."""
    order = _corpus_order(columns["sequence"], columns["length"])
    index = sorted(columns["sequence"].tolist())
    sequences = [corpus.sequences[i] for i in index]
    lengths = [len(s.ids) for s in sequences]
    names = {name: i for i, name in enumerate(corpus.datasets)}
    return Gathered(
        corpus=corpus,
        columns={k: v[order] for k, v in columns.items() if k not in ("sequence", "length")},
        sums=sums,
        shared_ids=shared_ids,
        sequence_N=np.repeat(index, lengths),
        position_N=np.concatenate([np.arange(n) for n in lengths]),
        dataset_N=np.repeat([names[s.dataset] for s in sequences], lengths),
        ids_N=np.concatenate([s.ids for s in sequences]).astype(np.int64),
        next_N=np.concatenate([np.append(s.ids[1:], -1) for s in sequences]).astype(np.int64),
        role_N=np.concatenate([s.roles for s in sequences]),
        kept_N=np.concatenate([kept[i] for i in index]),
    )


def _corpus_order(sequence_S: np.ndarray, length_S: np.ndarray) -> np.ndarray:
    starts = (np.cumsum(length_S) - length_S).tolist()
    by_sequence = np.argsort(sequence_S, kind="stable").tolist()
    return np.concatenate([np.arange(starts[i], starts[i] + int(length_S[i])) for i in by_sequence])
