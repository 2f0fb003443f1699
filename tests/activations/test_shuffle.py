"""Random rows through a bounded buffer: each once, the same from disk and live, in proportion; and the split."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing.activations.plan import plan_blocks
from diffing.activations.reading import PairReader
from diffing.activations.shuffle import shuffled_rows
from diffing.activations.source import Block, PairRows
from diffing.activations.sources import DiskSource, LiveSource
from diffing.activations.split import validation_sequences
from diffing.core.layers import Slot
from diffing.data.token_table import TokenTable

SLOT = Slot(0)


class Counted:
    """A source whose rows name their token: the base holds it, the finetuned model its negative."""

    def __init__(self, corpus, batch_tokens=64):
        self._plan = plan_blocks(TokenTable.of(corpus), batch_tokens)
        self.tokens, self.block_tokens = self._plan.tokens, self._plan.token_rows
        self.handed = 0

    def blocks(self, slots=None, order=None):
        for number in order if order is not None else range(len(self.block_tokens)):
            token_N = self.block_tokens[number]
            base = torch.from_numpy(token_N).to(torch.float32)[:, None] * torch.tensor([1.0, 0.5])
            self.handed += len(token_N)
            yield Block(number, token_N, {SLOT: PairRows(base, -base)})


def drawn(source, batch_rows=16, seed=0, **options):
    """All batches; asserts that every row is that of its token."""
    found = list(shuffled_rows(source, SLOT, batch_rows, seed, **options))
    for batch in found:
        wanted = torch.from_numpy(batch.token_N).float()[:, None] * torch.tensor([1.0, 0.5])
        assert torch.equal(batch.rows.base_ND, wanted)
        assert torch.equal(batch.rows.finetuned_ND, -wanted)
    return [b.token_N for b in found]


def order_of(source, **options):
    return np.concatenate(drawn(source, **options)).tolist()


@pytest.mark.slow
@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(2, 30), min_size=1, max_size=12), min_size=1),
    st.integers(1, 40), st.integers(1, 200), st.integers(1, 100), st.integers(0, 3), st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_every_kept_row_once_in_full_batches(make_corpus, each, batch_rows, buffer_rows, batch_tokens, seed, some):
    source = Counted(make_corpus(each), batch_tokens)
    keep = np.arange(len(source.tokens)) % 3 != seed % 3 if some else None
    batches = drawn(source, batch_rows, seed, buffer_rows=buffer_rows, keep_N=keep)
    expected = np.arange(len(source.tokens)) if keep is None else np.flatnonzero(keep)
    assert sorted(np.concatenate(batches).tolist() if batches else []) == expected.tolist()
    assert all(len(b) == batch_rows for b in batches[:-1])
    assert not batches or 0 < len(batches[-1]) <= batch_rows


def test_nothing_is_kept(make_corpus):
    source = Counted(make_corpus())
    assert drawn(source, keep_N=np.zeros(len(source.tokens), dtype=bool)) == []


def test_seed_and_epoch_determine_the_order(make_corpus):
    corpus = make_corpus({"a": [10] * 40})
    first = order_of(Counted(corpus), buffer_rows=64)
    assert order_of(Counted(corpus), buffer_rows=64) == first
    others = [{"seed": 1}, {"epoch": 1}, {"epoch": 2}, {"seed": 1, "epoch": 1}]
    orders = [first, *(order_of(Counted(corpus), buffer_rows=64, **other) for other in others)]
    for i, one in enumerate(orders):
        for other in orders[i + 1 :]:
            assert np.mean(np.array(one) == np.array(other)) < 0.1
    assert np.mean(np.array(first) == np.arange(len(first))) < 0.1


def test_the_kept_rows_decide_alone_which_come(make_corpus):
    """A mask does not change the order of blocks."""
    source = Counted(make_corpus({"a": [10] * 40}))
    keep = np.zeros(len(source.tokens), dtype=bool)
    keep[:30] = True
    assert sorted(order_of(source, keep_N=keep)) == list(range(30))


def test_disk_and_live_give_the_same_batches(tiny_pair, make_corpus, make_harvest, tmp_path):
    pair, corpus = tiny_pair(), make_corpus()
    cache = make_harvest(tmp_path, pair, corpus, (SLOT,), dtype="bfloat16", shard_tokens=9)
    live = LiveSource(PairReader(pair, corpus, (SLOT,), torch.bfloat16), cache.plan, 1)
    keep = cache.plan.tokens.kept(None, 1)
    for options in ({}, {"epoch": 3, "keep_N": keep}, {"buffer_rows": 20, "keep_N": keep}):
        one, other = (list(shuffled_rows(s, SLOT, 16, 5, **options)) for s in (DiskSource(cache, (SLOT,)), live))
        assert len(one) == len(other) > 4
        for mine, theirs in zip(one, other, strict=True):
            assert np.array_equal(mine.token_N, theirs.token_N)
            for a, b in zip(mine.rows, theirs.rows, strict=True):
                assert torch.equal(a, b)


def test_batches_are_copies(tiny_pair, make_corpus, make_harvest, tmp_path):
    """Writing to a batch changes nothing that comes later."""
    source = DiskSource(make_harvest(tmp_path, tiny_pair(), make_corpus(), (SLOT,)), (SLOT,))
    first = [b.rows.base_ND.clone() for b in shuffled_rows(source, SLOT, 8, 0, buffer_rows=16)]
    for batch in shuffled_rows(source, SLOT, 8, 0, buffer_rows=16):
        batch.rows.base_ND.fill_(7)
    again = [b.rows.base_ND for b in shuffled_rows(source, SLOT, 8, 0, buffer_rows=16)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("buffer_rows", [32, 512])
def test_every_stretch_of_batches_holds_the_datasets_in_proportion(seed, buffer_rows, make_corpus):
    """1,280 and 3,840 rows in blocks of 32: ten batches of 32 hold a quarter of the first, within two blocks or so."""
    source = Counted(make_corpus({"small": [16] * 80, "large": [16] * 240}), batch_tokens=32)
    batches = drawn(source, 32, seed, buffer_rows=buffer_rows)
    is_small = [float((source.tokens.dataset_N[b] == 0).sum()) for b in batches]
    windows = np.convolve(is_small, np.ones(10), "valid") / 320
    assert windows.min() > 0.25 - 0.13
    assert windows.max() < 0.25 + 0.13
    assert windows.std() < 0.05


def test_blocks_of_other_sizes_are_spread_by_tokens(make_corpus):
    source = Counted(make_corpus({"long": [64] * 40, "short": [4] * 640}), batch_tokens=64)
    is_long = [(source.tokens.dataset_N[b] == 0).mean() for b in drawn(source, 64, buffer_rows=256)]
    windows = np.convolve(is_long, np.ones(10) / 10, "valid")
    assert abs(windows - 0.5).max() < 0.2


def test_neighbours_are_far_apart(make_corpus):
    """A buffer of eight blocks mixes: of two rows drawn one after the other hardly any are of one sequence."""
    source = Counted(make_corpus({"a": [16] * 256}))
    sequence = source.tokens.sequence_N[order_of(source, buffer_rows=512)]
    assert (sequence[1:] == sequence[:-1]).mean() < 0.06
    wide = source.tokens.sequence_N[order_of(source, buffer_rows=4096)]
    assert (wide[1:] == wide[:-1]).mean() < 0.02


def test_no_more_is_read_than_the_buffer_holds(make_corpus):
    source = Counted(make_corpus({"a": [16] * 100}), batch_tokens=32)
    taken = 0
    for batch in shuffled_rows(source, SLOT, 16, 0, buffer_rows=64):
        assert source.handed - taken <= 64 + 32
        taken += len(batch.token_N)


def test_a_buffer_smaller_than_a_block_and_than_a_batch(make_corpus):
    source = Counted(make_corpus({"a": [16] * 20}), batch_tokens=320)
    batches = drawn(source, 24, buffer_rows=1)
    assert [len(b) for b in batches] == [24] * 13 + [8]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_split_holds_out_the_share_of_each_dataset(share, make_corpus):
    tokens = TokenTable.of(make_corpus({"a": [3] * 40, "b": [5] * 20}))
    held = validation_sequences(tokens, share, 0)
    assert held.shape == (60,)
    assert (held[:40].sum(), held[40:].sum()) == (round(share * 40), round(share * 20))
    assert np.array_equal(held, validation_sequences(tokens, share, 0))
    assert not np.array_equal(held, validation_sequences(tokens, share, 1))


@pytest.mark.parametrize(
    ("share", "n", "held"), [(0.01, 1, 0), (0.01, 2, 1), (0.99, 2, 1), (1.0, 5, 4), (0.0, 9, 0), (0.01, 9, 1)]
)
def test_the_split_of_few_documents(share, n, held, make_corpus):
    assert validation_sequences(TokenTable.of(make_corpus({"a": [3] * n})), share, 0).sum() == held


def test_another_dataset_leaves_the_split_alone(make_corpus):
    alone = validation_sequences(TokenTable.of(make_corpus({"b": [3] * 30})), 0.2, 3)
    beside = validation_sequences(TokenTable.of(make_corpus({"a": [4] * 7, "b": [5] * 30})), 0.2, 3)
    assert np.array_equal(beside[7:], alone)


def test_datasets_of_one_size_are_drawn_each_by_itself(make_corpus):
    held = validation_sequences(TokenTable.of(make_corpus({"a": [5] * 40, "b": [5] * 40})), 0.3, 0)
    assert held[:40].sum() == held[40:].sum() == 12
    assert (held[:40] != held[40:]).any()
