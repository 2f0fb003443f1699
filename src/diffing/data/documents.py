"""Documents: texts or chats, read from what a dataset spec names or given in memory."""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from diffing.core.errors import UserError
from diffing.core.seeds import generator
from diffing.core.specs import DatasetSpec, is_embedded, is_local
from diffing.data.embedded_sets import ASSETS, embedded_file
from diffing.data.hub_sets import hub_rows
from diffing.data.local_files import local_rows
from diffing.data.messages import Message, check_text, kind, parse_messages
from diffing.data.rows import Column, Row, choose_column, option

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Document:
    """A text or a chat (one of the two is None); `index` is its row in the source, from 0."""

    dataset: str
    index: int
    text: str | None
    messages: tuple[Message, ...] | None


def read_documents(spec: DatasetSpec, max_samples: int | None, seed: int) -> list[Document]:
    """Read a dataset: embedded, a local file or folder, or from the hub.

    Args:
        spec: What to read, and from which column.
        max_samples: At most so many documents: a seeded choice, kept in the order of the source.
        seed: Decides the choice. A smaller choice of the same seed is part of a larger one.

    Raises:
        UserError: The source is missing, broken or empty, or holds no such column.
    """
    documents = sample(_documents(spec, _rows(spec, max_samples)), max_samples, seed, spec.name)
    if not documents:
        raise UserError(f"Dataset {spec.name!r} ({spec.id}) is empty; give a source with at least one document.")
    return documents


def documents_from_texts(name: str, items: Sequence[Any]) -> list[Document]:
    """Documents from what a program holds.

    Args:
        name: Name of the dataset.
        items: Texts (str), and chats as lists of {"role", "content"}.

    Raises:
        UserError: There are none, or one is neither.
    """
    if isinstance(items, (str, Mapping)):
        raise UserError(f"Dataset {name!r} is {kind(items)}; give a list of texts or chats.")
    documents = [_given(name, index, item) for index, item in enumerate(items)]
    if not documents:
        raise UserError(f"Dataset {name!r} is empty; give at least one text or chat.")
    return documents


def sample(items: Iterable[ItemT], n: int | None, seed: int, name: str) -> list[ItemT]:
    """A seeded choice of `n` items in their order, in one pass that holds `n` of them; all when `n` is None.

    Every item draws a number and the `n` smallest stay, so a choice of fewer is part of a choice of more.
    """
    if n is None:
        return list(items)
    rng = generator(seed, "max_samples", name)
    kept: list[tuple[float, int, ItemT]] = []
    for position, item in enumerate(items):
        entry = (-rng.random(), -position, item)
        if len(kept) < n:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    return [item for _, _, item in sorted(kept, key=lambda e: -e[1])]


def _rows(spec: DatasetSpec, max_samples: int | None) -> Iterator[Row]:
    if is_embedded(spec.id):
        return local_rows(embedded_file(spec.id, ASSETS))
    if is_local(spec.id):
        return local_rows(Path(spec.id).expanduser())
    return hub_rows(spec, max_samples)


def _documents(spec: DatasetSpec, rows: Iterator[Row]) -> Iterator[Document]:
    first = next(rows, None)
    if first is None:
        return
    column = choose_column(spec, tuple(first.values))
    for row in chain([first], rows):
        yield _document(spec, column, row)


def _document(spec: DatasetSpec, column: Column, row: Row) -> Document:
    field = "messages_column" if column.is_chat else "text_column"
    if column.name not in row.values:
        raise UserError(
            f"{row.where} has no {column.name!r} (it has {', '.join(row.values) or 'nothing'}); mend or remove it."
        )
    value, where = row.values[column.name], f"{row.where}, column {column.name!r}"
    if column.is_chat:
        return Document(spec.name, row.index, None, parse_messages(value, where))
    text = check_text(value, where, f"name the column with {option(spec.name, field)}=COLUMN")
    return Document(spec.name, row.index, text, None)


def _given(name: str, index: int, item: Any) -> Document:
    where = f"Item {index} of dataset {name!r}"
    if isinstance(item, str):
        return Document(name, index, check_text(item, where, "give texts"), None)
    if isinstance(item, (list, tuple)):
        return Document(name, index, None, parse_messages(item, where))
    raise UserError(f"{where} is {kind(item)}; give texts, or chats as lists of {{role, content}}.")
