"""All weights with their numbers, in the order in which tables number them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from diffing.core.seeds import generator
from diffing.methods.weight_spectrum.measure import Measured
from diffing.methods.weight_spectrum.null import RandomChange, random_factors, random_matrix
from diffing.models.changed_weight import WeightChange

MOST_VECTORS = 1024


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight.

    Args:
        unit: Its number in the tables.
        change: Where it is and how it is stored.
        measured: Its numbers.
        writes: Whether its output is added to the residual stream.
        null: What a random change would give; None where none is meaningful.
    """

    unit: int
    change: WeightChange
    measured: Measured
    writes: bool
    null: RandomChange | None

    @property
    def norm(self) -> float:
        """‖ΔW‖."""
        return self.measured.square**0.5

    @property
    def n_numbers(self) -> int:
        """Entries of the weight."""
        return int(np.prod(self.change.shape, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Vector:
    """An output vector of a matrix that writes into the residual stream.

    Args:
        weight: Whose.
        index: From 0.
        vector_D: Of length 1, float32.
    """

    weight: Weight
    index: int
    vector_D: np.ndarray

    @property
    def singular_value(self) -> float:
        """σ."""
        return float(self.weight.measured.values_K[self.index])

    @property
    def tensor(self) -> str:
        """Its name in the result."""
        place = self.weight.change.place
        where = "outside" if place.layer is None else f"layer_{place.layer:02d}"
        return f"{where}/{place.module}/left_{self.index + 1}"


@dataclass(frozen=True, eq=False)
class Gathered:
    """All weights."""

    weights: tuple[Weight, ...]

    @cached_property
    def square(self) -> float:
        """‖ΔW‖² of all weights."""
        return sum(w.measured.square for w in self.weights)

    @cached_property
    def vectors(self) -> tuple[Vector, ...]:
        """Output vectors that were kept; of very many (experts) those of the largest singular values."""
        found = list(self._vectors())
        kept = sorted(range(len(found)), key=lambda i: -found[i].singular_value)[:MOST_VECTORS]
        return tuple(found[i] for i in sorted(kept))

    def _vectors(self) -> Iterator[Vector]:
        for weight in self.weights:
            kept = weight.measured.vectors_KD
            for i in range(0 if kept is None else len(kept)):
                assert kept is not None
                yield Vector(weight, i, kept[i])


def null_of(change: WeightChange, measured: Measured, seed: int) -> RandomChange | None:
    """A random change of the same shape and rank; None where nothing changed or the kind has no plain counterpart."""
    if not change.is_matrix or not measured.square > 0:
        return None
    shape = (change.shape[0], change.shape[1])
    if change.kind == "lora":
        assert change.rank is not None
        return random_factors(
            shape, change.rank, generator(seed, "weight_spectrum", "null", *sorted(shape), change.rank)
        )
    return random_matrix(shape) if change.kind in ("difference", "saved whole") else None
