"""Batches: every sequence once, the budget kept, padding on the right."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffing.core.specs import CorpusSpec
from diffing.core.templates import TemplateRules
from diffing.data.batches import make_batch, plan_batches
from diffing.data.documents import documents_from_texts
from diffing.data.tokens import tokenize_documents

LENGTHS = st.lists(st.integers(1, 60), max_size=80)


@given(lengths=LENGTHS, budget=st.integers(1, 300))
def test_every_sequence_once_within_the_budget(lengths, budget):
    plan = plan_batches(lengths, budget)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
    for batch in plan:
        assert len(batch) * max(lengths[i] for i in batch) <= budget or len(batch) == 1


@given(lengths=LENGTHS, budget=st.integers(1, 300))
def test_longest_first_and_a_batch_ends_for_a_reason(lengths, budget):
    plan = plan_batches(lengths, budget)
    flat = [lengths[i] for batch in plan for i in batch]
    assert flat == sorted(flat, reverse=True)
    for batch, after in pairwise(plan):
        padded = (len(batch) + 1) * lengths[batch[0]]
        tokens = sum(lengths[i] for i in batch) + lengths[after[0]]
        is_full, is_wasteful = padded > budget, 4 * padded >= budget and padded - tokens > 0.04 * padded
        assert is_full or is_wasteful


def test_a_plan_by_hand():
    assert plan_batches([3, 5, 3, 9, 1], 10) == ((3,), (1,), (0, 2), (4,))
    assert plan_batches([100, 99, 98, 97, 96, 50], 400) == ((0, 1, 2, 3), (4,), (5,))
    assert plan_batches([], 10) == ()


@pytest.mark.parametrize("pad_id", [0, 7])
def test_batches_are_padded_on_the_right(make_tokenizer, pad_id):
    documents = {"a": documents_from_texts("a", ["the answer", "the answer is fine", "yes, user"])}
    corpus = tokenize_documents(documents, CorpusSpec(datasets=()), make_tokenizer(), TemplateRules())
    batch = make_batch(corpus, (1, 0), pad_id)
    assert batch.sequences == (1, 0)
    assert batch.lengths == tuple(len(corpus.sequences[i].ids) for i in (1, 0))
    assert batch.ids_BT.dtype == torch.int64
    assert batch.ids_BT.shape == (2, max(batch.lengths))
    for row, length, i in zip(batch.ids_BT, batch.lengths, batch.sequences, strict=True):
        assert row[:length].tolist() == corpus.sequences[i].ids.tolist()
        assert (row[length:] == pad_id).all()
