"""The components and mean shifts of a result, as directions to steer along."""

from typing import Any

from diffing.core.probing import NamedVector
from diffing.core.result import Result
from diffing.display.numbers import number


def named_vectors(result: Result) -> tuple[NamedVector, ...]:
    """Of the residual stream: mean shifts, then the listed components; by target, centring and layer.

    A mean of length 0 is no direction and is left out.

    Raises:
        UserError: The result lacks a table, or it is damaged.
    """
    spaces = [r for r in result.table("spaces").to_pylist() if r["site"] == "residual"]
    components = [r for r in result.table("components").to_pylist() if r["site"] == "residual"]
    targets = list(dict.fromkeys(r["target"] for r in spaces))
    spaces.sort(key=lambda r: (targets.index(r["target"]), r["layer"]))
    components.sort(key=lambda r: (targets.index(r["target"]), r["centring"], r["layer"], r["component"]))
    means = [_mean(r) for r in spaces if r["centring"] == "uncentred" and r["mean_norm"] > 0]
    return (*means, *(_component(r) for r in components))


def _mean(row: dict[str, Any]) -> NamedVector:
    return NamedVector(
        f"layer_{row['layer']:02d}/{row['site']}/{row['target']}/mean",
        f"mean of {row['target']} · layer {row['layer']}",
        row["layer"],
        row["mean_norm"],
        f"{row['n_tokens']:,} tokens, explained share {number(row['mean_share'])}",
    )


def _component(row: dict[str, Any]) -> NamedVector:
    chance = "above chance" if row["is_above_null"] else "not above chance"
    return NamedVector(
        row["tensor"],
        f"component {row['component']} of {row['centring']} {row['target']} · layer {row['layer']}",
        row["layer"],
        1.0,
        f"explained share {number(row['share'])}, {chance}",
    )
