"""A table of a result, read page by page: search, filters, order, download."""

from pathlib import Path
from typing import Any

import streamlit as st

from diffing.core.result import Result
from diffing.display.token_marks import visible
from diffing.ui import query as q
from diffing.ui.parts import one_of, one_of_many

SIZES = (25, 50, 100, 200)
_DOWNLOADED = 100_000
_SIDE_BY_SIDE = 6
_TOKEN_COLUMNS = ("token", "next_token")


def paged_table(result: Result, name: str, key: str, hidden: tuple[str, ...] = (), picks: tuple[str, ...] = ()) -> None:
    """One table of a result with what it takes to find a row in it.

    Args:
        result: The result.
        name: Table's name.
        key: Prefix of the widgets' names in the URL.
        hidden: Columns left out of the picture (not of the download).
        picks: Columns of few values, whose values are offered side by side above the table.
    """
    path = result.path(f"tables/{name}.parquet")
    known = q.columns(path)
    picked = _picks(path, known, picks, key)
    query = _query(path, known, key, picked)
    n_rows = q.count(path, query, known)
    place = st.container()
    offset, size = _position(n_rows, key)
    rows = q.page(path, query, known, offset, size)
    shown = [c.name for c in known if c.name not in hidden and c.name not in {f.column for f in picked}]
    with place:
        _draw(rows, shown, key)
    _downloads(result, path, query, known, name, key, n_rows)


def _picks(path: Path, known: list[q.Column], names: tuple[str, ...], key: str) -> list[q.Filter]:
    found = []
    for column, name in zip(st.columns(max(len(names), 1)), names, strict=False):
        values = {str(v): v for v in q.choices(path, name, known)}
        if len(values) > 1:
            with column:
                choose = one_of if len(values) <= _SIDE_BY_SIDE else one_of_many
                chosen = choose(name, ["all", *values], f"{key}_pick_{name}")
            found += [q.Filter(name, "is one of", [values[chosen]])] if chosen in values else []
    return found


def _query(path: Path, known: list[q.Column], key: str, picked: list[q.Filter]) -> q.Query:
    names = [c.name for c in known if c.kind != "list"]
    left, middle, right, last = st.columns([3, 3, 2, 3], vertical_alignment="bottom")
    texts = [c for c in known if c.kind == "text"]
    search = left.text_input(
        "Search in text columns", key=f"{key}_search", bind="query-params", disabled=not texts, max_chars=200
    )
    order = middle.selectbox("Order by", ["as stored", *names], key=f"{key}_order", bind="query-params")
    descending = right.toggle("largest first", value=True, key=f"{key}_down", bind="query-params")
    chosen = last.multiselect("Columns to filter", names, key=f"{key}_filters", bind="query-params")
    filters = [f for name in chosen for f in _filter(path, known, name, f"{key}_{name}")]
    return q.Query((*picked, *filters), search or "", None if order == "as stored" else order, descending)


def _filter(path: Path, known: list[q.Column], name: str, key: str) -> list[q.Filter]:
    kind = next(c.kind for c in known if c.name == name)
    few = q.choices(path, name, known) if kind in ("text", "truth") else []
    if few:
        values = st.multiselect(f"{name} is one of", few, key=key)
        return [q.Filter(name, "is one of", values)] if values else []
    if kind == "text":
        value = st.text_input(f"{name} contains", key=key)
        return [q.Filter(name, "contains", value)] if value else []
    low, high = st.columns(2)
    bounds: list[tuple[q.Operator, Any]] = [
        ("at least", low.number_input(f"{name} at least", value=None, key=f"{key}_low", format="%g")),
        ("at most", high.number_input(f"{name} at most", value=None, key=f"{key}_high", format="%g")),
    ]
    return [q.Filter(name, operator, value) for operator, value in bounds if value is not None]


def _position(n_rows: int, key: str) -> tuple[int, int]:
    left, right, told = st.columns([1, 1, 2], vertical_alignment="bottom")
    size = left.selectbox("Rows on a page", SIZES, index=1, key=f"{key}_size", bind="query-params")
    n_pages = max(1, -(-n_rows // size))
    page = right.number_input(f"Page of {n_pages:,}", 1, None, 1, key=f"{key}_page", bind="query-params")
    page = min(int(page), n_pages)
    first = (page - 1) * size
    told.caption(f"Rows {min(first + 1, n_rows):,} to {min(first + size, n_rows):,} of {n_rows:,}")
    return first, size


def _draw(rows: Any, shown: list[str], key: str) -> None:
    for name in set(_TOKEN_COLUMNS) & set(rows.column_names):
        index = rows.column_names.index(name)
        rows = rows.set_column(index, name, [[None if v is None else visible(v) for v in rows[name].to_pylist()]])
    st.dataframe(rows.select(shown), hide_index=True, key=f"{key}_rows", alt=f"Rows of {', '.join(shown)}")


def _downloads(
    result: Result, path: Path, query: q.Query, known: list[q.Column], name: str, key: str, n_rows: int
) -> None:
    left, right, _ = st.columns([1, 1, 2])
    file = f"{result.manifest['pair']['organism']}-{result.method}-{name}"
    left.download_button(
        "Table (parquet)", path.read_bytes, f"{file}.parquet", "application/vnd.apache.parquet", key=f"{key}_parquet",
        on_click="ignore", icon=":material/download:", help="The whole table, as it was written.",
    )  # fmt: skip
    right.download_button(
        "These rows (CSV)", lambda: q.csv(path, query, known, _DOWNLOADED), f"{file}.csv", "text/csv", key=f"{key}_csv",
        on_click="ignore", icon=":material/download:", disabled=n_rows == 0,
        help=f"The rows that fit search and filters, at most {_DOWNLOADED:,}.",
    )  # fmt: skip
