"""Statistics per dataset, position, role and document."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from diffing.analysis.bootstrap import ratio_interval
from diffing.core.seeds import generator
from diffing.core.tables import table_of
from diffing.data.tokens import ROLES
from diffing.methods.kl.gather import Gathered
from diffing.methods.kl.results import DatasetRow, PositionRow, RoleRow, SequenceRow

METRICS = ("kl", "reverse_kl", "js", "delta_nll", "entropy_base", "entropy_ft", "top1_agree")
_PERCENTILES = (50, 5, 25, 75, 95, 99)
_POSITION_RESAMPLES = 200


def metrics_of(data: Gathered) -> tuple[str, ...]:
    """The metrics reported: those of `METRICS`, and the mass cut where vocabularies differ."""
    is_cut = bool(np.any(data.columns["mass_cut_ft"]) or np.any(data.columns["mass_cut_base"]))
    return (*METRICS, "mass_cut_base", "mass_cut_ft") if is_cut else METRICS


def dataset_table(data: Gathered, seed: int, null: Mapping[str, float]) -> pa.Table:
    """Mean with interval, spread and percentiles of each metric on each dataset."""
    rows = [
        _dataset_row(data, i, name, metric, seed, null)
        for i, name in enumerate(data.tokens.datasets)
        for metric in metrics_of(data)
    ]
    return table_of(DatasetRow, [r for r in rows if r is not None])


def _dataset_row(
    data: Gathered, index: int, name: str, metric: str, seed: int, null: Mapping[str, float]
) -> DatasetRow | None:
    mask = data.kept_N & (data.tokens.dataset_N == index)
    values = data.values(metric)[mask]
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    sums, counts = data.sequence_sums(metric, mask)
    interval = ratio_interval(sums, counts, generator(seed, "kl", name, metric))
    median, p5, p25, p75, p95, p99 = (float(p) for p in np.percentile(values, _PERCENTILES))
    return DatasetRow(
        name, metric, int((counts > 0).sum()), len(values), interval.value, interval.low, interval.high,
        float(values.std(ddof=1)) if len(values) > 1 else None, median, p5, p25, p75, p95, p99,
        float(values.max()), null.get(metric),
    )  # fmt: skip


def position_table(data: Gathered, seed: int, max_positions: int) -> pa.Table:
    """Mean KL and ΔNLL by input position; every position counts here, a leading BOS too."""
    rows = []
    for index, name in enumerate(data.tokens.datasets):
        in_set = data.tokens.dataset_N == index
        for position in range(min(max_positions, int(data.tokens.position_N[in_set].max(initial=-1)) + 1)):
            here = in_set & (data.tokens.position_N == position)
            rows.append(_position_row(data, here, name, position, seed))
    return table_of(PositionRow, rows)


def _position_row(data: Gathered, here: np.ndarray, name: str, position: int, seed: int) -> PositionRow:
    kl = data.values("kl")[here]
    rng = generator(seed, "kl", "position", name, position)
    interval = ratio_interval(kl, np.ones(len(kl)), rng, _POSITION_RESAMPLES)
    return PositionRow(name, position, len(kl), interval.value, interval.low, interval.high, _mean(data, here))


def _mean(data: Gathered, mask_N: np.ndarray, metric: str = "delta_nll") -> float | None:
    values = data.values(metric)[mask_N]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


def role_table(data: Gathered, seed: int) -> pa.Table:
    """Mean KL by chat role, template tokens apart; roles are those of the input token."""
    rows = []
    for index, name in enumerate(data.tokens.datasets):
        for code, role in enumerate(ROLES):
            for is_template in (False, True):
                mask = (
                    data.kept_N
                    & (data.tokens.dataset_N == index)
                    & (data.tokens.role_N == code)
                    & (data.tokens.is_template_N == is_template)
                )
                if mask.any():
                    sums, counts = data.sequence_sums("kl", mask)
                    interval = ratio_interval(sums, counts, generator(seed, "kl", "role", name, role, is_template))
                    rows.append(
                        RoleRow(
                            name, role, is_template, int(mask.sum()), interval.value, interval.low, interval.high,
                            _mean(data, mask),
                        )
                    )  # fmt: skip
    return table_of(RoleRow, rows)


def sequence_table(data: Gathered) -> pa.Table:
    """One row per document: means over its kept tokens."""
    means = {m: _sequence_means(data, m) for m in ("kl", "reverse_kl", "js", "delta_nll", "top1_agree")}
    counts = data.sequence_sums("kl", data.kept_N)[1]
    peak = np.full(data.tokens.n_sequences, -np.inf)
    np.maximum.at(peak, data.tokens.sequence_N[data.kept_N], data.values("kl")[data.kept_N])
    rows = []
    for i in np.unique(data.tokens.sequence_N[data.kept_N]).tolist():
        mean = {m: float(v[i]) for m, v in means.items()}
        nll = None if np.isnan(mean["delta_nll"]) else mean["delta_nll"]
        rows.append(
            SequenceRow(
                data.tokens.dataset_of(i), int(data.tokens.documents[i]), int(counts[i]), mean["kl"], float(peak[i]),
                mean["reverse_kl"], mean["js"], nll, mean["top1_agree"],
            )
        )  # fmt: skip
    return table_of(SequenceRow, rows)


def _sequence_means(data: Gathered, metric: str) -> np.ndarray:
    sums, counts = data.sequence_sums(metric, data.kept_N)
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
