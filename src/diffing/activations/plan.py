"""How a corpus is cut: blocks that are read together, and shards that are stored together.

Blocks follow from the tokens and `preprocessing.batch_tokens` alone, so that numbers depend neither on a machine's
memory nor on how work is spread; shards are whole blocks, so that each can be made by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from diffing.data.batches import plan_batches
from diffing.data.token_table import TokenTable


@dataclass(frozen=True)
class BlockPlan:
    """Sequences of each block, all of one dataset; indices into the corpus.

    Args:
        tokens: All tokens of the corpus.
        blocks: Sequence indices per block.
    """

    tokens: TokenTable
    blocks: tuple[tuple[int, ...], ...]

    @cached_property
    def token_rows(self) -> tuple[np.ndarray, ...]:
        """Rows of the token table that each block covers, in the order of its rows."""
        return tuple(np.concatenate([_rows(self.tokens, s) for s in block]) for block in self.blocks)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of each block."""
        return tuple(len(rows) for rows in self.token_rows)

    @property
    def n_tokens(self) -> int:
        """Tokens of all blocks."""
        return sum(self.sizes)

    @property
    def most_padded(self) -> int:
        """Tokens of the largest block as the models read it, padding included."""
        return max(len(block) * max(self.tokens.length_of(s) for s in block) for block in self.blocks)


def _rows(tokens: TokenTable, sequence: int) -> np.ndarray:
    rows = tokens.rows_of(sequence)
    return np.arange(rows.start, rows.stop)


def plan_blocks(tokens: TokenTable, batch_tokens: int, sequences: Sequence[int] | None = None) -> BlockPlan:
    """Blocks of sequences of similar length, dataset by dataset.

    Args:
        tokens: The corpus.
        batch_tokens: Padded tokens that are read at once.
        sequences: Which sequences to cover; None: all.
    """
    chosen = np.arange(tokens.n_sequences) if sequences is None else np.asarray(sequences, dtype=np.int64)
    lengths = np.diff(tokens.starts)
    dataset_S = tokens.dataset_N[tokens.starts[:-1]]
    blocks: list[tuple[int, ...]] = []
    for dataset in range(len(tokens.datasets)):
        mine = chosen[dataset_S[chosen] == dataset]
        blocks += [tuple(mine[list(batch)].tolist()) for batch in plan_batches(lengths[mine].tolist(), batch_tokens)]
    return BlockPlan(tokens, tuple(blocks))


@dataclass(frozen=True)
class ShardPart:
    """Consecutive sequences of one block in one shard: from `start` of its rows, at `row` of the shard's."""

    block: int
    start: int
    tokens: int
    row: int


@dataclass(frozen=True)
class Shard:
    """One file's share of the blocks."""

    number: int
    parts: tuple[ShardPart, ...]

    @property
    def n_tokens(self) -> int:
        """Rows of the shard."""
        return sum(p.tokens for p in self.parts)

    @property
    def file(self) -> str:
        """Its file's name."""
        return f"shard_{self.number:05d}.safetensors"


@dataclass(frozen=True)
class Unit:
    """A piece of work done as a whole: some blocks, and the shards they fill (one, unless a block is larger)."""

    blocks: tuple[int, ...]
    shards: tuple[Shard, ...]


def shard_limit(shard_bytes: int, shard_tokens: int, width: int, itemsize: int) -> int:
    """Most tokens of a shard: `shard_tokens`, and no more than `shard_bytes` hold for both models."""
    return max(1, min(shard_tokens, shard_bytes // (2 * width * itemsize)))


def cut_into_units(plan: BlockPlan, limit: int) -> tuple[Unit, ...]:
    """Group whole blocks into shards of at most `limit` tokens.

    A block that is larger is spread over several shards, by whole sequences; a sequence that is larger has its own.
    """
    units: list[Unit] = []
    n_shards = 0
    for group in _groups(plan.sizes, limit):
        if len(group) == 1 and plan.sizes[group[0]] > limit:
            shards = _split(plan, group[0], limit, n_shards)
        else:
            starts = np.concatenate([[0], np.cumsum([plan.sizes[b] for b in group])]).tolist()
            parts = tuple(ShardPart(b, 0, plan.sizes[b], row) for b, row in zip(group, starts, strict=False))
            shards = (Shard(n_shards, parts),)
        n_shards += len(shards)
        units.append(Unit(tuple(group), shards))
    return tuple(units)


def _groups(sizes: Sequence[int], limit: int) -> list[list[int]]:
    groups: list[list[int]] = []
    filled = limit + 1
    for block, size in enumerate(sizes):
        if filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(block)
        filled += size
    return groups


def _split(plan: BlockPlan, block: int, limit: int, first: int) -> tuple[Shard, ...]:
    lengths = [plan.tokens.length_of(s) for s in plan.blocks[block]]
    start, shards = 0, []
    for group in _groups(lengths, limit):
        n = sum(lengths[i] for i in group)
        shards.append(Shard(first + len(shards), (ShardPart(block, start, n, 0),)))
        start += n
    return tuple(shards)
