"""A section's blocks placed on the page: anchors, heading levels in order, figures found."""

from dataclasses import dataclass, replace
from typing import TypeGuard

from diffing.core.blocks import Block, Figure, Heading, Heatmap, HeatToken, Section, Table
from diffing.core.result import Result
from diffing.report.scripts import figure_for_page, json_for_script

_NARROW = 5


@dataclass(frozen=True)
class Placed:
    """A block with its kind (its class name), an anchor, and for headings the level on the page.

    Narrow tables in a row are placed together, side by side where the page is wide: kind `Tables`.
    """

    kind: str
    block: Block | tuple[Table, ...]
    anchor: str
    level: int = 0


@dataclass(frozen=True)
class Entry:
    """A line of the table of contents."""

    anchor: str
    text: str
    level: int


def place(section: Section, prefix: str = "part") -> list[Placed]:
    """Blocks in order. The section's title is an h2; a heading goes at most one level below the one before it.

    Args:
        section: What to place.
        prefix: Start of the anchors.
    """
    placed: list[Placed] = []
    level = 2
    for i, block in enumerate(section.blocks):
        if isinstance(block, Heading):
            level = min(block.level + 1, level + 1)
        last = placed[-1].block if placed else None
        if _is_narrow(block) and isinstance(last, tuple):
            placed[-1] = replace(placed[-1], block=(*last, block))
        elif _is_narrow(block):
            placed.append(Placed("Tables", (block,), f"{prefix}-{i}"))
        else:
            placed.append(Placed(type(block).__name__, block, f"{prefix}-{i}", level))
    return placed


def _is_narrow(block: Block) -> TypeGuard[Table]:
    return isinstance(block, Table) and len(block.columns) <= _NARROW


def contents(placed: list[Placed]) -> list[Entry]:
    """The section's headings of the first level."""
    return [Entry(p.anchor, p.block.text, p.level) for p in placed if isinstance(p.block, Heading) and p.level == 3]


def figure_scripts(result: Result, section: Section) -> dict[str, str]:
    """JSON of the section's figures by name; a figure that the result does not hold is left out."""
    names = dict.fromkeys(b.name for b in section.blocks if isinstance(b, Figure))
    held = [name for name in names if name in result.figure_names()]
    return {name: json_for_script(figure_for_page(result.figure_data(name))) for name in held}


def peak(heatmap: Heatmap) -> int:
    """Index of the token with the largest value; 0 when none has one."""
    values = [(-1.0 if t.value is None else t.value) for t in heatmap.tokens]
    return max(range(len(values)), key=values.__getitem__, default=0)


def lines(token: HeatToken, unit: str) -> tuple[str, ...]:
    """What is said of a token: its own lines, else its text and value."""
    value = "no value" if token.value is None else f"{token.value:.3g} {unit}"
    return token.hover or (repr(token.text), value)
