"""How the cells of a table's columns are set."""

from diffing.core.blocks import Table

_SHORT = 28


def column_kinds(table: Table) -> list[str]:
    """For each column how its cells are set: `token`, `number`, `short` (kept on one line) or `text`."""
    columns = [[row[i] for row in table.rows] for i in range(len(table.columns))]
    return [
        "token" if name in table.token_columns else _kind(cells)
        for name, cells in zip(table.columns, columns, strict=True)
    ]


def _kind(cells: list[str | float | int | None]) -> str:
    known = [c for c in cells if c is not None]
    if all(isinstance(c, (int, float)) for c in known):
        return "number"
    return "short" if all(len(c) <= _SHORT for c in known if isinstance(c, str)) else "text"
