"""Batches: sequences of similar length together, within a budget of padded tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64
from torch import Tensor

from diffing.data.tokens import Corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_MOST_PADDING = 0.04


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences padded on the right; `sequences` are their places in `Corpus.sequences`."""

    ids_BT: Int64[Tensor, "B T"]
    lengths: tuple[int, ...]
    sequences: tuple[int, ...]


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Group sequences so that rows × longest ≤ `batch_tokens`, unless one alone is longer; longest first.

    A function of lengths and budget alone, so that numbers do not depend on a machine's memory. The
    longest batch comes first: a machine that is too small says so at once. A batch that has a quarter of
    its budget ends where the next sequence would bring padding above 4 %: arithmetic on padding costs as
    much as on tokens, and a quarter keeps the matrix products efficient.

    Args:
        lengths: Tokens of each sequence.
        batch_tokens: Padded tokens a batch may have.

    Returns:
        Indices into `lengths`; every sequence once.
    """
    assert batch_tokens >= 1
    batches: list[tuple[int, ...]] = []
    rows: list[int] = []
    n_tokens = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        padded = (len(rows) + 1) * lengths[rows[0]] if rows else 0
        wasteful = padded - n_tokens - lengths[i] > _MOST_PADDING * padded and 4 * padded >= batch_tokens
        if rows and (padded > batch_tokens or wasteful):
            batches.append(tuple(rows))
            rows, n_tokens = [], 0
        rows.append(i)
        n_tokens += lengths[i]
    return (*batches, tuple(rows)) if rows else ()


def make_batch(corpus: Corpus, indices: Sequence[int], pad_id: int) -> Batch:
    """The batch of the corpus's sequences `indices`, padded on the right with `pad_id`."""
    rows = [torch.tensor(corpus.sequences[i].ids, dtype=torch.int64) for i in indices]
    ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
    return Batch(ids_BT, tuple(len(r) for r in rows), tuple(indices))


def pad_id(tokenizer: "Tokenizer") -> int:
    """Id used for padding; 0 where the tokenizer has none, since nothing reads it."""
    pad = tokenizer.pad_token_id
    return pad if isinstance(pad, int) else 0
