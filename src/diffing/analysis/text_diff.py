"""Where two texts differ, by words: what stands in one and not in the other."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import chain, takewhile

# A word is a run of what is neither space nor punctuation; scripts without spaces are taken character by character.
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_PUNCTUATION = r"!-/:-@\[-`{-~\u00a1-\u00bf\u2010-\u2027\u2030-\u205e\u3001-\u303f\uff01-\uff0f"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_PUNCTUATION}{_UNSPACED}]+|[{_PUNCTUATION}]")
_MOST_PAIRS = 200_000


@dataclass(frozen=True)
class DiffSpan:
    """Characters `start` to `end` (exclusive) of a text."""

    start: int
    end: int


def diff_spans(a: str, b: str) -> tuple[list[DiffSpan], list[DiffSpan]]:
    """Characters of `a` that do not stand in `b`, and of `b` that do not stand in `a`.

    Without its spans each text is the same. Words are compared, and the white space between words that both have.

    Args:
        a: One text.
        b: The other. Very long texts are compared piece by piece, which may mark more than needed.
    """
    words_a, words_b = list(_WORD.finditer(a)), list(_WORD.finditer(b))
    matched = _matches([m.group() for m in words_a], [m.group() for m in words_b], 0, 0)
    spans_a, spans_b = [], []
    start_a = start_b = 0
    ends = ((len(a), len(a), len(b), len(b)),)
    for begin_a, end_a, begin_b, end_b in chain(((*words_a[i].span(), *words_b[j].span()) for i, j in matched), ends):
        between_a, between_b = a[start_a:begin_a], b[start_b:begin_b]
        before, after = _shared_space(between_a, between_b)
        spans_a += _span(start_a + before, begin_a - after)
        spans_b += _span(start_b + before, begin_b - after)
        start_a, start_b = end_a, end_b
    return spans_a, spans_b


def _span(start: int, end: int) -> list[DiffSpan]:
    return [DiffSpan(start, end)] if start < end else []


def _shared_space(a: str, b: str) -> tuple[int, int]:
    """White space that both begin with and, of the rest, end with."""
    before = _shared_start(a, b)
    return before, _shared_start(a[before:][::-1], b[before:][::-1])


def _shared_start(a: str, b: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1] and pair[0].isspace(), zip(a, b, strict=False)))


def _matches(a: Sequence[str], b: Sequence[str], at_a: int, at_b: int) -> Iterator[tuple[int, int]]:
    """Places of words that match, ascending in both; `at_a` and `at_b` are added.

    difflib looks at every pair of equal words at least once. Texts with too many (models that repeat themselves)
    are halved, so that the time grows no faster than the length.
    """
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    yield from ((at_a + k, at_b + k) for k in range(shared))
    a, b, at_a, at_b = a[shared:], b[shared:], at_a + shared, at_b + shared
    in_b = Counter(b)
    if sum(n * in_b[word] for word, n in Counter(a).items()) > _MOST_PAIRS:
        half_a, half_b = len(a) // 2, len(b) // 2
        yield from _matches(a[:half_a], b[:half_b], at_a, at_b)
        yield from _matches(a[half_a:], b[half_b:], at_a + half_a, at_b + half_b)
        return
    for block in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        yield from ((at_a + block.a + k, at_b + block.b + k) for k in range(block.size))
