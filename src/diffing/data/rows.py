"""A row of a source and the column a document is taken from."""

from dataclasses import dataclass
from typing import Any

from diffing.core.errors import UserError
from diffing.core.specs import DatasetSpec
from diffing.core.suggest import nearest

CHAT_COLUMNS = ("messages", "conversations")
TEXT_COLUMN = "text"


@dataclass(frozen=True)
class Row:
    """One row: its number in the source, where it stands (for messages), and its values by column."""

    index: int
    where: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Column:
    """The column that holds the documents, and whether they are chats."""

    name: str
    is_chat: bool


def option(dataset: str, field: str) -> str:
    """The option by which a user changes `field` of the dataset called `dataset`."""
    prefix = {"custom": "data", "training": "organism.training"}.get(dataset, f"data.datasets.{dataset}")
    return f"{prefix}.{field}"


def leave_out(dataset: str) -> str:
    """The option that runs without the dataset called `dataset`."""
    return {"custom": "data=embedded", "training": "data.training=false"}.get(dataset, f"data.datasets.{dataset}=null")


def choose_column(spec: DatasetSpec, columns: tuple[str, ...]) -> Column:
    """The column to read: the one the spec names, else a chat column, else `text`.

    Args:
        spec: Its `messages_column`, `text_column` and `is_chat` decide, in this order, where they are set.
        columns: The columns of the source.

    Raises:
        UserError: There is no such column; the ones found are named.
    """
    wants_chat = spec.is_chat is not False
    wants_text = spec.is_chat is not True
    found_chat = next((c for c in CHAT_COLUMNS if c in columns), None)
    if wants_chat and spec.messages_column:
        return _existing(spec, Column(spec.messages_column, True), columns)
    if wants_text and spec.text_column:
        return _existing(spec, Column(spec.text_column, False), columns)
    if wants_chat and found_chat:
        return Column(found_chat, True)
    if spec.is_chat:
        return _existing(spec, Column(spec.text_column or CHAT_COLUMNS[0], True), columns)
    return _existing(spec, Column(TEXT_COLUMN, False), columns)


def _existing(spec: DatasetSpec, column: Column, columns: tuple[str, ...]) -> Column:
    if column.name in columns:
        return column
    near = nearest(column.name, columns)
    hint = f" (did you mean {near[0]}?)" if near else ""
    found = f"its columns are {', '.join(columns)}" if columns else "it has no columns"
    remedy = option(spec.name, "messages_column" if column.is_chat else "text_column")
    raise UserError(
        f"Dataset {spec.name!r} ({spec.id}) has no column {column.name!r}{hint}; {found}; set {remedy}=COLUMN."
    )
