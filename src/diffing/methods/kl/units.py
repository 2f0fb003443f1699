"""What a unit of work holds, stored whole, so that an interrupted run goes on (`analysis/units.py` cuts them).

Sums are added unit by unit, so a resumed run gives the same bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffing.analysis.units import write_arrays
from diffing.methods.kl.stream import FLOATS, SequenceResult

TOKEN_COLUMNS = (*FLOATS, "top_ft", "top_base", "risen_ids", "risen_change", "fallen_ids", "fallen_change")
SUMS = ("kl_sum", "kl_squares", "change_sum", "change_squares")
ARRAYS = (*TOKEN_COLUMNS, *SUMS, "sequence", "length")


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
        write_arrays(path, arrays | self.sums)


def _token_arrays(result: SequenceResult) -> dict[str, np.ndarray]:
    tokens = result.tokens
    return dict(tokens.values) | {
        "risen_ids": tokens.risen_ids_TK,
        "risen_change": tokens.risen_change_TK,
        "fallen_ids": tokens.fallen_ids_TK,
        "fallen_change": tokens.fallen_change_TK,
    }


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
