"""Units of work: a fixed cut of a batch plan, each stored whole, so that an interrupted run goes on.

The cut depends on the plan alone; a method that adds its sums unit by unit gives the same bits when it is resumed.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from diffing.core.files import atomic_path

MOST_UNITS = 64


def cut_into_units(
    plan: Sequence[Sequence[int]], lengths: Sequence[int], batch_tokens: int, most_units: int = MOST_UNITS
) -> list[list[Sequence[int]]]:
    """Group consecutive batches into at most about `most_units` units of similar token count.

    Args:
        plan: Batches of sequences.
        lengths: Tokens of each sequence.
        batch_tokens: A unit has at least so many, but for the last.
        most_units: See above.
    """
    goal = max(batch_tokens, sum(lengths) / most_units)
    units: list[list[Sequence[int]]] = [[]]
    size = 0
    for batch in plan:
        if size >= goal:
            units.append([])
            size = 0
        units[-1].append(batch)
        size += sum(lengths[i] for i in batch)
    return units


def read_unit(path: Path, names: Collection[str]) -> dict[str, np.ndarray] | None:
    """Arrays of a stored unit; None when there is none or it is not whole.

    Args:
        path: Its file.
        names: The arrays that a unit has.
    """
    arrays = read_arrays(path)
    return arrays if arrays is not None and set(arrays) == set(names) else None


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Whatever arrays a file holds; None when there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError):
        return None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Store arrays as one file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(save({name: np.ascontiguousarray(a) for name, a in arrays.items()}))
