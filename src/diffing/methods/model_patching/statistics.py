"""Tables over prompts: how often texts part, and how the difference is spread over depth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from diffing.analysis.bootstrap import Intervals, ratio_interval, ratio_intervals
from diffing.core.seeds import generator
from diffing.core.tables import table_of
from diffing.methods.model_patching.factorial import Factorial, point_name
from diffing.methods.model_patching.half import half_point
from diffing.methods.model_patching.results import ALL, DIRECTIONS, DatasetRow, FactorialRow, LayerRow
from diffing.methods.model_patching.texts import Texts

NEAR_TIE = 0.1


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything that was found out.

    Args:
        texts: Of every prompt.
        compared: Indices into `texts` of the rows of `factorial`.
        factorial: Logit differences.
        points: Numbers of its points.
        n_layers: Blocks of the models.
        datasets: Their names.
        is_cut: Whether the models' vocabularies differ.
        seed: Of the resampling.
    """

    texts: tuple[Texts, ...]
    compared: tuple[int, ...]
    factorial: Factorial
    points: tuple[int, ...]
    n_layers: int
    datasets: tuple[str, ...]
    is_cut: bool
    seed: int

    @property
    def is_near_tie_S(self) -> np.ndarray:
        """Whether one of the models has two choices within `NEAR_TIE` logits, so that rounding may decide."""
        return np.minimum(self.factorial.margin_base_S, self.factorial.margin_ft_S) < NEAR_TIE

    def groups(self) -> Iterator[tuple[str, np.ndarray]]:
        """All rows of `factorial` together, and those of each dataset where there are several."""
        sets = np.array([self.texts[i].opening.dataset for i in self.compared])
        yield ALL, np.arange(len(sets))
        if len(self.datasets) > 1:
            yield from ((name, np.flatnonzero(sets == name)) for name in self.datasets)


def dataset_table(data: Measured) -> pa.Table:
    """One row a dataset, all of them first."""
    rows = []
    for name, compared in data.groups():
        texts = [t for t in data.texts if name in (ALL, t.opening.dataset)]
        positions = np.array([t.position for t in texts if t.position is not None], dtype=float)
        diverged = np.array([t.position is not None for t in texts], dtype=float)
        share = _interval(data, diverged, np.ones(len(texts)), "share", name)
        position = _interval(data, positions, np.ones(len(positions)), "position", name)
        found = data.factorial.of(compared)
        effect = _interval(data, found.effect_S, np.ones(len(compared)), "effect", name)
        half = half_point(found.upstream_SP, found.effect_S, _rng(data, "half", name), data.points)
        rows.append(
            DatasetRow(
                name, len(texts), len(positions), len(compared), int(data.is_near_tie_S[compared].sum()),
                float(diverged.mean()), share.low, share.high, *_three(position), *_three(effect), *_three(half),
            )
        )  # fmt: skip
    return table_of(DatasetRow, rows)


def layer_table(data: Measured) -> pa.Table:
    """Recovery by direction and point."""
    rows: list[LayerRow] = []
    for name, compared in data.groups():
        found = data.factorial.of(compared)
        if not len(compared):
            continue
        moved = (found.ff_S[:, None] - found.bf_SP, found.fb_SP - found.bb_S[:, None])
        for direction, moved_SP, level_SP in zip(DIRECTIONS, moved, (found.bf_SP, found.fb_SP), strict=True):
            shares = ratio_intervals(moved_SP, _repeated(found), _rng(data, "recovery", name))
            for p, (point, mean) in enumerate(zip(data.points, level_SP.mean(0), strict=True)):
                rows.append(
                    LayerRow(
                        name, direction, point, point_name(point, data.n_layers), len(compared),
                        *_at(shares, p), float(mean),
                    )
                )  # fmt: skip
    return table_of(LayerRow, rows)


def factorial_table(data: Measured) -> pa.Table:
    """Cell means, main effects and interaction by point."""
    rows: list[FactorialRow] = []
    for name, compared in data.groups():
        found = data.factorial.of(compared)
        if not len(compared):
            continue
        ones = np.ones_like(found.upstream_SP)
        effects = [
            ratio_intervals(values, counts, _rng(data, "factorial", name))
            for values, counts in (
                (found.upstream_SP, ones), (found.late_SP, ones), (found.interaction_SP, ones),
                (found.upstream_SP, _repeated(found)),
            )
        ]  # fmt: skip
        for p, point in enumerate(data.points):
            cells = (found.bb_S, found.fb_SP[:, p], found.bf_SP[:, p], found.ff_S)
            rows.append(
                FactorialRow(
                    name, point, point_name(point, data.n_layers), len(compared), *(float(c.mean()) for c in cells),
                    *(v for e in effects for v in _at(e, p)),
                )
            )  # fmt: skip
    return table_of(FactorialRow, rows)


def _repeated(found: Factorial) -> np.ndarray:
    return np.repeat(found.effect_S[:, None], found.upstream_SP.shape[1], axis=1)


def _at(found: Intervals, p: int) -> tuple[Any, Any, Any]:
    value, low, high = (None if np.isnan(v[p]) else float(v[p]) for v in (found.values, found.low, found.high))
    return value, low, high


def _three(found: Any) -> tuple[float | None, float | None, float | None]:
    return None if np.isnan(found.value) else found.value, found.low, found.high


def _interval(data: Measured, sums: Sequence[float] | np.ndarray, counts: np.ndarray, what: str, name: str) -> Any:
    return ratio_interval(np.asarray(sums, dtype=float), counts, _rng(data, what, name))


def _rng(data: Measured, what: str, name: str) -> np.random.Generator:
    return generator(data.seed, "model_patching", what, name)
