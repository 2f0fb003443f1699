"""Arrays in files that are mapped into memory: larger than memory, and there after an interruption."""

from pathlib import Path

import numpy as np


def new_array(path: Path, shape: tuple[int, int], fill: float) -> np.memmap:
    """A float32 array in a new file, every value `fill`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for row in array:
        row[:] = fill
    return array


def found_array(path: Path, shape: tuple[int, int]) -> np.memmap | None:
    """The array that `new_array` made; None when the file is missing, damaged or of another shape."""
    try:
        # A file that was cut is refused for reading, while opening it for writing would fill it up.
        np.lib.format.open_memmap(path, "r")
        array = np.lib.format.open_memmap(path, "r+")
    except (OSError, ValueError):
        return None
    return array if array.shape == shape and array.dtype == np.float32 else None
