"""What tables' places and directions are called, and rows that belong together."""

from typing import Any

Row = dict[str, Any]


def place_name(kind: str, position: int) -> str:
    """A place in words."""
    return f"position {position}" if kind == "first" else f"{-position} before the reply"


def place_label(kind: str, position: int) -> str:
    """A place on an axis: 3, or R−2 for the second token before the reply."""
    return str(position) if kind == "first" else f"R−{-position}"


def place_of(row: Row) -> tuple[int, str, str, int]:
    """(layer, dataset, kind, position)."""
    return row["layer"], row["dataset"], row["kind"], row["position"]


def direction_name(row: Row) -> str:
    """The mean difference that a row speaks of."""
    return f"{row['dataset']} {place_name(row['kind'], row['position'])} · layer {row['layer']}"


def places_in_order(rows: list[Row]) -> list[tuple[str, int]]:
    """The (kind, position) that occur, leading ones first."""
    kinds = ("first", "reply")
    return sorted({(r["kind"], r["position"]) for r in rows}, key=lambda p: (kinds.index(p[0]), p[1]))


def mean_effect(rows: list[Row], like: Row, change: str) -> float | None:
    """Mean effect of a control of the same direction on the same text; None where there is none."""
    mine = [
        r["effect"] for r in rows if (place_of(r), r["text"], r["change"]) == (place_of(like), like["text"], change)
    ]
    return sum(mine) / len(mine) if mine else None
