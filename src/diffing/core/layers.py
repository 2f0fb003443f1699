"""Layers by name: an index, a share of the depth, or all."""

import math
from collections.abc import Sequence

from diffing.core.errors import UserError


def layers(chosen: Sequence[int | float | str], n_layers: int) -> list[int]:
    """Block indices, ascending and without repetition.

    Args:
        chosen: Each an index (negative counts from the end), a float r in [0, 1] for block ⌊r·(L−1)⌋, or "all".
        n_layers: Blocks of the model, L.

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
                f"Layer {layer!r} is out of range: the model has {n_layers} layers; preprocessing.layers takes "
                f"0 to {n_layers - 1}, a share of the depth between 0.0 and 1.0, or all."
            )
    return sorted(found)
