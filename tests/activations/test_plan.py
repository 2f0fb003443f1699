"""Blocks and shards: everything once, within limits, and blocks that know nothing of shards."""

from hypothesis import given, settings
from hypothesis import strategies as st

from diffing.activations.plan import cut_into_units, plan_blocks, shard_limit
from diffing.data.token_table import TokenTable

lengths = st.lists(st.integers(2, 40), min_size=1, max_size=25)
corpora = st.dictionaries(st.sampled_from(["a", "b", "c"]), lengths, min_size=1, max_size=3)
batches = st.integers(1, 200)


@given(corpora, batches)
@settings(max_examples=80, deadline=None)
def test_every_sequence_stands_in_one_block_of_its_dataset(make_corpus, each, batch_tokens):
    corpus = make_corpus(each)
    plan = plan_blocks(TokenTable.of(corpus), batch_tokens)
    assert sorted(s for block in plan.blocks for s in block) == list(range(len(corpus.sequences)))
    for block, rows in zip(plan.blocks, plan.token_rows, strict=True):
        sizes = [len(corpus.sequences[s].ids) for s in block]
        assert len({corpus.sequences[s].dataset for s in block}) == 1
        assert len(block) * max(sizes) <= batch_tokens or len(block) == 1
        expected = [r for s in block for r in range(plan.tokens.starts[s], plan.tokens.starts[s + 1])]
        assert rows.tolist() == expected
    assert plan.n_tokens == corpus.n_tokens == sum(plan.sizes)


@given(corpora, batches, st.integers(1, 300))
@settings(max_examples=120, deadline=None)
def test_shards_hold_every_row_once_within_the_limit(make_corpus, each, batch_tokens, limit):
    corpus = make_corpus(each)
    plan = plan_blocks(TokenTable.of(corpus), batch_tokens)
    units = cut_into_units(plan, limit)
    assert [b for u in units for b in u.blocks] == list(range(len(plan.blocks)))
    shards = [s for u in units for s in u.shards]
    assert [s.number for s in shards] == list(range(len(shards)))
    assert len({s.file for s in shards}) == len(shards)
    covered = [0] * len(plan.blocks)
    for unit in units:
        for shard in unit.shards:
            row = 0
            for part in shard.parts:
                assert part.block in unit.blocks
                assert (part.start, part.row) == (covered[part.block], row), "rows follow each other without gaps"
                covered[part.block] += part.tokens
                row += part.tokens
            assert row == shard.n_tokens
            alone = sequences_of(plan, shard)
            assert shard.n_tokens <= limit or len(alone) == 1, "only a single sequence may pass the limit"
    assert tuple(covered) == plan.sizes


def sequences_of(plan, shard):
    """Sequences a shard holds; asserts that each is in it whole."""
    found = []
    for part in shard.parts:
        rows = plan.token_rows[part.block][part.start : part.start + part.tokens]
        here = sorted(set(plan.tokens.sequence_N[rows].tolist()))
        assert sum(plan.tokens.length_of(s) for s in here) == part.tokens, "a sequence was divided"
        found += here
    return found


@given(corpora, batches, st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_a_unit_has_several_shards_only_for_a_block_that_is_larger(make_corpus, each, batch_tokens, limit):
    plan = plan_blocks(TokenTable.of(make_corpus(each)), batch_tokens)
    for unit in cut_into_units(plan, limit):
        larger = [b for b in unit.blocks if plan.sizes[b] > limit]
        assert len(unit.shards) == 1 or (len(unit.blocks) == 1 and larger)
        assert not larger or len(unit.blocks) == 1


def test_shards_worked_out_by_hand(make_corpus):
    plan = plan_blocks(TokenTable.of(make_corpus({"a": [4, 4, 4, 4, 4]})), 8)
    assert plan.blocks == ((0, 1), (2, 3), (4,))
    by_limit = {}
    for limit in (3, 4, 8, 12, 16, 19, 20):
        shards = [s for u in cut_into_units(plan, limit) for s in u.shards]
        by_limit[limit] = [[p.tokens for p in s.parts] for s in shards]
    assert by_limit == {
        3: [[4]] * 5,
        4: [[4]] * 5,
        8: [[8], [8], [4]],
        12: [[8], [8, 4]],
        16: [[8, 8], [4]],
        19: [[8, 8], [4]],
        20: [[8, 8, 4]],
    }


def test_a_block_larger_than_a_shard_is_spread_by_whole_sequences(make_corpus):
    plan = plan_blocks(TokenTable.of(make_corpus({"a": [5, 5, 5, 5], "b": [3]})), 20)
    units = cut_into_units(plan, 11)
    parts = [[(p.block, p.start, p.tokens, p.row) for p in s.parts] for u in units for s in u.shards]
    assert parts == [[(0, 0, 10, 0)], [(0, 10, 10, 0)], [(1, 0, 3, 0)]]
    assert [u.blocks for u in units] == [(0,), (1,)]


def test_the_limit_of_a_shard():
    assert shard_limit(2**20, 8192, 64, 4) == 2**20 // (2 * 64 * 4)
    assert shard_limit(2**30, 8192, 64, 4) == 8192
    assert shard_limit(1000, 8192, 64, 4) == 1
    assert shard_limit(513 * 2 * 64 * 2 - 1, 8192, 64, 2) == 512


def test_chosen_sequences_only(make_corpus):
    tokens = TokenTable.of(make_corpus({"a": [4, 5, 6], "b": [7, 8]}))
    plan = plan_blocks(tokens, 100, [4, 1])
    assert plan.blocks == ((1,), (4,))
    assert plan.n_tokens == 13
