"""Finished pieces of the stream, kept in the run folder: an interrupted run goes on, and gives the same bits."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from diffing.activations.source import ActivationSource, Block
from diffing.analysis.units import read_unit, write_arrays
from diffing.core.layers import Slot
from diffing.core.progress import bar
from diffing.methods.normdiff.stream import METRICS, Groups, group_sums, metrics

MOST_UNITS = 64
SUMS = ("delta", "base", "finetuned", "delta_squares", "base_norms", "n")


def read_all(source: ActivationSource, groups: Groups, scratch: Path) -> Iterator[dict[str, np.ndarray]]:
    """Units in block order: columns `<slot>/<metric>` of their tokens, `token`, and sums `<slot>/sum/<name>`.

    Sums have a row for each of the sets `groups`, those of b and f for each of `model_groups`: few of all sets.
    """
    sizes = [len(rows) for rows in source.block_tokens]
    with bar("normdiff: reading activations", sum(sizes), "tokens") as advance:
        for number, blocks in enumerate(_units(sizes)):
            path = scratch / f"unit_{number:04d}.safetensors"
            unit = _stored(path, source.slots)
            if unit is None:
                unit = _computed(source, groups, blocks, lambda block: advance(len(block.token_N)))
                write_arrays(path, unit)
            else:
                advance(sum(sizes[b] for b in blocks))
            yield unit


def _units(sizes: Sequence[int]) -> list[list[int]]:
    """Consecutive blocks in at most about `MOST_UNITS` units of similar size."""
    goal, units, size = sum(sizes) / MOST_UNITS, [[]], 0
    for block, n in enumerate(sizes):
        if units[-1] and size >= goal:
            units.append([])
            size = 0
        units[-1].append(block)
        size += n
    return units


def _computed(
    source: ActivationSource, groups: Groups, blocks: Sequence[int], done: Callable[[Block], None]
) -> dict[str, np.ndarray]:
    tokens: list[np.ndarray] = []
    columns: dict[str, list[np.ndarray]] = {}
    sums: dict[Slot, dict[str, np.ndarray]] = {}
    present = groups.present(np.concatenate([source.block_tokens[b] for b in blocks]))
    has_models = groups.has_models_G[present]
    for block in source.blocks(order=blocks):
        rows_M, group_M = groups.of(block.token_N)
        group_M = np.searchsorted(present, group_M)
        tokens.append(block.token_N)
        for slot, rows in block.rows.items():
            for name, values in metrics(rows).items():
                columns.setdefault(f"{slot.name}/{name}", []).append(values)
            found = group_sums(rows, rows_M, group_M, has_models)
            sums[slot] = {k: sums[slot][k] + v for k, v in found.items()} if slot in sums else found
        done(block)
    unit = {name: np.concatenate(parts) for name, parts in columns.items()}
    unit |= {"token": np.concatenate(tokens), "groups": present, "model_groups": present[has_models]}
    return unit | {f"{slot.name}/sum/{name}": found[name] for slot, found in sums.items() for name in SUMS}


def _stored(path: Path, slots: Sequence[Slot]) -> dict[str, np.ndarray] | None:
    expected = {f"{s.name}/{m}" for s in slots for m in METRICS} | {f"{s.name}/sum/{n}" for s in slots for n in SUMS}
    return read_unit(path, {*expected, "token", "groups", "model_groups"})
