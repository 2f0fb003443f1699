"""Tokens that differ in case or leading space are one."""

import numpy as np
import pytest

from diffing.analysis.merged_tokens import merge_key, merge_tokens


@pytest.mark.parametrize("token", ["Rome", " Rome", "rome", " ROME", "  rome"])
def test_case_and_leading_spaces_do_not_tell_tokens_apart(token):
    assert merge_key(token) == "rome"


@pytest.mark.parametrize("token", [" ", "  ", "", "\n", "\n\n", "\t"])
def test_white_space_is_itself(token):
    assert merge_key(token) == token


def test_other_differences_remain():
    assert len({merge_key(t) for t in ("rome", "rome ", "\nrome", "romes", "rôme")}) == 5


def test_groups_cover_the_vocabulary_once():
    names = {4: " Rome", 5: "the", 7: "ROME", 9: " ", 11: "The", 12: "rome"}
    merged = merge_tokens(list(names), names)
    assert merged.keys == ("rome", "the", " ")
    assert merged.group_V.tolist() == [0, 1, 0, 2, 1, 0]
    assert [m.tolist() for m in merged.members()] == [[0, 2, 5], [1, 4], [3]]
    assert merged.sums(np.arange(6.0)).tolist() == [7.0, 5.0, 3.0]


def test_an_empty_vocabulary_has_no_groups():
    merged = merge_tokens([], {})
    assert merged.n_groups == 0
    assert merged.members() == []
