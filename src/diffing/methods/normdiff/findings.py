"""Headline numbers and evidence, read from the tables."""

from typing import Any

import pyarrow as pa

from diffing.core.evidence import LIMIT, Evidence, ExampleEvidence, ScalarEvidence, Span, TokenEvidence
from diffing.core.layers import Slot

_NAMES = {
    "relative": ("mean relative difference", "share of the norm"),
    "norm_diff": ("mean ‖δ‖", "norm"),
    "cosine": ("mean cosine distance", "distance"),
}


def summary(datasets: pa.Table, slot: Slot) -> tuple[ScalarEvidence, ...]:
    """Relative difference, ‖δ‖ and cosine distance of each dataset at the example layer."""
    rows = [r for r in datasets.to_pylist() if r["metric"] in _NAMES and (r["layer"], r["site"]) == slot]
    rows.sort(key=lambda r: list(_NAMES).index(r["metric"]))
    return tuple(
        ScalarEvidence(
            f"{_NAMES[r['metric']][0]} · {r['dataset']} · {slot.name}", r["mean"], r["low"], r["high"], r["null"],
            _NAMES[r["metric"]][1],
        )
        for r in rows
    )  # fmt: skip


def evidence(
    datasets: pa.Table, examples: pa.Table, token_scores: pa.Table, slot: Slot, claimed: bool | None
) -> Evidence:
    """The findings in the shared shape.

    Args:
        datasets: `datasets.parquet`.
        examples: `examples.parquet`; the peaks by relative difference are used.
        token_scores: `token_scores.parquet`, ranked.
        slot: The example layer.
        claimed: False on a null pair, else None: the method is not calibrated.
    """
    above = [r for r in token_scores.slice(0, LIMIT).to_pylist() if r["score"] > 0]
    peaks = [r for r in examples.to_pylist() if (r["metric"], r["ranking"]) == ("relative", "peak") and r["score"] > 0]
    scalars = summary(datasets, slot)
    return Evidence(
        tokens=tuple(
            TokenEvidence(r["token"], (r["token_id"],), r["score"], r["stderr"], None, claimed) for r in above
        ),
        examples=tuple(_example(r, claimed) for r in sorted(peaks, key=lambda r: -r["score"])),
        scalars=tuple(ScalarEvidence(s.name, s.value, s.low, s.high, s.null, s.unit, claimed) for s in scalars),
    )


def _example(row: dict[str, Any], claimed: bool | None) -> ExampleEvidence:
    spans = zip(row["starts"], row["ends"], row["relative"], strict=True)
    return ExampleEvidence(
        row["text"], row["score"], tuple(Span(s, e, v) for s, e, v in spans if e > s and v is not None),
        row["dataset"], claimed,
    )  # fmt: skip
