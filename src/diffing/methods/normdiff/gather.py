"""All per-token metrics in corpus order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from diffing.core.layers import Slot
from diffing.data.token_table import TokenTable
from diffing.methods.normdiff.stream import METRICS
from diffing.methods.normdiff.units import SUMS


@dataclass(frozen=True, eq=False)
class Gathered:
    """Metrics of every token and slot.

    Args:
        tokens: What each token is.
        slots: Where activations were compared.
        columns: By slot and metric, float32, NaN where unknown; in corpus order.
        sums: By slot, sums over the sets of tokens whose mean vectors are saved.
        covered_N: Which tokens were read.
        kept_N: Which of them count in statistics.
        written_N: Which of them a chat template wrote, leading positions left out.
    """

    tokens: TokenTable
    slots: tuple[Slot, ...]
    columns: Mapping[Slot, Mapping[str, np.ndarray]]
    sums: Mapping[Slot, Mapping[str, np.ndarray]]
    covered_N: np.ndarray
    kept_N: np.ndarray
    written_N: np.ndarray

    def values(self, slot: Slot, metric: str) -> np.ndarray:
        """One metric per token in float64."""
        return self.columns[slot][metric].astype(np.float64)

    def sequence_sums(self, slot: Slot, metric: str, mask_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum and number per sequence of the masked, known values."""
        return self.tokens.sums_by_sequence(self.values(slot, metric), mask_N)

    def mean(self, slot: Slot, metric: str, mask_N: np.ndarray) -> float | None:
        """Mean of the masked, known values; None without any."""
        values = self.values(slot, metric)[mask_N]
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else None

    def n_not_finite(self, slot: Slot) -> int:
        """Tokens whose activations are not finite in one of the models."""
        return int(np.isnan(self.columns[slot]["norm_diff"][self.covered_N]).sum())


def gather(
    units: Iterable[Mapping[str, np.ndarray]],
    tokens: TokenTable,
    slots: tuple[Slot, ...],
    covered_N: np.ndarray,
    kept_N: np.ndarray,
    written_N: np.ndarray,
    n_groups: int,
) -> Gathered:
    """Put units' columns into corpus order and add their sums to those of all sets, in the order of the units."""
    columns = {s: {m: np.full(len(tokens), np.nan, dtype=np.float32) for m in METRICS} for s in slots}
    sums: dict[Slot, dict[str, np.ndarray]] = {s: {} for s in slots}
    for unit in units:
        token_N = unit["token"]
        for slot in slots:
            for metric in METRICS:
                columns[slot][metric][token_N] = unit[f"{slot.name}/{metric}"]
            for name in SUMS:
                part = unit[f"{slot.name}/sum/{name}"]
                if name not in sums[slot]:
                    sums[slot][name] = np.zeros((n_groups, *part.shape[1:]))
                rows = unit["model_groups" if name in ("base", "finetuned") else "groups"]
                sums[slot][name][rows] += part
    return Gathered(tokens, slots, columns, sums, covered_N, kept_N, written_N)
