"""Headline numbers and evidence, read from the tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from diffing.core.evidence import LIMIT, Evidence, ScalarEvidence, TokenEvidence

_PARTS = {"mlp": "MLP"}


def summary(tables: Mapping[str, pa.Table], claimed: bool | None) -> tuple[ScalarEvidence, ...]:
    """How large the change is, where it is, and how concentrated."""
    weights, parts = tables["weights"].to_pylist(), tables["parts"].to_pylist()
    norm = sum(w["norm"] ** 2 for w in weights) ** 0.5
    relative, floor = _relative(weights, norm), _floor(weights)
    found = [
        _scalar("‖ΔW‖ of all compared weights", norm, "", None, claimed),
        _scalar("relative change of these weights", relative, "of ‖W‖", floor, claimed),
        *(
            _scalar(f"share in {_PARTS.get(p['part'], p['part'])}", p["share"], "of ‖ΔW‖²", None, claimed)
            for p in parts
            if p["share"]
        ),
    ]
    changed = [w for w in weights if w["stable_rank"] is not None]
    if changed:
        nulls = [w["null_stable_rank"] for w in changed if w["null_stable_rank"] is not None]
        null = float(np.median(nulls)) if len(nulls) == len(changed) else None
        stable = float(np.median([w["stable_rank"] for w in changed]))
        found.append(_scalar("median stable rank", stable, "directions", null, claimed))
    if (layer := most_changed_layer(tables["map"])) is not None:
        found.append(_scalar("most changed layer", float(layer), "layer", None, claimed))
    return tuple(found)


def _relative(weights: list[dict[str, Any]], norm: float) -> float | None:
    known = [w["base_norm"] for w in weights if w["base_norm"] is not None]
    base = sum(b**2 for b in known) ** 0.5
    return norm / base if base > 0 and len(known) == len(weights) else None


def _floor(weights: list[dict[str, Any]]) -> float | None:
    floors = [w["floor"] for w in weights]
    return max(floors) if floors and all(f is not None for f in floors) else None


def most_changed_layer(cells: pa.Table) -> int | None:
    """The layer with the largest ‖ΔW‖² / ‖W‖², or ‖ΔW‖² where ‖W‖ is not known; None where no layer changed."""
    rows = [r for r in cells.to_pylist() if r["layer"] is not None]
    sizes: dict[int, list[float]] = {}
    is_known = all(r["base_norm"] is not None for r in rows)
    for r in rows:
        total = sizes.setdefault(r["layer"], [0.0, 0.0])
        total[0] += r["norm"] ** 2
        total[1] += r["base_norm"] ** 2 if is_known else 0.0
    found = {layer: s[0] / s[1] if is_known and s[1] > 0 else s[0] for layer, s in sizes.items()}
    return max(found, key=lambda layer: found[layer]) if any(found.values()) else None


def _scalar(name: str, value: float | None, unit: str, null: float | None, claimed: bool | None) -> ScalarEvidence:
    return ScalarEvidence(name, value, None, None, null, unit, claimed)


def evidence(tables: Mapping[str, pa.Table], claimed: bool | None) -> Evidence:
    """The findings in the shared shape: numbers, and tokens above what random directions give.

    Args:
        tables: The method's tables.
        claimed: False on a null pair, else None: the method is not calibrated.
    """
    ranked = tables["token_scores"].slice(0, LIMIT).to_pylist() if "token_scores" in tables else []
    tokens = tuple(
        TokenEvidence(r["token"], (r["token_id"],), r["score"], r["stderr"], r["null_score"], claimed)
        for r in ranked
        if r["score"] > max(r["null_score"], 0.0)
    )
    return Evidence(tokens=tokens, scalars=summary(tables, claimed))
