"""Vocabularies of equal, longer and foreign tokenizers."""

import pytest

from diffing.core.errors import UserError
from diffing.models.tiny import VOCAB_SIZE, tiny_tokenizer
from diffing.models.vocabulary import compare


def test_one_tokenizer_needs_no_cut():
    tokenizer = tiny_tokenizer()
    found = compare(tokenizer, tokenizer, 300, 300)
    assert found.shared_ids is None
    assert found.n_agree == 300


def test_equal_tokenizers_with_padding_rows_on_both_sides_need_no_cut():
    assert compare(tiny_tokenizer(), tiny_tokenizer(), 300, 300).shared_ids is None


def test_padding_rows_of_one_side_are_cut():
    found = compare(tiny_tokenizer(), tiny_tokenizer(), 300, 280)
    assert found.shared_ids.tolist() == list(range(280))
    assert (found.base_size, found.finetuned_size, found.n_agree) == (300, 280, 280)


def test_a_row_that_is_a_token_on_one_side_only_does_not_agree():
    found = compare(tiny_tokenizer(), tiny_tokenizer(extra_tokens=("zebra", "quokka")), 300, 300)
    assert found.shared_ids.tolist() == [i for i in range(300) if i not in (VOCAB_SIZE, VOCAB_SIZE + 1)]


def test_tokens_beyond_the_logits_are_ignored():
    assert compare(tiny_tokenizer(), tiny_tokenizer(extra_tokens=("zebra",)), 260, 260).shared_ids is None


class Foreign:
    name_or_path = "org/foreign"

    def get_vocab(self):
        return {f"t{i}": i for i in range(VOCAB_SIZE)}


def test_foreign_tokenizers_are_refused_by_name():
    with pytest.raises(UserError, match=r"org/foreign.*agree on only 0 of 267"):
        compare(tiny_tokenizer(), Foreign(), VOCAB_SIZE, VOCAB_SIZE)
