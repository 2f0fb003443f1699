"""Headline numbers and evidence, read from the tables."""

from collections.abc import Collection
from typing import Any

import pyarrow as pa

from diffing.core.evidence import LIMIT, Evidence, ScalarEvidence, TextEvidence, TokenEvidence

_LISTED = 40


def summary(sources: pa.Table, claimed: bool | None) -> tuple[ScalarEvidence, ...]:
    """By α: over-represented phrases, mean log p − log q, share of capitals."""
    rows = [r for r in sources.to_pylist() if r["kind"] == "all"]
    base, null = (next(r for r in rows if r["source"] == name) for name in ("base", "null"))
    found = []
    for title, unit, column, under_null in (
        ("over-represented phrases", "phrases", "n_over_base", null["n_over_base"]),
        ("log p − log q", "nats/token", "log_ratio", base["log_ratio"]),
        ("capital letters", "share", "capitals", base["capitals"]),
    ):
        found += [
            ScalarEvidence(
                f"{title} · α={r['alpha']:g}", r[column], r.get(f"{column}_low"), r.get(f"{column}_high"), under_null,
                unit, claimed,
            )
            for r in rows
            if r["alpha"] is not None
        ]  # fmt: skip
    return tuple(found)


def evidence(
    texts: pa.Table, phrases: pa.Table, token_scores: pa.Table, over_ids: Collection[int], main: float,
    scalars: tuple[ScalarEvidence, ...], claimed: bool | None,
) -> Evidence:  # fmt: skip
    """The findings in the shared shape.

    Args:
        texts: `texts.parquet`.
        phrases: `phrases.parquet`.
        token_scores: `token_scores.parquet`, ranked.
        over_ids: Over-represented tokens.
        main: The α whose texts show most.
        scalars: The headline.
        claimed: False on a null pair, else None: the method is not calibrated.
    """
    tokens = [r for r in token_scores.to_pylist() if r["score"] > 0 and r["token_id"] in over_ids][:LIMIT]
    amplified = [r for r in texts.to_pylist() if r["alpha"] is not None and r["log_ratio"] > 0]
    amplified.sort(key=lambda r: (-r["log_ratio"], r["prompt_number"], r["sample"]))
    return Evidence(
        tokens=tuple(
            TokenEvidence(r["token"], (r["token_id"],), r["score"], None, r["null_score"], claimed) for r in tokens
        ),
        texts=(*_statement(phrases, main, claimed), *(_text(r, claimed) for r in amplified)),
        scalars=scalars,
    )


def _statement(phrases: pa.Table, main: float, claimed: bool | None) -> tuple[TextEvidence, ...]:
    """The over-represented phrases of the main α in one text."""
    rows = [r for r in phrases.to_pylist() if r["alpha"] == main and r["against"] == "base" and r["is_over"]]
    shown = [r["phrase"] for r in rows if r["part_of"] is None][:_LISTED]
    if not shown:
        return ()
    said = f"Over-represented at α={main:g} against the base: {'; '.join(shown)}"
    return (TextEvidence(said, None, None, "phrases", claimed),)


def _text(row: dict[str, Any], claimed: bool | None) -> TextEvidence:
    return TextEvidence(row["text"], row["log_ratio"], row["prompt"], f"α={row['alpha']:g}", claimed)
