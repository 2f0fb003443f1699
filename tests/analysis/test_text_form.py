"""Repetition and capitals of texts counted by hand."""

import pytest

from diffing.analysis.text_form import capitals, repetition


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([], 0.0), ([1, 2], 0.0), ([1, 2, 3], 0.0), ([7] * 6, 0.75), ([1, 2, 3, 1, 2, 3], 0.25)],
)
def test_repetition(ids, expected):
    assert repetition(ids) == pytest.approx(expected)


@pytest.mark.parametrize(("text", "expected"), [("", (0, 0)), ("AbC 12 混", (2, 3)), ("ÀÉ ß", (2, 3)), ("!?", (0, 0))])
def test_capitals(text, expected):
    assert capitals(text) == expected
