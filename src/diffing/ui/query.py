"""Pages of a parquet file: filtered, sorted and cut by DuckDB, so that a table is never read whole."""

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import duckdb
import pyarrow as pa

from diffing.core.errors import UserError

Operator = Literal["is one of", "contains", "at least", "at most"]
T = TypeVar("T")
_FEW = 40
_ROW = "file_row_number"
_DAMAGE = (duckdb.Error, duckdb.IOException, duckdb.InvalidInputException)  # the first: a footer that is not one
_SETTINGS = {
    "threads": 2, "memory_limit": "256MB", "temp_directory": "", "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column and what it holds: text, a number, a truth value, or a list."""

    name: str
    kind: Literal["text", "number", "truth", "list"]


@dataclass(frozen=True)
class Filter:
    """A condition on one column."""

    column: str
    operator: Operator
    value: Any


@dataclass(frozen=True)
class Query:
    """Which rows, in which order.

    Args:
        filters: All must hold.
        search: Text that some text column must contain, whatever the case; "" for any.
        order: Column to sort by; None: as stored.
        descending: Largest first.
    """

    filters: tuple[Filter, ...] = ()
    search: str = ""
    order: str | None = None
    descending: bool = True


def columns(path: Path) -> list[Column]:
    """Columns of a parquet file."""
    with _connection() as db:
        rows = _rows(db, "DESCRIBE SELECT * FROM read_parquet(?)", [], path)
    return [Column(name, _kind(kind)) for name, kind, *_ in rows]


def count(path: Path, query: Query, known: Sequence[Column]) -> int:
    """Rows that fit."""
    where, values = _where(query, known)
    with _connection() as db:
        return int(_rows(db, f"SELECT count(*) FROM read_parquet(?){where}", values, path)[0][0])


def page(path: Path, query: Query, known: Sequence[Column], offset: int, size: int) -> pa.Table:
    """`size` rows from `offset` on.

    Their numbers are found first, from the columns that decide alone: a late page of whole rows would not fit.
    """
    where, values = _where(query, known)
    by = f"{_quoted(query.order, known)} {'DESC' if query.descending else 'ASC'} NULLS LAST, " if query.order else ""
    source = f"FROM read_parquet(?, {_ROW}=true)"
    with _connection() as db:
        if where or by:
            found = f"SELECT {_ROW} {source}{where} ORDER BY {by}{_ROW} LIMIT ? OFFSET ?"
            numbers = [row[0] for row in _rows(db, found, [*values, size, offset], path)]
        else:
            numbers = list(range(offset, offset + size))
        sql = f"SELECT * {source} WHERE {_ROW} IN (SELECT unnest(?))"
        rows = _read(lambda: db.sql(sql, params=[_pattern(path), numbers]).to_arrow_table(), path)
    place = {number: i for i, number in enumerate(rows[_ROW].to_pylist())}
    return rows.drop_columns([_ROW]).take(pa.array([place[n] for n in numbers if n in place], pa.int64()))


def choices(path: Path, column: str, known: Sequence[Column]) -> list[Any]:
    """The distinct values of a column, in order; empty when there are more than 40."""
    name = _quoted(column, known)
    sql = f"SELECT DISTINCT {name} FROM read_parquet(?) WHERE {name} IS NOT NULL ORDER BY 1 LIMIT {_FEW + 1}"
    with _connection() as db:
        found = [row[0] for row in _rows(db, sql, [], path)]
    return found if len(found) <= _FEW else []


def csv(path: Path, query: Query, known: Sequence[Column], most: int) -> bytes:
    """The first `most` rows that fit, as CSV; lists are written as text."""
    from pyarrow import csv as pyarrow_csv

    table = page(path, query, known, 0, most)
    flat = [_as_text(table[c.name]) if c.kind == "list" else table[c.name] for c in known]
    sink = pa.BufferOutputStream()
    pyarrow_csv.write_csv(pa.table(flat, names=[c.name for c in known]), sink)
    return sink.getvalue().to_pybytes()


def _as_text(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.string())


def _connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config=_SETTINGS)


def _rows(db: duckdb.DuckDBPyConnection, sql: str, values: list[Any], path: Path) -> list[tuple[Any, ...]]:
    return _read(lambda: db.execute(sql, [_pattern(path), *values]).fetchall(), path)


def _pattern(path: Path) -> str:
    """The path as DuckDB takes it: it reads brackets and stars as patterns."""
    return glob.escape(str(path))


def _read(read: Callable[[], T], path: Path) -> T:
    try:
        return read()
    except duckdb.ConversionException:
        raise UserError("A filter's value does not fit its column; change or clear it.") from None
    except duckdb.OutOfMemoryException:
        raise UserError("The table is too long for this order so far down; filter it, or download it.") from None
    except duckdb.Error as error:
        if type(error) not in _DAMAGE:
            raise
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"Table {path} cannot be read ({reason}); run again with overwrite=true.") from None


def _where(query: Query, known: Sequence[Column]) -> tuple[str, list[Any]]:
    parts: list[str] = []
    values: list[Any] = []
    for f in query.filters:
        name = _quoted(f.column, known)
        if f.operator == "is one of":
            parts.append(f"list_contains(?, {name})")
        elif f.operator == "contains":
            parts.append(f"contains(lower({name}), lower(?))")
        else:
            parts.append(f"{name} {'>=' if f.operator == 'at least' else '<='} ?")
        values.append(f.value)
    if query.search:
        texts = [c.name for c in known if c.kind == "text"]
        parts.append(" OR ".join(f"contains(lower({_quoted(n, known)}), lower(?))" for n in texts) or "false")
        values += [query.search] * len(texts)
    return (" WHERE " + " AND ".join(f"({p})" for p in parts) if parts else ""), values


def _quoted(name: str, known: Sequence[Column]) -> str:
    assert name in {c.name for c in known}
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _kind(sql_type: str) -> Literal["text", "number", "truth", "list"]:
    if sql_type.endswith("[]"):
        return "list"
    return {"VARCHAR": "text", "BOOLEAN": "truth"}.get(sql_type, "number")  # type: ignore[return-value]
