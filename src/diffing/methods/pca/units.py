"""Pieces of a pass over the activations after which an interrupted run can go on."""

from collections.abc import Sequence

MOST_UNITS = 16


def units_of(sizes: Sequence[int]) -> list[list[int]]:
    """Consecutive blocks in at most about `MOST_UNITS` units of similar size.

    Args:
        sizes: Tokens of each block.
    """
    goal, units, size = sum(sizes) / MOST_UNITS, [[]], 0
    for block, n in enumerate(sizes):
        if units[-1] and size >= goal:
            units.append([])
            size = 0
        units[-1].append(block)
        size += n
    return units
