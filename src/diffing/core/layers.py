"""Where activations are read: layers by name, and slots, which are a layer and a site in it."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from diffing.core.errors import UserError

Site = Literal["residual", "attention", "mlp"]
Layers = tuple[int | float | str, ...]


class Slot(NamedTuple):
    """One place in a model: the residual stream after a block, or the output of its attention or MLP."""

    layer: int
    site: Site = "residual"

    @property
    def name(self) -> str:
        """`layer_14/residual`: the folder of a cache, and how messages call it."""
        return f"layer_{self.layer:02d}/{self.site}"


def listed(value: object) -> object:
    """A list of one for a single layer or site, as people write it; lists as they are.

    Raises:
        ValueError: A layer is true or false, which Python takes for 1 and 0.
    """
    values = [value] if isinstance(value, (int, float, str)) else value
    if isinstance(values, (list, tuple)) and any(isinstance(v, bool) for v in values):
        raise ValueError("true and false are no layers; write a number, a share of the depth, or all")
    return values


def layers(chosen: Sequence[int | float | str], n_layers: int, option: str = "preprocessing.layers") -> list[int]:
    """Block indices, ascending and without repetition.

    Args:
        chosen: Each an index (negative counts from the end), a float r in [0, 1] for block ⌊r·(L−1)⌋, or "all".
        n_layers: Blocks of the model, L.
        option: The option that holds `chosen`, for messages.

    Raises:
        UserError: One is none of these, or outside the model.
    """
    found: set[int] = set()
    for layer in chosen:
        if layer == "all":
            found.update(range(n_layers))
        elif isinstance(layer, float) and 0 <= layer <= 1:
            found.add(math.floor(layer * (n_layers - 1)))
        elif isinstance(layer, int) and -n_layers <= layer < n_layers:
            found.add(layer % n_layers)
        else:
            raise UserError(
                f"Layer {layer!r} is out of range: the model has {n_layers} layers; {option} takes "
                f"0 to {n_layers - 1}, a share of the depth between 0.0 and 1.0, or all."
            )
    return sorted(found)


def slots(
    chosen: Sequence[int | float | str], sites: Sequence[Site], n_layers: int, option: str = "preprocessing.layers"
) -> list[Slot]:
    """Every chosen layer with every site, by layer and then by site."""
    order: tuple[Site, ...] = ("residual", "attention", "mlp")
    return [Slot(layer, site) for layer in layers(chosen, n_layers, option) for site in order if site in sites]
