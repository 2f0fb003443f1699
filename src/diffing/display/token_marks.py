"""Model text as safe HTML: nothing of it is markup, and what has no glyph is given a mark.

Besides whitespace that means control characters and those that reorder or join text unseen: a token
that turns the direction of writing would otherwise scramble the page around it.
"""

import unicodedata

from markupsafe import Markup, escape

_TABLE_MARKS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽"}
_HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
_MARK = Markup('<span class="ws">{}</span>')
_BREAK = Markup('<span class="nl"></span>\n')
_JOINER = "\u200d"


def marked(text: str) -> Markup:
    """A token in a table: every space, newline and invisible character shows as a faint mark."""
    if not text:
        return _MARK.format("empty")
    return Markup("").join(_MARK.format(m) if (m := _mark(c, text)) else escape(c) for c in text)


def flowing(text: str) -> Markup:
    """A token in running text: spaces and newlines act as in the text; newlines also leave a mark (by CSS)."""
    if not text:
        return Markup("")
    return Markup("").join(_flow(c, text) for c in text)


def spelled(text: str) -> str:
    """Plain text whose invisible characters, and those that reorder it, are spelled out; white space stays."""
    return "".join(c if c.isspace() else _mark(c, text) or c for c in text)


def visible(text: str) -> str:
    """A token as plain text with every space, newline and invisible character as a mark."""
    return "".join(_mark(c, text) or c for c in text)


def pieces(text: str) -> list[tuple[str, bool]]:
    """A token in running text as plain strings; True marks those that stand for what has no glyph."""
    found: list[tuple[str, bool]] = []
    for character in text:
        if character == "\n":
            found += [("↵", True), ("\n", False)]
        elif character not in " \t\u00a0" and (mark := _mark(character, text)):
            found.append((mark, True))
        elif found and not found[-1][1]:
            found[-1] = (found[-1][0] + character, False)
        else:
            found.append((character, False))
    return found


def _flow(character: str, text: str) -> Markup:
    if character == "\n":
        return _BREAK
    if character in " \t\u00a0":
        return escape(character)
    mark = _mark(character, text)
    return _MARK.format(mark) if mark else escape(character)


def _mark(character: str, text: str) -> str | None:
    if character in _TABLE_MARKS:
        return _TABLE_MARKS[character]
    if unicodedata.category(character) in _HIDDEN and not (character == _JOINER and len(text) > 1):
        return f"U+{ord(character):04X}"
    return None
