"""Which mean differences are steered with and tested: the largest beyond chance, each unlike those before."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffing.methods.activation_difference_lens.means import Means
from diffing.methods.activation_difference_lens.words import place_name

_ALIKE = 0.8


@dataclass(frozen=True, eq=False)
class Direction:
    """A mean difference.

    Args:
        where: (layer, dataset, kind, position) as tables name it.
        unit_D: δ̄/‖δ̄‖, float64.
    """

    where: tuple[int, str, str, int]
    unit_D: Tensor

    @property
    def name(self) -> str:
        """How evidence calls it."""
        layer, dataset, kind, position = self.where
        return f"{dataset} {place_name(kind, position)} · layer {layer}"


def directions(means: Means, layer: int, ranked: Sequence[int], n: int) -> list[Direction]:
    """At most n, each with an absolute cosine of at most 0.8 with those before; of a dataset the largest goes first."""
    size_P, norm_P = means.beyond_PL[:, layer], means.norm_PL[:, layer]
    order = sorted((p for p in ranked if norm_P[p] > 0), key=lambda p: (-size_P[p], -means.relative_PL[p, layer], p))
    best = {means.places[p].dataset: p for p in reversed(order)}
    first = [p for p in order if p in best.values()]
    found: list[Direction] = []
    for p in [*first, *(p for p in order if p not in first)]:
        place = means.places[p]
        unit_D = torch.from_numpy(means.delta_PLD[p, layer] / norm_P[p])
        if len(found) < n and all(abs(float(unit_D @ d.unit_D)) <= _ALIKE for d in found):
            found.append(Direction((means.layers[layer], place.dataset, place.kind, place.position), unit_D))
    return found
