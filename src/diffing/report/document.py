"""A page about several results: chapters of blocks with links to the pages of single results; also as Markdown."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from diffing.core.blocks import Figure, Heading, HeatmapList, Paragraph, Section, Table
from diffing.display.numbers import number
from diffing.display.token_marks import visible
from diffing.report import layout
from diffing.report.render import encodable, environment, scripts_of, style
from diffing.report.scripts import figure_for_page, json_for_script, policy

_MARKUP = "\\`*_[]<>|#~"
_WITHIN_WORD = re.compile(r"(?<=\w)\\_(?=\w)")
_AT_START = re.compile(r"^(\d*)(=|[-+](?=[\s-]|$)|[.)](?=\s|$))")  # of a list, a rule or an underline


@dataclass(frozen=True)
class Link:
    """A link to a file, by its path relative to the page."""

    text: str
    path: str

    @property
    def href(self) -> str:
        """The path as a URL."""
        return quote(self.path)


@dataclass(frozen=True)
class Chapter:
    """A part of the page.

    Args:
        section: Its title and blocks.
        links: Shown below them.
    """

    section: Section
    links: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Document:
    """A page.

    Args:
        title: Its heading.
        eyebrow: What kind of page it is, above the heading.
        lead: Sentences below the heading.
        chapters: In order.
        figures: Plotly figures as JSON values, by the name that blocks refer to.
    """

    title: str
    eyebrow: str
    lead: tuple[str, ...]
    chapters: tuple[Chapter, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Placed:
    anchor: str
    section: Section
    placed: Sequence[layout.Placed]
    links: tuple[Link, ...]


def render_document(document: Document) -> str:
    """The page as HTML that needs nothing beside itself."""
    figures = {name: Markup(json_for_script(figure_for_page(data))) for name, data in document.figures.items()}
    chapters = [
        _Placed(f"chapter-{n}", c.section, layout.place(c.section, f"chapter-{n}-part"), c.links)
        for n, c in enumerate(document.chapters, 1)
    ]
    scripts = scripts_of(bool(figures))
    text = (
        environment()
        .get_template("document.html")
        .render(
            document=document,
            chapters=chapters,
            figures=figures,
            policy=policy(scripts),
            scripts=[Markup(s) for s in scripts],
            style=Markup(style()),
        )
    )
    return encodable(text)


def markdown(document: Document) -> str:
    """The same as Markdown; figures are described, examples are quoted."""
    lines = [f"# {_inline(document.title)}", "", *[line for s in document.lead for line in (_inline(s), "")]]
    for chapter in document.chapters:
        lines += [f"## {_inline(chapter.section.title)}", ""]
        lines += [line for part in layout.place(chapter.section) for line in (*_part(part), "")]
        lines += [f"- [{_inline(link.text)}]({link.href})" for link in chapter.links]
        lines += [""] if chapter.links else []
    return encodable("\n".join(lines).rstrip() + "\n")


def _part(part: layout.Placed) -> list[str]:
    block = part.block
    if isinstance(block, tuple):
        return [line for each in block for line in (*_table(each), "")]
    if isinstance(block, Heading):
        return [f"{'#' * part.level} {_inline(block.text)}"]
    if isinstance(block, Paragraph):
        return [_inline(block.text)]
    if isinstance(block, Figure):
        return [f"*{_inline(block.caption)}* {_inline(block.alt)}"]
    if isinstance(block, HeatmapList):
        quoted = [(item.title, "".join(t.text for t in item.tokens)) for item in block.items]
        return [line for title, text in quoted for line in (f"{_inline(title)}:", "", f"> {_inline(text)}", "")]
    assert isinstance(block, Table)
    return _table(block)


def _table(block: Table) -> list[str]:
    rows = [[_cell(block, name, value) for name, value in zip(block.columns, row, strict=True)] for row in block.rows]
    head = ["| " + " | ".join(map(_inline, block.columns)) + " |", "|" + "---|" * len(block.columns)]
    caption = [_inline(block.caption), ""] if block.caption else []
    return [*caption, *head, *("| " + " | ".join(row) + " |" for row in rows)]


def _cell(block: Table, column: str, value: str | float | int | None) -> str:
    if value is None:
        return "–"
    if not isinstance(value, str):
        return number(value)
    return _code(value) if column in block.token_columns else _inline(value)


def _code(text: str) -> str:
    shown = visible(text).replace("|", "¦").replace("`", "ˋ")
    return f"`{shown}`"


def _inline(text: str) -> str:
    """On one line, with nothing that a Markdown reader would take for markup, for another cell or for another block."""
    flat = " ".join(text.split())
    escaped = "".join("&amp;" if c == "&" else f"\\{c}" if c in _MARKUP else c for c in flat)
    return _AT_START.sub(r"\g<1>\\\g<2>", _WITHIN_WORD.sub("_", escaped))
