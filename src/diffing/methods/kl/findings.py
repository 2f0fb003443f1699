"""Headline numbers and evidence, read from the tables."""

from typing import Any

import pyarrow as pa

from diffing.core.evidence import LIMIT, Evidence, ExampleEvidence, ScalarEvidence, Span, TokenEvidence

_UNITS = {"kl": "nats/token", "delta_nll": "nats/token", "top1_agree": "share"}
_NAMES = {"kl": "mean KL", "delta_nll": "mean ΔNLL", "top1_agree": "top-1 agreement"}


def summary(datasets: pa.Table) -> tuple[ScalarEvidence, ...]:
    """Mean KL, ΔNLL and top-1 agreement of each dataset."""
    rows = [r for r in datasets.to_pylist() if r["metric"] in _NAMES]
    rows.sort(key=lambda r: list(_NAMES).index(r["metric"]))
    return tuple(
        ScalarEvidence(
            f"{_NAMES[r['metric']]} · {r['dataset']}", r["mean"], r["low"], r["high"], r["null"], _UNITS[r["metric"]]
        )
        for r in rows
    )


def evidence(datasets: pa.Table, examples: pa.Table, token_scores: pa.Table, claimed: bool | None) -> Evidence:
    """The findings in the shared shape.

    Args:
        datasets: `datasets.parquet`.
        examples: `examples.parquet`; the `peak` ranking is used.
        token_scores: `token_scores.parquet`, ranked.
        claimed: False on a null pair, else None: the method is not calibrated.
    """
    risen = [r for r in token_scores.slice(0, LIMIT).to_pylist() if r["score"] > 0]
    peaks = sorted((r for r in examples.to_pylist() if r["ranking"] == "peak"), key=lambda r: -r["score"])
    scalars = summary(datasets)
    return Evidence(
        tokens=tuple(
            TokenEvidence(r["token"], (r["token_id"],), r["score"], r["stderr"], None, claimed) for r in risen
        ),
        examples=tuple(_example(r, claimed) for r in peaks if r["score"] > 0),
        scalars=tuple(ScalarEvidence(s.name, s.value, s.low, s.high, s.null, s.unit, claimed) for s in scalars),
    )


def _example(row: dict[str, Any], claimed: bool | None) -> ExampleEvidence:
    spans = zip(row["starts"], row["ends"], row["kl"], strict=True)
    return ExampleEvidence(
        row["text"], row["score"], tuple(Span(s, e, v) for s, e, v in spans if e > s), row["dataset"], claimed
    )
