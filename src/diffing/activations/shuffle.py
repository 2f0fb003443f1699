"""Rows in random order through a bounded buffer; the same order from disk and live."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.activations.source import ActivationSource, PairRows
from diffing.core.layers import Slot
from diffing.core.seeds import generator


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Random rows of one slot, and the rows of the token table they belong to."""

    token_N: np.ndarray
    rows: PairRows


def shuffled_rows(
    source: ActivationSource,
    slot: Slot,
    batch_rows: int,
    seed: int,
    epoch: int = 0,
    buffer_rows: int = 2**16,
    keep_N: np.ndarray | None = None,
) -> Iterator[RowBatch]:
    """Every kept row once, in batches of `batch_rows` (the last may be smaller).

    Blocks come in a random order that spreads each dataset evenly over the epoch, so that any stretch of batches holds
    the datasets in proportion; rows are drawn from a buffer of `buffer_rows`.

    Args:
        source: Where activations come from.
        slot: What to read.
        batch_rows: Rows of a batch.
        seed: With `epoch` determines the order.
        epoch: Another number, another order.
        buffer_rows: Rows held in memory, of both models each; at least `batch_rows`.
        keep_N: Which rows of the token table to keep; None: all.
    """
    order = block_order(source, generator(seed, "block order", epoch))
    rng = generator(seed, "row order", epoch)
    buffer: _Buffer | None = None
    for block in source.blocks([slot], order):
        token_N, rows = block.token_N, block.rows[slot]
        if keep_N is not None and not keep_N[token_N].all():
            chosen = torch.from_numpy(np.flatnonzero(keep_N[token_N]))
            token_N = token_N[chosen.numpy()]
            rows = PairRows(*(r.index_select(0, chosen.to(r.device)) for r in rows))
        buffer = buffer or _Buffer(max(buffer_rows, batch_rows), rows)
        taken = 0
        while taken < len(token_N):
            n = min(len(token_N) - taken, buffer.n_free)
            buffer.put(token_N[taken : taken + n], PairRows(*(r[taken : taken + n] for r in rows)))
            taken += n
            if buffer.n_free == 0:
                yield buffer.draw(batch_rows, rng)
    while buffer is not None and buffer.n_held:
        yield buffer.draw(batch_rows, rng)


def block_order(source: ActivationSource, rng: np.random.Generator) -> list[int]:
    """All blocks, each dataset's in random order and spread evenly over the whole by tokens."""
    tokens = source.tokens
    dataset = np.array([tokens.dataset_N[rows[0]] for rows in source.block_tokens])
    size = np.array([len(rows) for rows in source.block_tokens], dtype=np.float64)
    place = np.empty(len(size))
    for number in range(len(tokens.datasets)):
        mine = rng.permutation(np.flatnonzero(dataset == number))
        if len(mine):
            middle = np.cumsum(size[mine]) - rng.random() * size[mine]
            place[mine] = middle / size[mine].sum()
    return np.argsort(place, kind="stable").tolist()


class _Buffer:
    """Rows in no order; drawn rows leave free places that the next ones take."""

    def __init__(self, capacity: int, like: PairRows) -> None:
        self._rows = PairRows(*(torch.empty((capacity, r.shape[1]), dtype=r.dtype, device=r.device) for r in like))
        self._token = np.empty(capacity, dtype=np.int64)
        self._places = np.arange(capacity)
        self.n_held = 0

    @property
    def n_free(self) -> int:
        """Rows that can still be put."""
        return len(self._places) - self.n_held

    def put(self, token_N: np.ndarray, rows: PairRows) -> None:
        """Hold some more rows."""
        places = self._places[self.n_held : self.n_held + len(token_N)]
        for held, new in zip(self._rows, rows, strict=True):
            _put(held, places, new)
        self._token[places] = token_N
        self.n_held += len(token_N)

    def draw(self, n: int, rng: np.random.Generator) -> RowBatch:
        """Take out up to `n` rows at random."""
        n = min(n, self.n_held)
        picks = rng.choice(self.n_held, n, replace=False, shuffle=True)
        places = self._places[picks]
        self._release(picks)
        return RowBatch(self._token[places], PairRows(*(_take(held, places) for held in self._rows)))

    def _release(self, picks: np.ndarray) -> None:
        """Swap the picked entries behind the held ones."""
        left = self.n_held - len(picks)
        is_picked = np.zeros(self.n_held, dtype=bool)
        is_picked[picks] = True
        stay = np.flatnonzero(~is_picked[left:]) + left
        leave = np.flatnonzero(is_picked[:left])
        self._places[leave], self._places[stay] = self._places[stay], self._places[leave].copy()
        self.n_held = left


def _put(held: Tensor, places: np.ndarray, rows: Tensor) -> None:
    """Copy rows to their places; on the CPU by NumPy, which moves whole rows where torch moves number by number."""
    if held.device.type == "cpu":
        _words(held)[places] = _words(rows.contiguous())
    else:
        held.index_copy_(0, torch.from_numpy(places).to(held.device), rows)


def _take(held: Tensor, places: np.ndarray) -> Tensor:
    """Copies of the rows at `places`."""
    if held.device.type == "cpu":
        return torch.from_numpy(_words(held)[places]).view(held.dtype)
    return held.index_select(0, torch.from_numpy(places).to(held.device))


def _words(rows: Tensor) -> np.ndarray:
    """The same memory as integers of the same size, for dtypes that NumPy does not know."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.dtype.itemsize]
    return rows.view(kind).numpy()
