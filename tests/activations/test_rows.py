"""Rows to learn from, held or streamed: every kept row once an epoch, from any batch on, from disk and live."""

from itertools import chain, islice

import numpy as np
import pytest
import torch

from diffing.activations.plan import plan_blocks
from diffing.activations.reading import PairReader
from diffing.activations.rows import SlotRows
from diffing.activations.source import Block, PairRows
from diffing.activations.sources import DiskSource, LiveSource
from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.data.token_table import TokenTable

SLOT = Slot(0)
HELD, STREAMED = 10**6, 40
PATHS = pytest.mark.parametrize("buffer_rows", [HELD, STREAMED], ids=["held", "streamed"])


class Counted:
    """A source whose rows name their token: the base holds it, the finetuned model its negative."""

    def __init__(self, corpus, batch_tokens=64):
        self._plan = plan_blocks(TokenTable.of(corpus), batch_tokens)
        self.tokens, self.block_tokens = self._plan.tokens, self._plan.token_rows
        self.handed = 0

    def blocks(self, slots=None, order=None):
        assert list(slots) == [SLOT]
        for number in order if order is not None else range(len(self.block_tokens)):
            token_N = self.block_tokens[number]
            base = torch.from_numpy(token_N).to(torch.float32)[:, None] * torch.tensor([1.0, 0.5])
            self.handed += len(token_N)
            yield Block(number, token_N, {SLOT: PairRows(base, -base)})


@pytest.fixture
def source(make_corpus):
    return Counted(make_corpus({"a": [10] * 12, "b": [7] * 10}))


def tokens_of(batch_B2D):
    """Tokens of a batch; asserts that every row is that of its token in both models."""
    base, finetuned = batch_B2D.unbind(1)
    assert torch.equal(base, base[:, :1] * torch.tensor([1.0, 0.5]))
    assert torch.equal(finetuned, -base)
    return base[:, 0].long().tolist()


def kept_of(source, every=3):
    """All tokens but each third."""
    return np.arange(len(source.tokens)) % every != 0


def drawn(rows, keep_N, n_batches, batch_rows=16, first=0):
    return [tokens_of(b) for b in islice(rows.batches(keep_N, batch_rows, first), n_batches)]


@PATHS
@pytest.mark.parametrize("batch_rows", [1, 7, 16, 126])
def test_an_epoch_holds_each_kept_row_once_and_no_other(source, buffer_rows, batch_rows):
    keep = kept_of(source)
    n_kept = int(keep.sum())
    per_epoch = n_kept // batch_rows
    rows = SlotRows(source, SLOT, 0, buffer_rows)
    batches = drawn(rows, keep, 3 * per_epoch, batch_rows)
    assert {len(b) for b in batches} == {batch_rows}
    epochs = [list(chain(*batches[i * per_epoch : (i + 1) * per_epoch])) for i in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == per_epoch * batch_rows > n_kept - batch_rows
        assert keep[epoch].all()
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert rows.is_held == (buffer_rows == HELD)


@PATHS
def test_what_an_epoch_leaves_out_another_holds(source, buffer_rows):
    keep = kept_of(source)
    rows = SlotRows(source, SLOT, 0, buffer_rows)
    assert keep.sum() % 40
    assert set(chain(*drawn(rows, keep, 12 * (int(keep.sum()) // 40), 40))) == set(np.flatnonzero(keep))


@PATHS
def test_batches_go_on_from_any_number(source, buffer_rows):
    keep = kept_of(source)
    per_epoch = int(keep.sum()) // 16
    whole = drawn(SlotRows(source, SLOT, 3, buffer_rows), keep, 3 * per_epoch)
    for first in range(3 * per_epoch):
        fresh = SlotRows(source, SLOT, 3, buffer_rows)
        assert drawn(fresh, keep, 3 * per_epoch - first, first=first) == whole[first:]


@PATHS
def test_the_seed_determines_the_order(source, buffer_rows):
    keep = kept_of(source)
    first, again, other = (drawn(SlotRows(source, SLOT, seed, buffer_rows), keep, 7) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_what_is_held_is_read_once(source):
    rows = SlotRows(source, SLOT, 0, len(source.tokens))
    drawn(rows, kept_of(source), 40)
    drawn(rows, np.ones(len(source.tokens), dtype=bool), 40)
    list(rows.blocks())
    assert rows.is_held
    assert source.handed == len(source.tokens)
    assert not SlotRows(source, SLOT, 0, len(source.tokens) - 1).is_held


def test_blocks_read_first_are_not_read_again(source):
    rows = SlotRows(source, SLOT, 0, HELD)
    list(rows.blocks())
    drawn(rows, kept_of(source), 40)
    assert source.handed == len(source.tokens)


def test_reading_that_was_broken_off_holds_nothing(source):
    rows = SlotRows(source, SLOT, 0, HELD)
    next(rows.blocks())
    drawn(rows, np.ones(len(source.tokens), dtype=bool), 3)
    assert sum(len(b.token_N) for b in rows.blocks()) == len(source.tokens)


def test_another_order_shares_what_is_held(source):
    keep = kept_of(source)
    rows = SlotRows(source, SLOT, 0, HELD)
    first = drawn(rows, keep, 7)
    other = rows.reordered(1)
    assert drawn(other, keep, 7) == drawn(SlotRows(source, SLOT, 1, HELD), keep, 7) != first
    assert drawn(rows, keep, 7) == first
    for mine, theirs in zip(rows.blocks(), other.blocks(), strict=True):
        assert mine.rows_N2D.data_ptr() == theirs.rows_N2D.data_ptr()
    assert source.handed == 2 * len(source.tokens)


def test_held_rows_lie_in_memory_once(source):
    rows = SlotRows(source, SLOT, 0, HELD)
    drawn(rows, kept_of(source), 1)
    storages = {b.rows_N2D.untyped_storage().data_ptr() for b in rows.blocks()}
    assert len(storages) == 1


@PATHS
def test_writing_to_a_batch_changes_nothing(source, buffer_rows):
    keep = kept_of(source)
    whole = drawn(SlotRows(source, SLOT, 0, buffer_rows), keep, 20)
    rows = SlotRows(source, SLOT, 0, buffer_rows)
    seen = []
    for batch in islice(rows.batches(keep, 16), 20):
        seen.append(tokens_of(batch))
        batch.fill_(-1)
    assert seen == whole
    for block in rows.blocks():
        assert tokens_of(block.rows_N2D) == block.token_N.tolist()


@PATHS
def test_blocks_are_those_of_the_source_in_its_order(source, buffer_rows):
    rows = SlotRows(source, SLOT, 0, buffer_rows)
    for _ in range(2):
        blocks = list(rows.blocks())
        assert [b.token_N.tolist() for b in blocks] == [t.tolist() for t in source.block_tokens]
        for block in blocks:
            assert tokens_of(block.rows_N2D) == block.token_N.tolist()
        next(rows.batches(kept_of(source), 5))


@PATHS
def test_rows_above_the_limit_are_taken_out_and_no_other_moves(source, buffer_rows):
    """The row of token t has norm t·√1.25 in both models."""
    keep, limit = kept_of(source), 100 * 1.25**0.5 + 0.1
    whole = drawn(SlotRows(source, SLOT, 0, buffer_rows), keep, 14)
    usual = SlotRows(source, SLOT, 0, buffer_rows, limit)
    assert drawn(usual, keep, 14) == [[t for t in batch if t <= 100] for batch in whole]
    assert drawn(usual.reordered(1), keep, 14) == drawn(SlotRows(source, SLOT, 1, buffer_rows, limit), keep, 14)


@PATHS
@pytest.mark.parametrize("n_kept", [0, 1, 15])
def test_fewer_rows_than_a_batch_are_told(source, buffer_rows, n_kept):
    keep = np.zeros(len(source.tokens), dtype=bool)
    keep[:n_kept] = True
    said = rf"^{n_kept} tokens are fewer than one batch of 16; use smaller batches or more text\.$"
    with pytest.raises(UserError, match=said):
        next(SlotRows(source, SLOT, 0, buffer_rows).batches(keep, 16))
    keep[:16] = True
    assert sorted(drawn(SlotRows(source, SLOT, 0, buffer_rows), keep, 1)[0]) == list(range(16))


@PATHS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_disk_and_live_give_the_same_batches_and_blocks(
    tiny_pair, make_corpus, make_harvest, stored_rows, tmp_path, buffer_rows, dtype
):
    pair, corpus = tiny_pair(), make_corpus()
    cache = make_harvest(tmp_path, pair, corpus, (SLOT,), dtype=dtype, shard_tokens=9)
    live = LiveSource(PairReader(pair, corpus, (SLOT,), getattr(torch, dtype)), cache.plan, 1)
    keep = cache.plan.tokens.kept(None, 1)
    one, other = (SlotRows(s, SLOT, 5, buffer_rows) for s in (DiskSource(cache, (SLOT,)), live))
    for mine, theirs in zip(one.blocks(), other.blocks(), strict=True):
        assert np.array_equal(mine.token_N, theirs.token_N)
        assert torch.equal(mine.rows_N2D, theirs.rows_N2D)
    n = 2 * (int(keep.sum()) // 16)
    for mine, theirs in zip(islice(one.batches(keep, 16), n), islice(other.batches(keep, 16), n), strict=True):
        assert mine.dtype == getattr(torch, dtype)
        assert torch.equal(mine, theirs)
    stored = torch.stack(stored_rows(cache, SLOT), 1)
    for block in one.blocks():
        assert torch.equal(block.rows_N2D, stored[torch.from_numpy(block.token_N)])
