"""Finished parts of a run, kept in its scratch folder so that an interrupted run goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffing.analysis.units import read_arrays, write_arrays
from diffing.core.errors import UserError
from diffing.core.tables import read_table, rows_of, table_of, write_table


def stored_arrays(path: Path, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays from the file where it is whole, else computed and stored there."""
    if (found := read_arrays(path)) is not None:
        return found
    arrays = compute()
    write_arrays(path, arrays)
    return arrays


def stored_rows(path: Path, row_type: type, compute: Callable[[], list[Any]]) -> list[Any]:
    """Rows of a dataclass from the file where it is whole, else computed and stored there."""
    if path.is_file():
        try:
            return rows_of(row_type, read_table(path))
        except (UserError, KeyError, TypeError):
            path.unlink()
    table = table_of(row_type, compute())
    write_table(path, table)
    return rows_of(row_type, table)
