"""Statistics per dataset, position, role, template token and document, at every layer."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from diffing.analysis.bootstrap import Intervals, ratio_intervals
from diffing.core.layers import Slot
from diffing.core.seeds import generator
from diffing.core.tables import table_of
from diffing.data.chats import ROLES
from diffing.methods.normdiff.gather import Gathered
from diffing.methods.normdiff.results import DatasetRow, PositionRow, RoleRow, SequenceRow, TemplateTokenRow
from diffing.methods.normdiff.stream import METRICS

_PERCENTILES = (50, 5, 25, 75, 95, 99)
_POSITION_RESAMPLES = 200
_NOISE = {"norm_diff": "norm", "relative": "relative", "cosine": "cosine"}

Noise = Callable[[Slot], Mapping[str, float]]


def known(value: float) -> float | None:
    """The number, None where it is NaN."""
    return None if np.isnan(value) else float(value)


def dataset_table(data: Gathered, seed: int, noise: Noise) -> pa.Table:
    """Mean with interval, spread and percentiles of each metric on each dataset at each slot."""
    rows = []
    for index, name in enumerate(data.tokens.datasets):
        mask = data.kept_N & (data.tokens.dataset_N == index)
        pairs = [(slot, metric) for slot in data.slots for metric in METRICS]
        found, counts_SM = _intervals(data, pairs, mask, generator(seed, "normdiff", name))
        for i, (slot, metric) in enumerate(pairs):
            values = data.values(slot, metric)[mask]
            values = values[~np.isnan(values)]
            if len(values):
                null = noise(slot).get(_NOISE.get(metric, ""))
                rows.append(_dataset_row(name, slot, metric, values, int((counts_SM[:, i] > 0).sum()), found, i, null))
    return table_of(DatasetRow, rows)


def _intervals(
    data: Gathered, pairs: Sequence[tuple[Slot, str]], mask_N: np.ndarray, rng: np.random.Generator,
    resamples: int = 1000,
) -> tuple[Intervals, np.ndarray]:  # fmt: skip
    """Intervals of several metrics over the sequences that have masked tokens, and the counts behind them."""
    present = np.unique(data.tokens.sequence_N[mask_N])
    sums = [data.sequence_sums(slot, metric, mask_N) for slot, metric in pairs]
    sums_SM = np.stack([s[present] for s, _ in sums], 1)
    counts_SM = np.stack([c[present] for _, c in sums], 1)
    return ratio_intervals(sums_SM, counts_SM, rng, resamples), counts_SM


def _dataset_row(
    name: str, slot: Slot, metric: str, values: np.ndarray, n_sequences: int, found: Intervals, i: int,
    null: float | None,
) -> DatasetRow:  # fmt: skip
    median, p5, p25, p75, p95, p99 = (float(p) for p in np.percentile(values, _PERCENTILES))
    return DatasetRow(
        name, slot.layer, slot.site, metric, n_sequences, len(values), float(values.mean()), known(found.low[i]),
        known(found.high[i]), float(values.std(ddof=1)) if len(values) > 1 else None, median, p5, p25, p75, p95, p99,
        float(values.max()), null,
    )  # fmt: skip


def position_table(data: Gathered, seed: int, max_positions: int) -> pa.Table:
    """Means by input position; every position counts here, attention sinks too."""
    rows = []
    for index, name in enumerate(data.tokens.datasets):
        here_N = data.covered_N & (data.tokens.dataset_N == index) & (data.tokens.position_N < max_positions)
        if here_N.any():
            for slot in data.slots:
                rows += _position_rows(data, here_N, name, slot, generator(seed, "normdiff", "position", name))
    return table_of(PositionRow, rows)


def _position_rows(
    data: Gathered, here_N: np.ndarray, name: str, slot: Slot, rng: np.random.Generator
) -> list[PositionRow]:
    position = data.tokens.position_N[here_N]
    sequences, row = np.unique(data.tokens.sequence_N[here_N], return_inverse=True)
    shape = (len(sequences), int(position.max()) + 1)
    grids: dict[str, np.ndarray] = {}
    for metric in METRICS:
        grid_SP = np.full(shape, np.nan)
        grid_SP[row, position] = data.values(slot, metric)[here_N]
        grids[metric] = grid_SP
    present = ~np.isnan(grids["relative"])
    found = ratio_intervals(np.nan_to_num(grids["relative"]), present, rng, _POSITION_RESAMPLES)
    means = {metric: _means(grid) for metric, grid in grids.items()}
    return [
        PositionRow(
            name, slot.layer, slot.site, p, int(present[:, p].sum()), float(means["norm_diff"][p]),
            float(means["relative"][p]), known(found.low[p]), known(found.high[p]), known(means["cosine"][p]),
            float(means["norm_base"][p]), float(means["norm_ft"][p]),
        )
        for p in range(shape[1])
        if present[:, p].any()
    ]  # fmt: skip


def _means(grid_SP: np.ndarray) -> np.ndarray:
    counts = (~np.isnan(grid_SP)).sum(0)
    return np.divide(np.nansum(grid_SP, 0), counts, out=np.full(len(counts), np.nan), where=counts > 0)


def role_table(data: Gathered, seed: int) -> pa.Table:
    """Means by chat role, template tokens apart; roles are those of the input token."""
    rows = []
    for index, name in enumerate(data.tokens.datasets):
        for code, role in enumerate(ROLES):
            for is_template in (False, True):
                of_role = (data.tokens.role_N == code) & (data.tokens.is_template_N == is_template)
                mask = data.kept_N & (data.tokens.dataset_N == index) & of_role
                if mask.any():
                    rng = generator(seed, "normdiff", "role", name, role, is_template)
                    rows += _role_rows(data, mask, name, role, is_template, rng)
    return table_of(RoleRow, rows)


def _role_rows(
    data: Gathered, mask_N: np.ndarray, name: str, role: str, is_template: bool, rng: np.random.Generator
) -> list[RoleRow]:
    found, counts_SM = _intervals(data, [(slot, "relative") for slot in data.slots], mask_N, rng)
    rows = []
    for i, slot in enumerate(data.slots):
        gap = data.mean(slot, "norm_diff", mask_N)
        if gap is not None:
            rows.append(
                RoleRow(
                    name, slot.layer, slot.site, role, is_template, int(counts_SM[:, i].sum()), gap,
                    float(found.values[i]), known(found.low[i]), known(found.high[i]),
                    data.mean(slot, "cosine", mask_N),
                )
            )  # fmt: skip
    return rows


def template_token_table(data: Gathered, template_ids: Sequence[int], names: Mapping[int, str]) -> pa.Table:
    """Means at each token that chat templates wrote."""
    rows = []
    for index, name in enumerate(data.tokens.datasets):
        in_set = data.written_N & (data.tokens.dataset_N == index)
        for token_id in template_ids:
            mask = in_set & (data.tokens.ids_N == token_id)
            for slot in data.slots if mask.any() else ():
                gap, relative = (data.mean(slot, m, mask) for m in ("norm_diff", "relative"))
                if gap is not None and relative is not None:
                    n = int((~np.isnan(data.columns[slot]["relative"][mask])).sum())
                    cosine = data.mean(slot, "cosine", mask)
                    rows.append(
                        TemplateTokenRow(
                            name, slot.layer, slot.site, token_id, names[token_id], n, gap, relative, cosine
                        )
                    )
    return table_of(TemplateTokenRow, rows)


def sequence_table(data: Gathered) -> pa.Table:
    """One row per document and slot: means over its kept tokens."""
    rows = []
    for slot in data.slots:
        means = {}
        for metric in ("norm_diff", "relative", "cosine"):
            sums, counts = data.sequence_sums(slot, metric, data.kept_N)
            means[metric] = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
        relative = data.values(slot, "relative")
        used = data.kept_N & ~np.isnan(relative)
        peak = np.full(data.tokens.n_sequences, -np.inf)
        np.maximum.at(peak, data.tokens.sequence_N[used], relative[used])
        counts = np.bincount(data.tokens.sequence_N[used], minlength=data.tokens.n_sequences)
        rows += [
            SequenceRow(
                data.tokens.dataset_of(i), int(data.tokens.documents[i]), slot.layer, slot.site, int(counts[i]),
                float(means["norm_diff"][i]), float(means["relative"][i]), float(peak[i]), known(means["cosine"][i]),
            )
            for i in np.flatnonzero(counts).tolist()
        ]  # fmt: skip
    return table_of(SequenceRow, rows)
