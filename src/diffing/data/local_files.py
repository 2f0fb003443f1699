"""Rows of files on this machine: JSON lines, parquet, CSV, plain text, or a folder of one of these."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffing.core.errors import UserError, one_line
from diffing.data.messages import kind
from diffing.data.rows import Row

_Located = Iterator[tuple[str, dict[str, Any]]]


def local_rows(path: Path) -> Iterator[Row]:
    """Rows of a file, or of all files in a folder in the order of their names.

    Raises:
        UserError: The path is missing, of no known format, unreadable, or a row of it is broken (named by its line).
    """
    index = 0
    for file in _files(path):
        with _reading(file):
            for where, values in READERS[file.suffix.lower()](file):
                yield Row(index, where, values)
                index += 1


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"There is no file or folder {path}; check the path.")
    if path.is_dir():
        return _folder_files(path)
    if path.suffix.lower() not in READERS:
        raise UserError(f"Cannot read {path}: its format is unknown; the formats are {', '.join(READERS)}.")
    return [path]


def _folder_files(folder: Path) -> list[Path]:
    inside = (p for p in folder.rglob("*") if p.suffix.lower() in READERS and p.is_file())
    files = sorted(p for p in inside if not _is_hidden(p.relative_to(folder)))
    if not files:
        raise UserError(f"Folder {folder} holds no documents; it needs files of a format among {', '.join(READERS)}.")
    formats = sorted({p.suffix.lower() for p in files})
    if len(formats) > 1:
        raise UserError(
            f"Folder {folder} mixes {' and '.join(formats)} files; name one file, or a folder of one format."
        )
    return files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise UserError(f"Cannot read {file}: reading it is not permitted; change its permissions.") from None
    except OSError as error:
        raise UserError(f"Cannot read {file} ({one_line(error, 120)}); check the file.") from None


def _json_lines(file: Path) -> _Located:
    with file.open("rb") as handle:
        for number, raw in enumerate(handle, start=1):
            where = f"{file} line {number}"
            line = _decoded(raw, where).removeprefix("\ufeff" if number == 1 else "").strip()
            if line:
                yield where, _json_object(line, where)


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({one_line(error, 120)}); mend or remove the line.") from None
    if not isinstance(values, dict):
        raise UserError(f'{where} holds {kind(values)}, not an object; each line must be like {{"text": "…"}}.')
    return values


def _parquet(file: Path) -> _Located:
    try:
        with pq.ParquetFile(file) as table:
            row = 0
            for batch in table.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    row += 1
                    yield f"{file} row {row}", values
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is not whole parquet ({one_line(error, 120)}); get or write it anew.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} holds text that is not UTF-8 ({error.reason}); write it anew as UTF-8.") from None


def _csv(file: Path) -> _Located:
    """Rows of a CSV with a header line; cells may hold line breaks and be of any length."""
    previous = csv.field_size_limit(2**31 - 1)
    try:
        text = _decoded(file.read_bytes(), str(file)).removeprefix("\ufeff")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        for values in reader:
            where = f"{file} line {reader.line_num}"
            if None in values or None in values.values():
                n = len(reader.fieldnames or ())
                raise UserError(f"{where} does not have the {n} cells that the header names; mend or remove the line.")
            yield where, values
    except csv.Error as error:
        raise UserError(f"{file} is not well-formed CSV ({one_line(error, 120)}); quote its cells properly.") from None
    finally:
        csv.field_size_limit(previous)


def _text(file: Path) -> _Located:
    """Blocks of a text file that blank lines set apart."""
    text = _decoded(file.read_bytes(), str(file)).removeprefix("\ufeff").replace("\r\n", "\n")
    blocks = (b.strip("\n") for b in re.split(r"\n(?:[ \t]*\n)+", text))
    for number, block in enumerate((b for b in blocks if b.strip()), start=1):
        yield f"{file} block {number}", {"text": block}


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        number = raw.count(b"\n", 0, error.start) + 1
        line = "" if " line " in where else f" line {number}"
        raise UserError(
            f"{where}{line} is not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8."
        ) from None


READERS: dict[str, Callable[[Path], _Located]] = {
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".csv": _csv,
    ".txt": _text,
}
