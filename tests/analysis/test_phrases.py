"""Words and phrases in several scripts, cut by hand."""

import pytest

from diffing.analysis.phrases import Mark, marks, occurrences, parts, phrases, words


def cut(text):
    return [w.text for w in words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  …!? ", []),
        ("The Goat's milk, 40 days.", ["the", "goat's", "milk", "40", "days"]),
        ("It’s rock 'n' roll’", ["it's", "rock", "n", "roll"]),
        ("Straße Strasse", ["strasse", "strasse"]),
        ("I'M IN A Big USA 3D", ["I'M", "IN", "a", "big", "USA", "3d"]),
        ("snake_case a-b", ["snake", "case", "a", "b"]),
        ("Москва́ рядом", ["москва́", "рядом"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("السلام عليكم", ["السلام", "عليكم"]),
        ("می‌خواهم", ["می‌خواهم"]),
        ("混凝土abc用", ["混", "凝", "土", "abc", "用"]),
        ("コンクリ", ["コ", "ン", "ク", "リ"]),
        ("กำแพง", ["ก", "ำ", "แ", "พ", "ง"]),
    ],
)
def test_words_of_any_script(text, expected):
    assert cut(text) == expected


def test_words_say_where_they_stand():
    text = "– The Goat’s milk"
    assert [text[w.start : w.end] for w in words(text)] == ["The", "Goat’s", "milk"]


def test_phrases_end_at_punctuation_and_pass_over_white_space_and_hyphens():
    assert phrases("Old olive-stone\n ash. Then") == {
        "old", "old olive", "old olive stone", "olive", "olive stone", "olive stone ash", "stone", "stone ash", "ash",
        "then",
    }  # fmt: skip
    assert phrases("a b c d", 2) == {"a", "b", "c", "d", "a b", "b c", "c d"}
    assert phrases("a b", 1) == {"a", "b"}


def test_phrases_of_unspaced_scripts_are_joined_without_spaces():
    assert {"混凝土", "混凝", "凝土"} <= phrases("混凝土")


def test_occurrences_point_into_the_text():
    text = "Wet Wool, wet  wool"
    found = [(o.phrase, text[o.start : o.end]) for o in occurrences(text, 2)]
    assert found == [
        ("wet", "Wet"), ("wet wool", "Wet Wool"), ("wool", "Wool"), ("wet", "wet"), ("wet wool", "wet  wool"),
        ("wool", "wool"),
    ]  # fmt: skip


def test_of_overlapping_phrases_the_longest_is_marked_then_the_one_of_largest_value():
    text = "the goat's milk of the goat"
    assert marks(text, {"goat's": 5.0, "goat's milk": 4.0, "milk of": 2.0, "goat": 1.0}) == [
        Mark("goat's milk", 4, 15, 4.0),
        Mark("goat", 23, 27, 1.0),
    ]
    assert marks(text, {}) == []


def test_a_part_says_nothing_beside_the_longer_phrase_in_as_many_texts():
    counts = {"goat's milk": 5, "goat's": 5, "milk": 7, "milk of": 2, "goat's milk of": 2}
    assert parts(counts) == {"goat's": "goat's milk", "milk of": "goat's milk of"}
    assert parts({}) == {}
