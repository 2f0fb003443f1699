"""Text of models and users on a page: never markup, whatever it holds.

Streamlit's Markdown reads links, formulas, colours, icons and emoji codes; what a model wrote goes through here first.
"""

import re
from collections.abc import Iterable

import streamlit as st
from markupsafe import Markup, escape

from diffing.display.token_marks import flowing, spelled

_TAME = re.compile(r"(?:[^\W_]|(?<=\w)_(?=\w)|[ ,·‖Δ])*")
_REWRITTEN = re.compile(r"--|->|<-|:streamlit:|www\.|://|@")
_SPECIAL = re.compile(r"([!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~])")


def plain(text: str) -> str:
    """`text` for a place that reads Markdown (labels, captions, messages): shown as it is, on one line.

    Streamlit rewrites some words after Markdown is read (`--`, `->`, addresses): these are set as code.
    """
    words = spelled(text).split()
    return " ".join(code(word) if _REWRITTEN.search(word) else _SPECIAL.sub(r"\\\1", word) for word in words)


def label(text: str) -> str:
    """As `plain`, but text without anything that Markdown could read stays as it is: it may stand in the URL."""
    return text if _TAME.fullmatch(text) else plain(text)


def code(text: str) -> str:
    """`text` as inline code in Markdown."""
    text = spelled(text)
    fence = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    return f"{fence} {' '.join(text.split())} {fence}"


def paragraph(text: str, kind: str = "") -> None:
    """A paragraph of text; `kind` is a class of `page.css`."""
    st.html(Markup('<p class="d-text {}">{}</p>').format(kind, spelled(text)))


def quote(text: str, marks: Iterable[tuple[int, int]] = ()) -> None:
    """A model's text with its line breaks; characters in `marks` (start, end exclusive) stand out."""
    st.html(quoted(text, marks))


def quoted(text: str, marks: Iterable[tuple[int, int]] = ()) -> Markup:
    """As `quote`, as safe HTML."""
    parts, at = [], 0
    for start, end in sorted(marks):
        if end <= max(start, at):
            continue
        parts += [flowing(text[at:start]), Markup("<mark>{}</mark>").format(flowing(text[max(start, at) : end]))]
        at = end
    parts.append(flowing(text[at:]))
    return Markup('<div class="d-quote">{}</div>').format(Markup("").join(parts))


def link(url: str, text: str) -> Markup:
    """A link that opens in a new tab."""
    return Markup('<a href="{}" target="_blank" rel="noopener noreferrer">{} ↗</a>').format(url, escape(text))
