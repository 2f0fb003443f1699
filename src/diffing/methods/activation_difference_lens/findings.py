"""Headline numbers and evidence, read from the tables."""

from collections.abc import Mapping

import pyarrow as pa

from diffing.core.evidence import LIMIT, Evidence, ScalarEvidence, TextEvidence, TokenEvidence
from diffing.methods.activation_difference_lens.causal import MATCHED, TOWARD_BASE
from diffing.methods.activation_difference_lens.words import Row, direction_name, mean_effect


def evidence(
    tables: Mapping[str, pa.Table], scalars: tuple[ScalarEvidence, ...], claimed: bool | None
) -> Evidence:  # fmt: skip
    """The findings in the shared shape.

    Args:
        tables: The method's tables.
        scalars: Of the summary.
        claimed: False on a null pair, else None: the method is not calibrated.
    """
    rows = tables["token_scores"].slice(0, LIMIT).to_pylist()
    above = [r for r in rows if r["score"] > max(0.0, r["null_score"] or 0.0)]
    texts = [r for r in tables["texts"].to_pylist() if r["is_chosen"]]
    return Evidence(
        tokens=tuple(
            TokenEvidence(r["token"], (r["token_id"],), r["score"], r["stderr"], r["null_score"], claimed)
            for r in above
        ),
        texts=tuple(
            TextEvidence(
                r["steered"], None, r["prompt"], f"steered {r['strength']:g} along {direction_name(r)}", claimed
            )
            for r in texts
        ),
        scalars=tuple(ScalarEvidence(s.name, s.value, s.low, s.high, s.null, s.unit, claimed) for s in scalars),
    )


def summary(tables: Mapping[str, pa.Table]) -> tuple[ScalarEvidence, ...]:
    """By layer and dataset the place with the largest relative mean difference; causal effects; chosen strengths."""
    largest: dict[tuple[int, str], Row] = {}
    for row in tables["positions"].to_pylist():
        key = (row["layer"], row["dataset"])
        if row["is_ranked"] and (key not in largest or _size(row) > _size(largest[key])):
            largest[key] = row
    found = [
        ScalarEvidence(
            f"largest ‖δ̄‖ / mean ‖f‖ · {direction_name(r)}", r["relative"], None, None, _chance(r), "share of norm"
        )
        for r in largest.values()
    ]
    rows = tables["causal"].to_pylist()
    found += [
        ScalarEvidence(
            f"Δloss on {r['text']} without {direction_name(r)}", r["effect"], r["low"], r["high"],
            mean_effect(rows, r, MATCHED), "nats/token",
        )
        for r in rows
        if r["change"] == TOWARD_BASE
    ]  # fmt: skip
    return tuple(found)


def _size(row: Row) -> tuple[float, float]:
    return row["beyond_chance"], row["relative"]


def _chance(row: Row) -> float | None:
    size = row["mean_norm_finetuned"]
    return row["chance"] / size if size > 0 else None
