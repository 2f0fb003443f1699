"""Headline numbers and evidence, read from the tables."""

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from diffing.core.evidence import LIMIT, Evidence, ExampleEvidence, ScalarEvidence, Span, TokenEvidence
from diffing.methods.pca.spaces import Space

_SHARE = "share of variance"


def summary(tables: Mapping[str, pa.Table], main: Space, claimed: bool | None) -> tuple[ScalarEvidence, ...]:
    """Numbers of the main slot and target, centred and uncentred."""
    place = (main.slot.layer, main.slot.site, main.target)
    spaces = [r for r in tables["spaces"].to_pylist() if (r["layer"], r["site"], r["target"]) == place]
    first = {
        r["centring"]: r
        for r in tables["spectrum"].to_pylist()
        if (r["layer"], r["site"], r["target"]) == place and r["component"] == 1
    }
    found = []
    for row in spaces:
        tail = f"{row['centring']} {main.target} · {main.slot.name}"
        one = first[row["centring"]]
        null = one["null_p95"] / row["total"] if row["total"] > 0 else None
        found += [
            _scalar(f"components above null · {tail}", float(row["n_above_null"]), "components", None, claimed),
            _scalar(f"share of component 1 · {tail}", one["share"], _SHARE, null, claimed),
            _scalar(f"participation ratio · {tail}", row["participation_ratio"], "dimensions", None, claimed),
        ]
    tail = f"{main.target} · {main.slot.name}"
    size = next(math.sqrt(r["total"]) for r in spaces if r["centring"] == "uncentred")
    return (
        *found,
        _scalar(f"mean shift · {tail}", spaces[0]["mean_share"], _SHARE, None, claimed),
        _scalar(f"root mean square · {tail}", size, "activation norm", None, claimed),
    )


def _scalar(name: str, value: float | None, unit: str, null: float | None, claimed: bool | None) -> ScalarEvidence:
    return ScalarEvidence(name, value, None, None, null, unit, claimed)


def evidence(tables: Mapping[str, pa.Table], main: Space, claimed: bool | None) -> Evidence:
    """The findings in the shared shape.

    Args:
        tables: The method's tables.
        main: The space of the headline.
        claimed: False on a null pair, else None: the method is not calibrated.
    """
    above = [r for r in tables["token_scores"].slice(0, LIMIT).to_pylist() if r["score"] > 0]
    peaks = [r for r in tables["examples"].to_pylist() if r["kind"] == "subspace"]
    return Evidence(
        tokens=tuple(
            TokenEvidence(r["token"], (r["token_id"],), r["score"], r["stderr"], None, claimed) for r in above
        ),
        examples=tuple(_example(r, claimed) for r in sorted(peaks, key=lambda r: -r["score"])),
        scalars=summary(tables, main, claimed),
    )


def _example(row: dict[str, Any], claimed: bool | None) -> ExampleEvidence:
    spans = zip(row["starts"], row["ends"], row["values"], strict=True)
    return ExampleEvidence(
        row["text"], row["score"], tuple(Span(s, e, v) for s, e, v in spans if e > s and v is not None),
        row["dataset"], claimed,
    )  # fmt: skip
