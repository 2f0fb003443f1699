"""Rows of one slot as tensors to learn from: endless random batches, and whole passes in order.

What fits is read once and held in memory: epochs after the first then cost no reading, nor, live, another run of the
models. Larger data stream through a shuffling buffer. Which of the two depends on sizes that are options, never on the
memory of a machine, and either can go on at any batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.activations.outliers import largest_norms
from diffing.activations.shuffle import shuffled_rows
from diffing.activations.source import ActivationSource
from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.core.progress import bar
from diffing.core.seeds import generator


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Both models' activations at some tokens, (N, 2, D), and the rows of the token table they belong to."""

    token_N: np.ndarray
    rows_N2D: Tensor


class SlotRows:
    """Rows of one slot of a source.

    Args:
        source: Where activations come from.
        slot: Which.
        seed: Of the order of batches.
        buffer_rows: Rows that are held in memory; where there are more, the size of the shuffling buffer.
        limit: Norm above which, in either model, a row is left out of batches (`outliers.norm_limit`).
    """

    def __init__(
        self, source: ActivationSource, slot: Slot, seed: int, buffer_rows: int, limit: float = float("inf")
    ) -> None:
        self._source, self._slot, self._seed, self._buffer_rows = source, slot, seed, buffer_rows
        self.limit = limit
        self._held: list[RowBlock] | None = None
        self._whole: tuple[np.ndarray, Tensor] | None = None

    def reordered(self, seed: int) -> "SlotRows":
        """The same rows, those in memory shared, with another order of batches."""
        other = SlotRows(self._source, self._slot, seed, self._buffer_rows, self.limit)
        other._held, other._whole = self._held, self._whole
        return other

    @property
    def is_held(self) -> bool:
        """Whether all rows are held in memory."""
        return sum(len(rows) for rows in self._source.block_tokens) <= self._buffer_rows

    def usual(self, rows_N2D: Tensor) -> Tensor:
        """Which rows are not above the limit, (N,) bool; those that are not finite are none of its business."""
        if self.limit == float("inf"):
            return torch.ones(len(rows_N2D), dtype=torch.bool, device=rows_N2D.device)
        return ~((norms_N := largest_norms(rows_N2D)) > self.limit) | ~torch.isfinite(norms_N)

    def blocks(self, title: str = "reading activations") -> Iterator[RowBlock]:
        """All rows, block by block: whole sequences, in the source's order."""
        if self._held is not None:
            yield from self._held
            return
        held: list[RowBlock] = []
        with bar(title, sum(len(rows) for rows in self._source.block_tokens), "tokens") as advance:
            for block in self._source.blocks([self._slot]):
                found = RowBlock(block.token_N, torch.stack(list(block.rows[self._slot]), 1))
                if self.is_held:
                    held.append(RowBlock(found.token_N, found.rows_N2D.cpu()))
                yield found
                advance(len(found.token_N))
        self._held = held if self.is_held else None

    def batches(self, keep_N: np.ndarray, batch_rows: int, first: int = 0) -> Iterator[Tensor]:
        """Random batches (B, 2, D) without end, epoch after epoch; an epoch's incomplete batch is left out.

        Rows of unusual norm are taken out of the batch that they would be in, which is then smaller.

        Args:
            keep_N: Which rows of the token table to use.
            batch_rows: Rows of a batch, B.
            first: The number of the batch to begin with.

        Raises:
            UserError: Fewer than `batch_rows` rows are kept.
        """
        n_kept = int(sum(keep_N[rows].sum() for rows in self._source.block_tokens))
        per_epoch = n_kept // batch_rows
        if not per_epoch:
            raise UserError(
                f"{n_kept} tokens are fewer than one batch of {batch_rows}; use smaller batches or more text."
            )
        epoch, skip = divmod(first, per_epoch)
        while True:
            made = self._held_epoch if self.is_held else self._streamed_epoch
            yield from (b[self.usual(b)] for b in made(keep_N, batch_rows, epoch, skip, per_epoch))
            epoch, skip = epoch + 1, 0

    def _held_epoch(
        self, keep_N: np.ndarray, batch_rows: int, epoch: int, skip: int, per_epoch: int
    ) -> Iterator[Tensor]:
        token_N, rows_N2D = self._all()
        kept = np.flatnonzero(keep_N[token_N])
        order = kept[generator(self._seed, "rows", epoch).permutation(len(kept))]
        for start in range(skip * batch_rows, per_epoch * batch_rows, batch_rows):
            yield rows_N2D[torch.from_numpy(order[start : start + batch_rows])]

    def _all(self) -> tuple[np.ndarray, Tensor]:
        """Every row, in the source's order."""
        if self._whole is None:
            blocks = list(self.blocks())
            rows_N2D = torch.cat([b.rows_N2D for b in blocks])
            self._whole = np.concatenate([b.token_N for b in blocks]), rows_N2D
            ends = np.cumsum([len(b.token_N) for b in blocks])
            self._held = [
                RowBlock(b.token_N, rows_N2D[e - len(b.token_N) : e]) for b, e in zip(blocks, ends, strict=True)
            ]
        return self._whole

    def _streamed_epoch(
        self, keep_N: np.ndarray, batch_rows: int, epoch: int, skip: int, per_epoch: int
    ) -> Iterator[Tensor]:
        stream = shuffled_rows(self._source, self._slot, batch_rows, self._seed, epoch, self._buffer_rows, keep_N)
        for number, batch in enumerate(stream):
            if skip <= number < per_epoch:
                yield torch.stack(list(batch.rows), 1)
