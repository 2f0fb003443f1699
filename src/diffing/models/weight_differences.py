"""The change of weights that are stored whole: what two files hold under one name, subtracted row by row."""

from collections.abc import Iterator

import torch
from torch import Tensor

from diffing.models.changed_weight import Kind, LeftOut, Rows, WeightChange
from diffing.models.weight_files import StoredTensor, WeightFiles
from diffing.models.weight_places import Part, WeightPlace, weight_place

Casts = tuple[torch.dtype, torch.dtype]
# What quantisers store beside their packed weights.
_COMPANIONS = (
    "absmax", "quant_map", "nested_absmax", "nested_quant_map", "scales", "qzeros", "g_idx", "qweight", "weight_scale",
    "weight_scale_inv", "input_scale", "SCB", "weight_format",
)  # fmt: skip


def unreadable(tensor: StoredTensor) -> str | None:
    """Why a tensor's numbers are no weights as they stand; None where they are."""
    if not tensor.is_float:
        return f"holds {tensor.dtype} numbers (packed or quantised), which are no weights as they stand"
    last = tensor.name.rpartition(".")[2]
    if last in _COMPANIONS or "quant_state" in last:
        return "belongs to a quantised weight"
    return None


def difference(
    ours: WeightFiles, base: StoredTensor, theirs: WeightFiles, finetuned: StoredTensor, is_transposed: bool,
    kind: Kind = "difference", casts: Casts | None = None, place: WeightPlace | None = None,
) -> WeightChange | LeftOut:  # fmt: skip
    """How one weight changes between two files.

    Of tables with different numbers of rows (resized embeddings) the rows that both have are compared.

    Args:
        ours: The base's files.
        base: Its tensor.
        theirs: The finetuned model's files.
        finetuned: Its tensor.
        is_transposed: Whether matrices are stored (in, out).
        kind: How the change is called.
        casts: What both are rounded to first; None: they stay as stored.
        place: Where it belongs; None: as the base's name says.
    """
    if (reason := unreadable(base)) is not None:
        return LeftOut(base.name, "base", reason)
    if (reason := unreadable(finetuned)) is not None:
        return LeftOut(finetuned.name, "finetuned", reason)
    place = place or weight_place(base.name)
    shape = _shared_shape(base.shape, finetuned.shape, place.part)
    if shape is None:
        return LeftOut(finetuned.name, "finetuned", f"has shape {finetuned.shape}, the base's {base.shape}")
    n_rows = shape[0] if shape else 1

    def rows() -> Iterator[tuple[int, Tensor]]:
        pairs = zip(ours.chunks(base.name, n_rows), theirs.chunks(finetuned.name, n_rows), strict=True)
        for (start, before), (_, after) in pairs:
            yield start, _rounded(after, casts, 1) - _rounded(before, casts, 0)

    return WeightChange(
        base.name, place, kind, shape, out_axis(place, len(shape), is_transposed), rows=rows,
        base=rows_of(ours, base, n_rows, casts), floor=_floor(base, finetuned, casts),
    )  # fmt: skip


def rows_of(files: WeightFiles, tensor: StoredTensor, n_rows: int | None = None, casts: Casts | None = None) -> Rows:
    """Reads the first rows of a stored tensor in chunks."""

    def rows() -> Iterator[tuple[int, Tensor]]:
        for start, values in files.chunks(tensor.name, n_rows):
            yield start, _rounded(values, casts, 0)

    return rows


def out_axis(place: WeightPlace, n_axes: int, is_transposed: bool) -> int:
    """The axis of a weight that is its module's output."""
    if n_axes != 2:
        return 0
    if place.part == "embedding":
        return 1
    return int(is_transposed and place.layer is not None)


def _shared_shape(base: tuple[int, ...], finetuned: tuple[int, ...], part: Part) -> tuple[int, ...] | None:
    if base == finetuned:
        return base
    is_table = part in ("embedding", "head") and len(base) == len(finetuned) == 2
    return (min(base[0], finetuned[0]), base[1]) if is_table and base[1] == finetuned[1] else None


def _rounded(values: Tensor, casts: Casts | None, side: int) -> Tensor:
    return values if casts is None else values.to(casts[side]).float()


def _floor(base: StoredTensor, finetuned: StoredTensor, casts: Casts | None) -> float:
    stored = max(base.rounding_floor, finetuned.rounding_floor)
    return stored if casts is None else max(stored, *(torch.finfo(c).eps / 4 for c in casts))
