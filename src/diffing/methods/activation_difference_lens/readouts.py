"""What the means say through the final norm and head: δ̄ and f̄ by the finetuned model, b̄ by the base."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.analysis.lenses import has_lens, logit_lens
from diffing.analysis.token_text import token_strings
from diffing.methods.activation_difference_lens.means import Means
from diffing.methods.activation_difference_lens.places import Place
from diffing.methods.activation_difference_lens.results import ReadoutRow
from diffing.models.pair import ModelHandle, ModelPair

ENDS = (("positive", 1.0), ("negative", -1.0))
_SIDES = ("base", "finetuned")
# Documents that begin alike differ by rounding alone, which is no null.
_ROUNDING = 1e-4


@dataclass(frozen=True, eq=False)
class Vector:
    """A mean at a place.

    Args:
        layer: Index into the layers.
        place: Index into the places.
        of: delta, base, finetuned, or null (with its `draw`).
        vector_D: The mean, float64; never zero.
        draw: Number of the null's draw.
    """

    layer: int
    place: int
    of: str
    vector_D: Tensor
    draw: int = 0


def vectors_of(means: Means, layer: int, ranked: Sequence[int]) -> list[Vector]:
    """All means of a layer that are not zero: δ̄, b̄, f̄ at every place, and the null's at ranked ones."""
    found = []
    for of, mean_PLD in (("delta", means.delta_PLD), ("base", means.base_PLD), ("finetuned", means.finetuned_PLD)):
        found += [Vector(layer, p, of, _tensor(mean_PLD[p, layer])) for p in range(len(means.places))]
    found = [v for v in found if float(v.vector_D.norm()) > 0]
    for draw, mean_PLD in enumerate(means.null_RPLD):
        nulls = [Vector(layer, p, "null", _tensor(mean_PLD[p, layer]), draw) for p in ranked]
        found += [v for v in nulls if float(v.vector_D.norm()) > _ROUNDING * means.norms["base"][v.place, layer]]
    return found


def _tensor(vector_D: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(vector_D))


def reader_of(pair: ModelPair, of: str) -> ModelHandle:
    """The model whose final norm and head read a mean."""
    return pair.base if of == "base" else pair.finetuned


def unread(pair: ModelPair) -> list[str]:
    """A sentence for each model that no vector can be read with."""
    handles = dict(zip(_SIDES, (pair.base, pair.finetuned), strict=True))
    return [
        f"The {name} model's read-out could not be verified; no tokens are read through its final norm and head."
        for name, handle in handles.items()
        if not has_lens(handle)
    ]


def lens_rows(pair: ModelPair, means: Means, vectors: Iterable[Vector], k: int) -> list[ReadoutRow]:
    """Tokens read from δ̄, b̄ and f̄, and from their negatives."""
    rows: list[ReadoutRow] = []
    shown = [v for v in vectors if v.of != "null" and has_lens(reader_of(pair, v.of))] if k else []
    for vector in shown:
        handle = reader_of(pair, vector.of)
        both_2D = torch.stack([sign * at_mean_square_one(vector.vector_D) for _, sign in ENDS])
        found = logit_lens(handle, both_2D, k)
        names = token_strings(handle.tokenizer, np.unique(found.ids_NK).tolist())
        where = place_of(means, vector)
        for i, (end, _) in enumerate(ENDS):
            read = zip(found.ids_NK[i].tolist(), found.probabilities_NK[i].tolist(), strict=True)
            rows += [ReadoutRow(*where, vector.of, end, rank, t, names[t], p) for rank, (t, p) in enumerate(read)]
    return rows


def at_mean_square_one(vector_D: Tensor) -> Tensor:
    """The vector at the size at which a norm's ε does not matter, float32."""
    return (vector_D * (len(vector_D) ** 0.5 / vector_D.norm())).float()


def place_of(means: Means, vector: Vector) -> tuple[int, str, str, int]:
    """(layer, dataset, kind, position) as tables name them."""
    place: Place = means.places[vector.place]
    return means.layers[vector.layer], place.dataset, place.kind, place.position
