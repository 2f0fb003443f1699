"""Every token of a corpus as columns, in corpus order: what activations and per-token numbers refer to."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from diffing.data.chats import ROLES
from diffing.data.tokens import Corpus


@dataclass(frozen=True, eq=False)
class TokenTable:
    """One row per token, sequences one after the other as in the corpus.

    Args:
        datasets: Names of the datasets.
        documents: Row of each sequence's document in its dataset, shape (S,).
        starts: First row of each sequence, and the number of rows at the end, shape (S + 1,).
        sequence_N: Index of the sequence in the corpus.
        position_N: Position in its sequence, from 0.
        dataset_N: Index into `datasets`.
        ids_N: Token id.
        role_N: Index into `ROLES`.
        is_template_N: Whether a chat template wrote it.
        is_special_N: Whether it is a special token of the tokenizer.
    """

    datasets: tuple[str, ...]
    documents: np.ndarray
    starts: np.ndarray
    sequence_N: np.ndarray
    position_N: np.ndarray
    dataset_N: np.ndarray
    ids_N: np.ndarray
    role_N: np.ndarray
    is_template_N: np.ndarray
    is_special_N: np.ndarray

    @classmethod
    def of(cls, corpus: Corpus) -> "TokenTable":
        """The corpus as columns."""
        lengths = np.array([len(s.ids) for s in corpus.sequences], dtype=np.int64)
        number = {name: i for i, name in enumerate(corpus.datasets)}
        return cls(
            datasets=corpus.datasets,
            documents=np.array([s.index for s in corpus.sequences], dtype=np.int64),
            starts=np.concatenate([[0], np.cumsum(lengths)]),
            sequence_N=np.repeat(np.arange(len(lengths)), lengths),
            position_N=np.concatenate([np.arange(n) for n in lengths]),
            dataset_N=np.repeat([number[s.dataset] for s in corpus.sequences], lengths),
            ids_N=np.concatenate([s.ids for s in corpus.sequences]).astype(np.int64),
            role_N=np.concatenate([s.roles for s in corpus.sequences]),
            is_template_N=np.concatenate([s.is_template for s in corpus.sequences]),
            is_special_N=np.concatenate([s.is_special for s in corpus.sequences]),
        )

    def __len__(self) -> int:
        return len(self.ids_N)

    @property
    def n_sequences(self) -> int:
        """Sequences, S."""
        return len(self.documents)

    def rows_of(self, sequence: int) -> slice:
        """Where the tokens of a sequence stand."""
        return slice(int(self.starts[sequence]), int(self.starts[sequence + 1]))

    def length_of(self, sequence: int) -> int:
        """Tokens of a sequence."""
        return int(self.starts[sequence + 1] - self.starts[sequence])

    def dataset_of(self, sequence: int) -> str:
        """Name of a sequence's dataset."""
        return self.datasets[self.dataset_N[self.starts[sequence]]]

    @cached_property
    def next_N(self) -> np.ndarray:
        """Id of the token that follows, −1 at the end of a sequence."""
        following = np.append(self.ids_N[1:], -1)
        following[self.starts[1:] - 1] = -1
        return following

    @cached_property
    def is_new_N(self) -> np.ndarray:
        """Whether no earlier sequence of its dataset has the same tokens up to and with this one.

        A causal model reads the same state and makes the same prediction wherever texts begin alike, as after one
        system prompt: only the first of them is an observation of its own.
        """
        is_new_N = np.ones(len(self), dtype=bool)
        row_S = self.starts[:-1]
        group_S = self.dataset_N[row_S].astype(np.int64)
        while len(row_S):
            pairs = np.stack([group_S, self.ids_N[row_S]], 1)
            _, first, group_S, count = np.unique(
                pairs, axis=0, return_index=True, return_inverse=True, return_counts=True
            )
            group_S = group_S.reshape(-1)
            is_new_N[np.delete(row_S, first)] = False
            goes_on = (count[group_S] > 1) & (self.next_N[row_S] >= 0)
            row_S, group_S = row_S[goes_on] + 1, group_S[goes_on]
        return is_new_N

    def kept(self, bos_id: int | None, skip_first_tokens: int = 0, skip_template: bool = False) -> np.ndarray:
        """Which tokens count in statistics, shape (N,).

        Args:
            bos_id: A leading token of this id that the tokenizer put there is left out; one that a chat template
                wrote counts as template.
            skip_first_tokens: Leading positions left out (attention sinks).
            skip_template: Whether template tokens are left out.
        """
        kept = self.position_N >= skip_first_tokens
        if bos_id is not None:
            kept &= ~((self.position_N == 0) & (self.ids_N == bos_id) & self.is_special_N & ~self.is_template_N)
        if skip_template:
            kept &= ~self.is_template_N
        return kept

    def sums_by_sequence(self, values_N: np.ndarray, mask_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum and number of the values that are masked in and not NaN, each of shape (S,)."""
        used = mask_N & ~np.isnan(values_N)
        sums = np.bincount(self.sequence_N[used], weights=values_N[used], minlength=self.n_sequences)
        return sums, np.bincount(self.sequence_N[used], minlength=self.n_sequences)

    def to_arrow(self) -> pa.Table:
        """The columns as a table: names of datasets and roles spelled out."""
        columns: Mapping[str, pa.Array] = {
            "dataset": pa.DictionaryArray.from_arrays(pa.array(self.dataset_N.astype(np.int32)), list(self.datasets)),
            "sequence": pa.array(self.sequence_N.astype(np.int64)),
            "document": pa.array(self.documents[self.sequence_N]),
            "position": pa.array(self.position_N.astype(np.int32)),
            "token_id": pa.array(self.ids_N.astype(np.int32)),
            "role": pa.DictionaryArray.from_arrays(pa.array(self.role_N.astype(np.int32)), list(ROLES)),
            "is_template": pa.array(self.is_template_N),
            "is_special": pa.array(self.is_special_N),
        }
        return pa.table(dict(columns))
