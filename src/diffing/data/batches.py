"""Batches: sequences of similar length together, within a budget of padded tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from diffing.data.tokens import Corpus


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences padded on the right; `sequences` are their places in `Corpus.sequences`."""

    ids_BT: Int64[Tensor, "B T"]
    lengths: tuple[int, ...]
    sequences: tuple[int, ...]


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Group sequences so that rows × longest ≤ `batch_tokens`, unless one alone is longer; longest first.

    A function of lengths and budget alone, so that numbers do not depend on a machine's memory. The
    longest batch comes first: a machine that is too small says so at once.

    Args:
        lengths: Tokens of each sequence.
        batch_tokens: Padded tokens a batch may have.

    Returns:
        Indices into `lengths`; every sequence once.
    """
    assert batch_tokens >= 1
    batches: list[tuple[int, ...]] = []
    rows: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if rows and (len(rows) + 1) * lengths[rows[0]] > batch_tokens:
            batches.append(tuple(rows))
            rows = []
        rows.append(i)
    return (*batches, tuple(rows)) if rows else ()


def make_batch(corpus: Corpus, indices: Sequence[int], pad_id: int) -> Batch:
    """The batch of the corpus's sequences `indices`, padded on the right with `pad_id`."""
    rows = [torch.tensor(corpus.sequences[i].ids, dtype=torch.int64) for i in indices]
    ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
    return Batch(ids_BT, tuple(len(r) for r in rows), tuple(indices))
