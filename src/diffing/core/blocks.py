"""The parts a method's section is made of; `report/` and the dashboard decide how they look.

Model text goes in raw: escaping is the renderer's duty.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Heading:
    """A heading within the method's section; `level` 2 or 3."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain prose."""

    text: str


@dataclass(frozen=True)
class Table:
    """A small table: `columns` are headers, cells are strings or numbers (None: unknown).

    Columns named in `token_columns` hold token strings: whitespace is made visible.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]
    caption: str = ""
    token_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A reference to `figures/<name>.json`; `alt` says in words what it shows."""

    name: str
    caption: str
    alt: str


@dataclass(frozen=True)
class HeatToken:
    """A token of a heat map: its text, value (None: no value), and hover lines."""

    text: str
    value: float | None
    hover: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heatmap:
    """Tokens of one example coloured by value on a scale from 0 to `maximum`."""

    title: str
    tokens: tuple[HeatToken, ...]
    maximum: float
    unit: str


@dataclass(frozen=True)
class HeatmapList:
    """Examples under one colour legend."""

    items: tuple[Heatmap, ...]
    maximum: float
    unit: str


Block = Heading | Paragraph | Table | Figure | HeatmapList


@dataclass(frozen=True)
class Section:
    """What a method shows about one result."""

    title: str
    blocks: tuple[Block, ...] = field(default=())
