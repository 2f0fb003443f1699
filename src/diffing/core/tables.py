"""Tables: columns of a dataclass ↔ parquet, written whole or not at all."""

import dataclasses
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from diffing.core.errors import UserError
from diffing.core.files import atomic_path

_SCALARS = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


def schema_of(row_type: type) -> pa.Schema:
    """Arrow schema of a row dataclass; `X | None` is nullable, `tuple[X, ...]` and `list[X]` are lists."""
    hints = get_type_hints(row_type)
    return pa.schema([pa.field(f.name, _arrow(hints[f.name])) for f in dataclasses.fields(row_type)])


def _arrow(hint: Any) -> pa.DataType:
    if hint in _SCALARS:
        return _SCALARS[hint]
    args = [a for a in get_args(hint) if a not in (types.NoneType, Ellipsis)]
    if get_origin(hint) in (tuple, list):
        return pa.list_(_arrow(args[0]))
    if len(args) == 1:
        return _arrow(args[0])
    raise TypeError(f"no Arrow type for {hint}")


def table_of(row_type: type, rows: Iterable[Any]) -> pa.Table:
    """A table from dataclass rows, all of `row_type`."""
    rows = list(rows)
    names = [f.name for f in dataclasses.fields(row_type)]
    columns = {n: [getattr(r, n) for r in rows] for n in names}
    return pa.table(columns, schema=schema_of(row_type))


def rows_of(row_type: type, table: pa.Table) -> list[Any]:
    """Dataclass rows from a table; columns beyond the dataclass are ignored."""
    names = [f.name for f in dataclasses.fields(row_type)]
    return [row_type(**r) for r in table.select(names).to_pylist()]


def write_table(path: Path, table: pa.Table) -> None:
    """Write parquet atomically, compressed with zstd."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path) -> pa.Table:
    """Read parquet.

    Raises:
        UserError: The file is missing or is not whole parquet.
    """
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"Table {path} is missing; run again with overwrite=true.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"Table {path} is corrupt ({' '.join(str(error).split())[:120]}); run again with overwrite=true."
        ) from None


@dataclasses.dataclass(frozen=True)
class TokenScoreRow:
    """`token_scores.parquet`: the full ranking of vocabulary tokens, of every method that ranks tokens."""

    token_id: int
    token: str
    score: float
    stderr: float | None
    null_score: float | None


@dataclasses.dataclass(frozen=True)
class DocumentScoreRow:
    """`document_scores.parquet`: the full ranking of documents, of every method that ranks documents."""

    dataset: str
    document: int
    score: float
