"""Headline numbers and evidence, read from the tables."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from diffing.core.evidence import LIMIT, Evidence, ScalarEvidence, TextEvidence, TokenEvidence
from diffing.methods.model_patching.results import ALL


def summary(tables: Mapping[str, pa.Table], layer: int, claimed: bool | None = None) -> tuple[ScalarEvidence, ...]:
    """How often texts part, where in depth the choice is made, and the factorial after block `layer`."""
    datasets = tables["datasets"].to_pylist()
    whole = next(r for r in datasets if r["dataset"] == ALL)
    several = [r for r in datasets if r["dataset"] != ALL] or [whole]
    cut = next((r for r in tables["factorial"].to_pylist() if (r["dataset"], r["layer"]) == (ALL, layer)), {})
    return (
        *(_scalar(f"prompts that diverge · {r['dataset']}", r, "share", "share", "share", claimed) for r in several),
        _scalar("tokens before the divergence", whole, "mean_position", "position", "tokens", claimed),
        _scalar("difference at the divergence", whole, "effect", "effect", "logits", claimed),
        _scalar("half of it follows states up to", whole, "half_layer", "half", "layer", claimed),
        *(
            _scalar(f"{label} · layer {layer}", cut, name, name, "logits", claimed)
            for label, name in (("upstream", "upstream"), ("late", "late"), ("interaction", "interaction"))
        ),
    )


def _scalar(
    name: str, row: Mapping[str, Any], value: str, bounds: str, unit: str, claimed: bool | None
) -> ScalarEvidence:
    found = (row.get(value), row.get(f"{bounds}_low"), row.get(f"{bounds}_high"))
    return ScalarEvidence(name, *found, None, unit, claimed)


def evidence(tables: Mapping[str, pa.Table], layer: int, claimed: bool | None) -> Evidence:
    """The findings in the shared shape.

    Args:
        tables: The method's tables.
        layer: The headline's cut.
        claimed: False on a null pair, else None: the method is not calibrated.
    """
    above = [r for r in tables["token_scores"].slice(0, LIMIT).to_pylist() if r["score"] > 0]
    parted = sorted((r for r in tables["prompts"].to_pylist() if r["is_compared"]), key=lambda r: -r["effect"])
    return Evidence(
        tokens=tuple(
            TokenEvidence(r["token"], (r["token_id"],), r["score"], r["stderr"], None, claimed) for r in above
        ),
        texts=tuple(_text(r, claimed) for r in parted[:LIMIT]),
        scalars=summary(tables, layer, claimed),
    )


def _text(row: Mapping[str, Any], claimed: bool | None) -> TextEvidence:
    source = f"finetuned model, {row['dataset']}; parts after {row['position']} tokens"
    return TextEvidence(row["ft_text"], row["effect"], row["prompt"], source, claimed)
