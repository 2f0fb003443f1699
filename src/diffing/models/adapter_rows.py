"""Rows of ΔW for adapters whose change is no plain product of two factors."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from diffing.models.changed_weight import Factors, Rows
from diffing.models.weight_files import WeightFiles, row_cuts


def dora_rows(
    base: Rows, factors: Callable[[], Factors], magnitude: Callable[[], Tensor], out_axis: int, shape: tuple[int, ...]
) -> Rows:
    """ΔW = m · (W + ΔV) / ‖W + ΔV‖ − W, the norm over the inputs of each output (Liu et al. 2024, DoRA, eq. 5)."""

    def moved() -> Iterator[tuple[int, Tensor, Tensor]]:
        found = factors()
        for start, before in base():
            left = found.left_OR[start : start + len(before)]
            yield start, before, before + found.scale * (left @ found.right_IR.T)

    def rows() -> Iterator[tuple[int, Tensor]]:
        lengths = torch.cat([m.square().sum(1) for _, _, m in moved()]) if out_axis == 0 else _columns(moved(), shape)
        gain = magnitude() / lengths.sqrt()
        for start, before, after in moved():
            factor = gain[start : start + len(before), None] if out_axis == 0 else gain[None]
            yield start, factor * after - before

    return rows


def _columns(moved: Iterator[tuple[int, Tensor, Tensor]], shape: tuple[int, ...]) -> Tensor:
    squares = torch.zeros(shape[1])
    for _, _, after in moved:
        squares += after.square().sum(0)
    return squares


def loha_rows(adapter: WeightFiles, names: Mapping[str, str], scale: float) -> tuple[tuple[int, int], Rows]:
    """ΔW = scale · (w1_a w1_b) ∘ (w2_a w2_b) (Hyeon-Woo et al. 2022, FedPara)."""
    shape = (_shape(adapter, names["hada_w1_a"])[0], _shape(adapter, names["hada_w1_b"])[1])

    def rows() -> Iterator[tuple[int, Tensor]]:
        a1, b1, a2, b2 = (adapter.read(names[f"hada_{n}"]) for n in ("w1_a", "w1_b", "w2_a", "w2_b"))
        for start, stop in row_cuts(shape):
            yield start, (a1[start:stop] @ b1) * (a2[start:stop] @ b2) * scale

    return shape, rows


def lokr_rows(adapter: WeightFiles, names: Mapping[str, str], scale: float) -> tuple[tuple[int, int], Rows]:
    """ΔW = scale · w1 ⊗ w2, either of them whole or a product (Yeh et al. 2024, LyCORIS)."""
    one, two = _factor_shape(adapter, names, "lokr_w1"), _factor_shape(adapter, names, "lokr_w2")
    shape = (one[0] * two[0], one[1] * two[1])

    def rows() -> Iterator[tuple[int, Tensor]]:
        w1, w2 = _factor(adapter, names, "lokr_w1"), _factor(adapter, names, "lokr_w2")
        for i, row in enumerate(w1):
            yield i * len(w2), torch.kron(row[None], w2) * scale

    return shape, rows


def vector_rows(adapter: WeightFiles, name: str, scale: float) -> Rows:
    """The entries of a vector, scaled."""

    def rows() -> Iterator[tuple[int, Tensor]]:
        for start, values in adapter.chunks(name):
            yield start, values * scale

    return rows


def _shape(adapter: WeightFiles, name: str) -> tuple[int, ...]:
    return adapter.tensors[name].shape


def _factor_shape(adapter: WeightFiles, names: Mapping[str, str], factor: str) -> tuple[int, int]:
    if factor in names:
        rows, columns = _shape(adapter, names[factor])
        return rows, columns
    return _shape(adapter, names[f"{factor}_a"])[0], _shape(adapter, names[f"{factor}_b"])[1]


def _factor(adapter: WeightFiles, names: Mapping[str, str], factor: str) -> Tensor:
    if factor in names:
        return adapter.read(names[factor])
    return adapter.read(names[f"{factor}_a"]) @ adapter.read(names[f"{factor}_b"])
