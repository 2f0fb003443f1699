"""Numbers of weights that were measured, stored as they come, so that an interrupted run goes on."""

from dataclasses import fields
from pathlib import Path

import numpy as np

from diffing.analysis.units import read_arrays, write_arrays
from diffing.methods.weight_spectrum.measure import Measured


def write_unit(path: Path, measured: Measured) -> None:
    """Store one weight's numbers, whole or not at all."""
    known = {f.name: getattr(measured, f.name) for f in fields(measured)}
    arrays = {name: np.atleast_1d(np.asarray(value)) for name, value in known.items() if value is not None}
    write_arrays(path, arrays)


def read_unit(path: Path) -> Measured | None:
    """What was stored; None when there is nothing or it is not whole."""
    arrays = read_arrays(path)
    if arrays is None or not {"square", "is_exact", "values_K"} <= set(arrays):
        return None

    def scalar(name: str) -> float | None:
        return float(arrays[name][0]) if name in arrays else None

    return Measured(
        square=float(arrays["square"][0]), n_moved=int(arrays["n_moved"][0]) if "n_moved" in arrays else None,
        base_square=scalar("base_square"), fourth=scalar("fourth"), is_exact=bool(arrays["is_exact"][0]),
        values_K=arrays["values_K"], base_out_K=arrays.get("base_out_K"), base_in_K=arrays.get("base_in_K"),
        vectors_KD=arrays.get("vectors_KD"), random_ND=arrays.get("random_ND"),
    )  # fmt: skip
