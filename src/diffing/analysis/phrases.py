"""Words and phrases of texts in any script."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_APOSTROPHES = "'\u2019"
_JOINERS = "\u200c\u200d"
# Scripts written without spaces: each character with its marks counts as a word. Kana and ideographs, Thai, Lao,
# Burmese, Khmer.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
LONGEST = 3


@dataclass(frozen=True)
class Word:
    """A word: its text, and its characters `start` to `end` (exclusive).

    Case is folded, but in words wholly in capitals: who writes `OF THE` where others write `of the` says something.
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Occurrence:
    """Where a phrase stands: characters `start` to `end` (exclusive)."""

    phrase: str
    start: int
    end: int


@dataclass(frozen=True)
class Mark:
    """A stretch of a text that holds a phrase with a value."""

    phrase: str
    start: int
    end: int
    value: float


def words(text: str) -> list[Word]:
    """Words of a text: runs of letters, marks and digits, with apostrophes inside them."""
    found: list[Word] = []
    start: int | None = None
    for i, character in enumerate(text):
        if start is not None and _goes_on(text, start, i):
            continue
        if start is not None:
            found.append(_word(text, start, i))
        start = i if _begins(character) else None
    if start is not None:
        found.append(_word(text, start, len(text)))
    return found


def _begins(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN"


def _goes_on(text: str, start: int, i: int) -> bool:
    """Whether the word that begins at `start` has the character at `i` too."""
    character = text[i]
    if character in _JOINERS or unicodedata.category(character)[0] == "M":
        return True
    if _is_unspaced(text[start]) or _is_unspaced(character):
        return False
    if character in _APOSTROPHES:
        return i + 1 < len(text) and text[i + 1].isalpha() and text[i - 1].isalpha() and not _is_unspaced(text[i + 1])
    return _begins(character)


def _is_unspaced(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _UNSPACED)


def _word(text: str, start: int, end: int) -> Word:
    word = text[start:end].replace("\u2019", "'")
    is_in_capitals = word.isupper() and sum(c.isupper() for c in word) > 1
    return Word(word if is_in_capitals else word.casefold(), start, end)


def occurrences(text: str, longest: int = LONGEST) -> Iterator[Occurrence]:
    """All phrases of 1 to `longest` words, by where they begin and then by length.

    Words belong to one phrase where nothing but white space or a hyphen stands between them. A phrase is written with
    single spaces, and without where the text has none.
    """
    found = words(text)
    for i, word in enumerate(found):
        phrase = word.text
        yield Occurrence(phrase, word.start, word.end)
        for before, after in zip(found[i : i + longest - 1], found[i + 1 : i + longest], strict=False):
            between = text[before.end : after.start]
            if between.strip() not in ("", "-"):
                break
            phrase += (" " if between else "") + after.text
            yield Occurrence(phrase, word.start, after.end)


def phrases(text: str, longest: int = LONGEST) -> set[str]:
    """The distinct phrases of a text."""
    return {o.phrase for o in occurrences(text, longest)}


def n_words(phrase: str) -> int:
    """Words of a phrase."""
    return len(words(phrase))


def marks(text: str, values: Mapping[str, float], longest: int = LONGEST) -> list[Mark]:
    """Where the phrases of `values` stand in a text; of those that overlap the longest, then the one of largest value.

    Args:
        text: The text.
        values: By phrase, its value.
        longest: Words of the longest phrase.
    """
    found = [o for o in occurrences(text, longest) if o.phrase in values]
    chosen: list[Mark] = []
    for o in sorted(found, key=lambda o: (-n_words(o.phrase), -values[o.phrase], o.start)):
        if all(o.end <= m.start or o.start >= m.end for m in chosen):
            chosen.append(Mark(o.phrase, o.start, o.end, values[o.phrase]))
    return sorted(chosen, key=lambda m: m.start)


def parts(counts: Mapping[str, int], longest: int = LONGEST) -> dict[str, str]:
    """Phrases that say nothing beside a longer one: part of it, and in no more texts.

    Args:
        counts: By phrase, how many texts hold it.
        longest: Words of the longest phrase.

    Returns:
        By such a phrase, the longest phrase that holds it.
    """
    found: dict[str, str] = {}
    for whole in sorted(counts, key=lambda p: (-n_words(p), p)):
        for part in phrases(whole, longest) - {whole}:
            if counts.get(part) == counts[whole]:
                found.setdefault(part, whole)
    return found


def distinct_share(texts: Sequence[str]) -> float:
    """Share of texts that differ from all before them."""
    return len(set(texts)) / len(texts)
