"""A table of links, rows by columns, such as organisms by methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from streamlit.components.v2 import component

_FOLDER = Path(__file__).parent
_GLYPHS = {"done": "●", "running": "◐", "failed": "✕", "interrupted": "‖", "stale": "◌", "damaged": "⚠"}


@dataclass(frozen=True)
class Cell:
    """A link; `small` are lines under its text, `reason` one that may be long."""

    id: str
    href: str
    status: str
    text: str
    small: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Row:
    """A row's name, links to elsewhere (url, text), and a cell or nothing for each column."""

    name: str
    links: tuple[tuple[str, str], ...]
    cells: tuple[Cell | None, ...]


def matrix(label: str, corner: str, columns: Sequence[str], rows: Sequence[Row], key: str) -> str | None:
    """Draw the table; gives the id of the cell that was just clicked."""
    data = {"label": label, "corner": corner, "columns": list(columns), "rows": [_row(r) for r in rows]}
    # In a list: to look for tables in a dictionary, Streamlit imports pandas while the first page is waited for.
    found = _component()(key=key, data=[data], on_open_change=lambda: None)
    chosen = found.get("open")
    return chosen if isinstance(chosen, str) else None


def glyph(status: str) -> str:
    """The mark of a status."""
    return _GLYPHS[status]


def _row(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "links": [{"url": url, "text": text} for url, text in row.links],
        "cells": [_cell(c) for c in row.cells],
    }


def _cell(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    small = [{"text": line, "isReason": False} for line in cell.small]
    small += [{"text": cell.reason, "isReason": True}] if cell.reason else []
    return {
        "id": cell.id, "href": cell.href, "status": cell.status, "glyph": glyph(cell.status), "text": cell.text,
        "small": small,
    }  # fmt: skip


@cache
def _component() -> Any:
    return component(
        "diffing_matrix", html='<div class="root"></div>', css=(_FOLDER / "matrix.css").read_text(encoding="utf-8"),
        js=(_FOLDER / "matrix.js").read_text(encoding="utf-8"),
    )  # fmt: skip
