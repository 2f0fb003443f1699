"""The output vectors of a result, as directions to steer along."""

from typing import Any

from diffing.core.probing import NamedVector
from diffing.core.result import Result
from diffing.display.numbers import number


def named_vectors(result: Result) -> tuple[NamedVector, ...]:
    """Singular vectors of matrices that write into the residual stream, the largest singular value first.

    The embedding's are those that the first block reads.

    Raises:
        UserError: The result lacks a table, or it is damaged.
    """
    rows = sorted(result.table("vectors").to_pylist(), key=lambda r: (-r["singular_value"], r["tensor"]))
    return tuple(_vector(r) for r in rows)


def _vector(row: dict[str, Any]) -> NamedVector:
    layer = row["layer"] or 0
    where = "before layer 0" if row["layer"] is None else f"layer {layer}"
    return NamedVector(
        row["tensor"], f"ΔW of {row['module']}, vector {row['index']} · {where}", layer, 1.0,
        f"σ = {number(row['singular_value'])}, {number(100 * row['share'])} % of ‖ΔW‖²",
    )  # fmt: skip
