"""Tables: weights, their spectra, the map of layers, and parts of the model."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa

from diffing.core.tables import table_of
from diffing.methods.weight_spectrum.gather import Gathered, Vector, Weight
from diffing.methods.weight_spectrum.readouts import Key, Readout
from diffing.methods.weight_spectrum.results import LeftOutRow, MapRow, PartRow, SpectrumRow, VectorRow, WeightRow
from diffing.models.changed_weight import LeftOut

KeyT = TypeVar("KeyT", bound=Hashable)
PARTS = ("attention", "mlp", "embedding", "head", "norm", "other")


def weight_table(data: Gathered) -> pa.Table:
    """One row per compared weight."""
    return table_of(WeightRow, [_weight_row(data, w) for w in data.weights])


def _weight_row(data: Gathered, w: Weight) -> WeightRow:
    change, measured, place = w.change, w.measured, w.change.place
    largest = float(measured.values_K[0]) if len(measured.values_K) else None
    sizes = _sizes([w])
    n_in = change.shape[1 - change.out_axis] if len(change.shape) == 2 else None
    return WeightRow(
        unit=w.unit, name=change.name, layer=place.layer, module=place.module, column=place.label, part=place.part,
        kind=change.kind, n_out=change.out_width, n_in=n_in, n_numbers=w.n_numbers, writes_residual=w.writes,
        rank=change.rank, norm=w.norm, base_norm=sizes[1], relative=sizes[2],
        share=measured.square / data.square if data.square > 0 else None,
        share_moved=None if measured.n_moved is None else measured.n_moved / max(w.n_numbers, 1), floor=change.floor,
        largest=largest, stable_rank=measured.square / largest**2 if largest else None,
        effective_rank=measured.square**2 / measured.fourth if measured.fourth else None,
        null_stable_rank=w.null.stable_rank if w.null else None,
        null_effective_rank=w.null.effective_rank if w.null else None, is_exact=measured.is_exact,
    )  # fmt: skip


def _sizes(weights: Sequence[Weight]) -> tuple[float, float | None, float | None]:
    """‖ΔW‖, ‖W‖ and their ratio over some weights; the last two None unless known of all."""
    norm = sum(w.measured.square for w in weights) ** 0.5
    squares = [w.measured.base_square for w in weights]
    if any(s is None for s in squares):
        return norm, None, None
    base = sum(s for s in squares if s is not None) ** 0.5
    return norm, base, norm / base if base > 0 else None


def spectrum_table(data: Gathered) -> pa.Table:
    """The largest singular values of every changed matrix."""
    return table_of(SpectrumRow, [row for w in data.weights for row in _spectrum_rows(w)])


def _spectrum_rows(w: Weight) -> list[SpectrumRow]:
    measured, place = w.measured, w.change.place
    shares_K = measured.values_K**2 / measured.square if len(measured.values_K) else np.zeros(0)
    sums_K = np.minimum(np.cumsum(shares_K), 1.0)
    nulls = w.null.shares_K if w.null else ()
    return [
        SpectrumRow(
            w.unit, place.layer, place.module, i + 1, float(value), float(shares_K[i]), float(sums_K[i]),
            nulls[i] if i < len(nulls) else None, at(measured.base_out_K, i), at(measured.base_in_K, i),
        )
        for i, value in enumerate(measured.values_K)
    ]  # fmt: skip


def at(values_K: np.ndarray | None, i: int) -> float | None:
    """One of some numbers, where they are known."""
    return None if values_K is None else float(values_K[i])


def map_table(data: Gathered) -> pa.Table:
    """‖ΔW‖ and its ratio to ‖W‖ for each layer and matrix."""
    cells = _grouped(data.weights, lambda w: (w.change.place.layer, w.change.place.label, w.change.place.part))
    return table_of(
        MapRow, [MapRow(layer, column, part, len(ws), *_sizes(ws)) for (layer, column, part), ws in cells.items()]
    )


def part_table(data: Gathered) -> pa.Table:
    """The same for attention, MLP, embedding and so on."""
    cells = _grouped(data.weights, lambda w: w.change.place.part)
    rows = []
    for part in sorted(cells, key=PARTS.index):
        ws = cells[part]
        share = sum(w.measured.square for w in ws) / data.square if data.square > 0 else None
        n_moved, n_numbers = sum(w.measured.square > 0 for w in ws), sum(w.n_numbers for w in ws)
        rows.append(PartRow(part, len(ws), n_moved, n_numbers, *_sizes(ws), share))
    return table_of(PartRow, rows)


def _grouped(weights: Sequence[Weight], key: Callable[[Weight], KeyT]) -> dict[KeyT, list[Weight]]:
    found: dict[KeyT, list[Weight]] = {}
    for w in weights:
        found.setdefault(key(w), []).append(w)
    return found


def vector_table(data: Gathered, readouts: dict[Key, Readout]) -> pa.Table:
    """Output vectors of matrices that write into the residual stream, with what is read from them."""
    return table_of(VectorRow, [_vector_row(v, readouts) for v in data.vectors])


def _vector_row(v: Vector, readouts: dict[Key, Readout]) -> VectorRow:
    measured, place = v.weight.measured, v.weight.change.place
    ends = [readouts.get((v.weight.unit, v.index, end)) for end in ("positive", "negative")]
    return VectorRow(
        v.weight.unit, place.layer, place.module, v.index + 1, v.singular_value, v.singular_value**2 / measured.square,
        at(measured.base_out_K, v.index), at(measured.base_in_K, v.index), v.tensor,
        ends[0].tokens if ends[0] else (), ends[1].tokens if ends[1] else (),
    )  # fmt: skip


def left_out_table(left_out: Sequence[LeftOut]) -> pa.Table:
    """Tensors that are not compared."""
    return table_of(LeftOutRow, [LeftOutRow(x.name, x.where, x.reason) for x in left_out])
