"""The token table against a plain loop over the corpus."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing.core.specs import CorpusSpec
from diffing.data.documents import documents_from_texts
from diffing.data.token_table import TokenTable
from diffing.data.tokens import ROLES, Corpus, TokenSequence, tokenize_documents


def corpus_of(each):
    """Sequences given as (dataset, index, [(id, role, template, special), …])."""
    sequences = []
    for dataset, index, tokens in each:
        ids, roles, template, special = (np.array(column) for column in zip(*tokens, strict=True))
        made = ids.astype(np.int32), roles.astype(np.uint8), template.astype(bool), special.astype(bool)
        sequences.append(TokenSequence(dataset, index, *made))
    names = tuple(dict.fromkeys(s.dataset for s in sequences))
    return Corpus(names, tuple(sequences), "x", (), dict.fromkeys(names, 1))


one_token = st.tuples(st.integers(0, 9), st.integers(0, len(ROLES) - 1), st.booleans(), st.booleans())
one_sequence = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 50), st.lists(one_token, min_size=1, max_size=6))
corpora = st.lists(one_sequence, min_size=1, max_size=6).map(lambda each: corpus_of(sorted(each, key=lambda s: s[0])))


@given(corpora)
@settings(max_examples=80, deadline=None)
def test_columns_are_those_of_a_plain_loop(corpus):
    table = TokenTable.of(corpus)
    row = 0
    for number, s in enumerate(corpus.sequences):
        assert table.rows_of(number) == slice(row, row + len(s.ids))
        assert table.length_of(number) == len(s.ids)
        assert table.dataset_of(number) == s.dataset
        assert table.documents[number] == s.index
        for position in range(len(s.ids)):
            last = position == len(s.ids) - 1
            assert table.sequence_N[row] == number
            assert table.position_N[row] == position
            assert table.datasets[table.dataset_N[row]] == s.dataset
            assert table.ids_N[row] == s.ids[position]
            assert table.next_N[row] == (-1 if last else s.ids[position + 1])
            assert table.role_N[row] == s.roles[position]
            assert table.is_template_N[row] == s.is_template[position]
            assert table.is_special_N[row] == s.is_special[position]
            row += 1
    assert len(table) == row
    assert table.n_sequences == len(corpus.sequences)
    assert table.ids_N[0] == corpus.sequences[0].ids[0], "next_N leaves the ids alone"


@given(corpora, st.sampled_from([None, 0, 3]), st.integers(0, 3), st.booleans())
@settings(max_examples=80, deadline=None)
def test_kept_tokens_are_those_of_a_plain_loop(corpus, bos_id, skip_first, skip_template):
    expected = []
    for s in corpus.sequences:
        for position in range(len(s.ids)):
            keep = position >= skip_first
            if skip_template and s.is_template[position]:
                keep = False
            first = position == 0 and bos_id is not None and s.ids[0] == bos_id
            if first and s.is_special[0] and not s.is_template[0]:
                keep = False
            expected.append(keep)
    assert TokenTable.of(corpus).kept(bos_id, skip_first, skip_template).tolist() == expected


@given(corpora)
@settings(max_examples=80, deadline=None)
def test_new_tokens_are_those_that_no_earlier_text_begins_with(corpus):
    seen, expected = set(), []
    for s in corpus.sequences:
        for end in range(1, len(s.ids) + 1):
            beginning = s.dataset, tuple(s.ids[:end].tolist())
            expected.append(beginning not in seen)
            seen.add(beginning)
    assert TokenTable.of(corpus).is_new_N.tolist() == expected


def test_of_equal_texts_the_first_alone_is_new():
    same = [(n, 0, False, False) for n in (3, 3, 5)]
    table = TokenTable.of(corpus_of([("a", 0, same), ("a", 1, same), ("a", 2, same[:2]), ("b", 0, same)]))
    assert table.is_new_N.tolist() == [True] * 3 + [False] * 3 + [False] * 2 + [True] * 3


PLAIN, SPECIAL, TEMPLATE, BOTH = (False, False), (False, True), (True, False), (True, True)


@pytest.mark.parametrize(
    ("first", "bos_id", "skip_template", "kept"),
    [
        ((7, 0, *SPECIAL), 7, False, False),
        ((7, 0, *SPECIAL), None, False, True),
        ((7, 0, *SPECIAL), 8, False, True),
        ((7, 0, *PLAIN), 7, False, True),
        ((7, 0, *BOTH), 7, False, True),
        ((7, 0, *BOTH), 7, True, False),
        ((7, 0, *TEMPLATE), None, True, False),
    ],
)
def test_the_leading_token(first, bos_id, skip_template, kept):
    table = TokenTable.of(corpus_of([("a", 0, [first, (7, 0, *SPECIAL)])]))
    assert table.kept(bos_id, 0, skip_template).tolist() == [kept, True]


def test_all_positions_left_out():
    table = TokenTable.of(corpus_of([("a", 0, [(1, 0, *PLAIN)] * 3), ("b", 0, [(1, 0, *PLAIN)] * 5)]))
    assert table.kept(None, 3).tolist() == [False] * 6 + [True] * 2
    assert not table.kept(None, 5).any()


@given(corpora, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_sums_by_sequence_are_those_of_a_plain_loop(corpus, random):
    table = TokenTable.of(corpus)
    values = np.array([random.choice([float("nan"), random.uniform(-5, 5)]) for _ in range(len(table))])
    mask = np.array([random.random() < 0.7 for _ in range(len(table))])
    sums, counts = table.sums_by_sequence(values, mask)
    for number in range(table.n_sequences):
        used = [v for v, m in zip(values[table.rows_of(number)], mask[table.rows_of(number)], strict=True) if m]
        used = [v for v in used if not np.isnan(v)]
        assert counts[number] == len(used)
        assert sums[number] == pytest.approx(sum(used), abs=1e-12)
    assert len(sums) == len(counts) == table.n_sequences


@given(corpora)
@settings(max_examples=30, deadline=None)
def test_the_arrow_table_spells_names_out(corpus):
    found = TokenTable.of(corpus).to_arrow().to_pydict()
    row = 0
    for number, s in enumerate(corpus.sequences):
        for position in range(len(s.ids)):
            values = {name: column[row] for name, column in found.items()}
            assert values == {
                "dataset": s.dataset,
                "sequence": number,
                "document": s.index,
                "position": position,
                "token_id": s.ids[position],
                "role": ROLES[s.roles[position]],
                "is_template": bool(s.is_template[position]),
                "is_special": bool(s.is_special[position]),
            }
            row += 1
    assert len(found["dataset"]) == row


def test_of_a_tokenised_corpus_with_a_leading_token(make_tokenizer):
    from diffing.core.templates import TemplateRules

    tokenizer = make_tokenizer(adds_bos=True)
    texts = documents_from_texts("t", ["yes, the answer is fine.", "a helpful AI"])
    corpus = tokenize_documents({"t": texts}, CorpusSpec(datasets=()), tokenizer, TemplateRules())
    table = TokenTable.of(corpus)
    assert (table.ids_N[table.starts[:-1]] == tokenizer.bos_token_id).all()
    kept = table.kept(tokenizer.bos_token_id)
    assert np.flatnonzero(~kept).tolist() == table.starts[:-1].tolist()
