"""Headline numbers and evidence, read from the tables."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from diffing.core.evidence import LIMIT, Evidence, ExampleEvidence, ScalarEvidence, Span, TokenEvidence
from diffing.methods.diff_mining.gather import ALL

_Z_95 = 1.96


def summary(tables: Mapping[str, pa.Table], claimed: bool | None = None) -> tuple[ScalarEvidence, ...]:
    """Per dataset the mean of the K largest D, and how often the most frequent merged token is among them."""
    rows = tables["datasets"].to_pylist()
    found = [
        ScalarEvidence(
            f"mean of the K largest D · {r['dataset']}", r["mean_strength"], r["low"], r["high"], None, "nats", claimed
        )
        for r in rows
    ]
    merged = tables["merged_tokens"]
    for row in rows:
        first = _of(merged, row["dataset"]).slice(0, 1).to_pylist()
        found += [_top_share(r, claimed) for r in first]
    return tuple(found)


def _of(table: pa.Table, dataset: str) -> pa.Table:
    return table.filter(pa.array([name == dataset for name in table["dataset"].to_pylist()], type=pa.bool_()))


def _top_share(row: Mapping[str, Any], claimed: bool | None) -> ScalarEvidence:
    value, error = row["largest"], row["largest_stderr"]
    low, high = (None, None) if error is None else (max(value - _Z_95 * error, 0.0), value + _Z_95 * error)
    name = f"share of positions with the first token · {row['dataset']}"
    return ScalarEvidence(name, value, low, high, row["null"], "share", claimed)


def evidence(tables: Mapping[str, pa.Table], claimed: bool | None) -> Evidence:
    """The findings in the shared shape: merged tokens over all datasets, and where the K largest D are largest.

    Args:
        tables: The method's tables.
        claimed: False on a null pair, else None: the method is not calibrated.
    """
    merged = tables["merged_tokens"]
    first = _of(merged, ALL).slice(0, LIMIT).to_pylist()
    peaks = sorted(tables["examples"].to_pylist(), key=lambda r: -r["score"])
    return Evidence(
        tokens=tuple(
            TokenEvidence(r["token"], tuple(r["token_ids"]), r["largest"], r["largest_stderr"], r["null"], claimed)
            for r in first
        ),
        examples=tuple(_example(r, claimed) for r in peaks),
        scalars=summary(tables, claimed),
    )


def _example(row: Mapping[str, Any], claimed: bool | None) -> ExampleEvidence:
    spans = zip(row["starts"], row["ends"], row["values"], strict=True)
    return ExampleEvidence(
        row["text"], row["score"], tuple(Span(s, e, v) for s, e, v in spans if e > s), row["dataset"], claimed
    )
