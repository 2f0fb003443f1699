"""Small tables as HTML: read aloud cell by cell, and scrolled sideways on a narrow screen."""

from collections.abc import Iterable, Sequence
from typing import Any

import streamlit as st
from markupsafe import Markup, escape

from diffing.core.blocks import Table
from diffing.display.columns import column_kinds
from diffing.display.headline import Scalar, scalars
from diffing.display.numbers import intervals, number
from diffing.display.token_marks import marked

_ROW = Markup("<tr>{}</tr>")


def table(block: Table) -> None:
    """A block's table."""
    kinds = column_kinds(block)
    head = Markup("").join(
        Markup('<th scope="col" class="{}">{}</th>').format(kind, name)
        for name, kind in zip(block.columns, kinds, strict=True)
    )
    rows = (Markup("").join(_cell(value, kind) for value, kind in zip(row, kinds, strict=True)) for row in block.rows)
    _draw(head, rows, block.caption)


def headline_table(summary: Sequence[dict[str, Any]]) -> None:
    """The headline numbers: value, interval, value under the null, unit, and whether it is claimed."""
    names = (
        ("Measure", ""), ("Value", "number"), ("95 % interval", "number"), ("", "axis"), ("Under the null", "number"),
        ("Unit", ""), ("State", ""),
    )  # fmt: skip
    head = Markup("").join(Markup('<th scope="col" class="{}">{}</th>').format(kind, name) for name, kind in names)
    _draw(
        head,
        (_scalar(s) for s in scalars(list(summary))),
        "Bars: the 95 % interval on an axis shared by all numbers of one unit; a hollow diamond marks the value under "
        "the null. Not calibrated: no null comparison says yet how large it must be to count.",
    )


def _draw(head: Markup, rows: Iterable[Markup], caption: str) -> None:
    body = Markup("").join(_ROW.format(r) for r in rows)
    frame = Markup(
        '<figure class="d-figure"><div class="d-scroll" tabindex="0"><table class="d-table"><thead>{}</thead>'
        "<tbody>{}</tbody></table></div>{}</figure>"
    )
    under = Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
    st.html(frame.format(_ROW.format(head), body, under))


def _cell(value: str | float | int | None, kind: str) -> Markup:
    if kind == "token" and value is not None:
        shown = Markup("<code>{}</code>").format(marked(str(value)))
    else:
        shown = intervals(value) if isinstance(value, str) else escape(number(value))
    return Markup('<td class="{}">{}</td>').format(kind, shown)


def _scalar(s: Scalar) -> Markup:
    interval = "–" if s.low is None or s.high is None else f"[{number(s.low)}, {number(s.high)}]"
    cells = (
        Markup('<th scope="row">{}</th>').format(s.name),
        Markup('<td class="number"><b>{}</b></td>').format(number(s.value)),
        Markup('<td class="number whole">{}</td>').format(interval),
        Markup('<td class="axis">{}</td>').format(_strip(s)),
        Markup('<td class="number">{}</td>').format(number(s.null)),
        Markup('<td class="short">{}</td>').format(s.unit),
        Markup('<td class="short">{}</td>').format(s.claim),
    )
    return Markup("").join(cells)


def _strip(s: Scalar) -> Markup:
    if s.strip is None:
        return Markup("")
    null = Markup('<i class="null" style="left:{}%"></i>').format(s.strip.null) if s.strip.null is not None else ""
    return Markup(
        '<span class="d-strip" aria-hidden="true"><i class="zero" style="left:{}%"></i>'
        '<i class="range" style="left:{}%;right:{}%"></i>{}<i class="dot" style="left:{}%"></i></span>'
    ).format(s.strip.zero, s.strip.low, 100 - s.strip.high, null, s.strip.value)


def facts_list(rows: Sequence[tuple[str, str]]) -> None:
    """Labels and values."""
    pairs = (Markup("<dt>{}</dt><dd>{}</dd>").format(label, value) for label, value in rows)
    st.html(Markup('<dl class="d-facts">{}</dl>').format(Markup("").join(pairs)))
