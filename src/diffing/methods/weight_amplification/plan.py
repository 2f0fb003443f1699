"""Which factors are tried: the whole change on a grid, and parts of it: a third of the depth, attention or MLP."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffing.core.amplification import AmplificationSpec, Place, only, parts, uniform
from diffing.methods.weight_amplification.config import WeightAmplificationConfig

WHOLE = "whole"


@dataclass(frozen=True)
class Setting:
    """One way of scaling the change.

    Args:
        number: From 0.
        part: `whole`, or which part has the factor.
        factor: The factor.
        rest: The factor of everything else; None for the whole change.
        layers: Of the part.
        modules: Of the part.
        n_modules: Changed modules of the part.
        spec: The same as rules.
    """

    number: int
    part: str
    factor: float
    rest: float | None
    layers: str
    modules: str
    n_modules: int
    spec: AmplificationSpec


def settings(config: WeightAmplificationConfig, places: Sequence[Place], n_layers: int) -> list[Setting]:
    """The grid, then the parts in which anything changed.

    Args:
        config: The factors.
        places: The changed modules.
        n_layers: Decoder blocks of the model.
    """
    found = [
        Setting(i, WHOLE, factor, None, "all", "all", len(places), uniform(factor))
        for i, factor in enumerate(config.grid)
    ]
    for part in parts(n_layers):
        rule = part.rule(config.map_factor)
        n_modules = sum(rule.matches(place, n_layers) for place in places)
        if n_modules:
            spec = only(rule, config.map_rest)
            found.append(
                Setting(
                    len(found), part.name, config.map_factor, config.map_rest, part.layers, part.kind, n_modules, spec
                )
            )
    return found
