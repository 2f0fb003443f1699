"""Headline numbers and evidence, read from the tables."""

from typing import Any

import pyarrow as pa

from diffing.core.evidence import LIMIT, Evidence, ScalarEvidence, TextEvidence, TokenEvidence

_NULL_SHARE = 0.05


def summary(datasets: pa.Table, unit: str, claimed: bool | None) -> tuple[ScalarEvidence, ...]:
    """By dataset: the finetuned model's mean advantage beside the base's own, and the share of texts beyond that.

    Args:
        datasets: `datasets.parquet`.
        unit: What the advantage is per.
        claimed: See `evidence`.
    """
    rows = {(r["dataset"], r["source"]): r for r in datasets.to_pylist()}
    found: list[ScalarEvidence] = []
    for dataset in dict.fromkeys(d for d, _ in rows):
        mine, base = rows.get((dataset, "finetuned")), rows.get((dataset, "base"))
        if mine is None:
            continue
        null = None if base is None else base["advantage"]
        name = f"mean log p − log q of own texts · {dataset}"
        found.append(ScalarEvidence(name, mine["advantage"], mine["low"], mine["high"], null, unit, claimed))
        if base is not None:
            name = f"texts above the base's 95th percentile · {dataset}"
            share = mine["share_above_base"]
            found.append(ScalarEvidence(name, share, None, None, _NULL_SHARE, "share", claimed))
        if unit != "nats/byte" and mine["per_byte"] is not None:
            null = None if base is None else base["per_byte"]
            interval = (mine["per_byte"], mine["per_byte_low"], mine["per_byte_high"])
            found.append(
                ScalarEvidence(
                    f"log p − log q per byte of own texts · {dataset}", *interval, null, "nats/byte", claimed
                )
            )
    return tuple(found)


def evidence(
    texts: pa.Table, token_scores: pa.Table | None, scalars: tuple[ScalarEvidence, ...], claimed: bool | None
) -> Evidence:
    """The findings in the shared shape.

    Args:
        texts: `texts.parquet`.
        token_scores: `token_scores.parquet`; None where the tokenizers differ.
        scalars: The headline numbers.
        claimed: False on a null pair, else None: the method is not calibrated.
    """
    mine = [r for r in texts.to_pylist() if r["source"] == "finetuned" and r["advantage"] > 0]
    tokens = [] if token_scores is None else token_scores.slice(0, LIMIT).to_pylist()
    return Evidence(
        tokens=tuple(
            TokenEvidence(r["token"], (r["token_id"],), r["score"], r["stderr"], None, claimed)
            for r in tokens
            if r["score"] > 0
        ),
        texts=tuple(_text(r, claimed) for r in mine[:LIMIT]),
        scalars=scalars,
    )


def _text(row: dict[str, Any], claimed: bool | None) -> TextEvidence:
    return TextEvidence(row["text"], row["advantage"], row["prefill"], "finetuned", claimed)
