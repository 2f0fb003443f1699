"""Units of work: a fixed cut of the batch plan, each stored whole, so that an interrupted run goes on.

The cut depends on the plan alone, and sums are added unit by unit, so a resumed run gives the same bits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from diffing.core.files import atomic_path
from diffing.methods.kl.stream import FLOATS, SequenceResult

MOST_UNITS = 64
TOKEN_COLUMNS = (*FLOATS, "top_ft", "top_base", "risen_ids", "risen_change", "fallen_ids", "fallen_change")
SUMS = ("kl_sum", "kl_squares", "change_sum", "change_squares")


def cut_into_units(
    plan: Sequence[Sequence[int]], lengths: Sequence[int], batch_tokens: int
) -> list[list[Sequence[int]]]:
    """Group consecutive batches into at most about `MOST_UNITS` units of similar token count."""
    goal = max(batch_tokens, sum(lengths) / MOST_UNITS)
    units: list[list[Sequence[int]]] = [[]]
    size = 0
    for batch in plan:
        if size >= goal:
            units.append([])
            size = 0
        units[-1].append(batch)
        size += sum(lengths[i] for i in batch)
    return units


@dataclass
class UnitWriter:
    """Collects the sequences of one unit, then writes them as one file.

    Args:
        n_datasets: Rows of the vocabulary sums.
        vocabulary: Number of shared ids.
    """

    n_datasets: int
    vocabulary: int

    def __post_init__(self) -> None:
        self.results: list[SequenceResult] = []
        self.sums = {k: np.zeros((self.n_datasets, self.vocabulary)) for k in SUMS}

    def add(self, result: SequenceResult, dataset: int) -> None:
        """Take one sequence; its vocabulary sums go to row `dataset`."""
        terms, change = result.sums.kl_terms_V.numpy(), result.sums.change_V.numpy()
        self.sums["kl_sum"][dataset] += terms
        self.sums["kl_squares"][dataset] += terms**2
        self.sums["change_sum"][dataset] += change
        self.sums["change_squares"][dataset] += change**2
        self.results.append(result)

    def write(self, path: Path) -> None:
        """Write the unit, whole or not at all."""
        columns = [_token_arrays(r) for r in self.results]
        arrays = {name: np.concatenate([c[name] for c in columns]) for name in TOKEN_COLUMNS}
        arrays["sequence"] = np.array([r.sequence for r in self.results], dtype=np.int64)
        arrays["length"] = np.array([len(c["kl"]) for c in columns], dtype=np.int64)
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(arrays | self.sums))


def _token_arrays(result: SequenceResult) -> dict[str, np.ndarray]:
    tokens = result.tokens
    return dict(tokens.values) | {
        "risen_ids": tokens.risen_ids_TK,
        "risen_change": tokens.risen_change_TK,
        "fallen_ids": tokens.fallen_ids_TK,
        "fallen_change": tokens.fallen_change_TK,
    }


def read_unit(path: Path) -> dict[str, np.ndarray] | None:
    """Arrays of a stored unit; None when there is none or it is not whole."""
    if not path.is_file():
        return None
    try:
        arrays = load_file(path)
    except (SafetensorError, OSError, ValueError):
        return None
    expected = {*TOKEN_COLUMNS, *SUMS, "sequence", "length"}
    return arrays if set(arrays) == expected else None


def add_units(units: Iterator[dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Token columns joined over units, and the vocabulary sums added in order."""
    columns: dict[str, list[np.ndarray]] = {}
    totals: dict[str, np.ndarray] = {}
    for unit in units:
        for name in (*TOKEN_COLUMNS, "sequence", "length"):
            columns.setdefault(name, []).append(unit[name])
        for name in SUMS:
            totals[name] = totals[name] + unit[name] if name in totals else unit[name]
    return {k: np.concatenate(v) for k, v in columns.items()}, totals
