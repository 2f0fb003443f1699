"""What is known of one weight's change before its numbers are read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffing.models.weight_places import WeightPlace

Kind = Literal["lora", "dora", "loha", "lokr", "lora bias", "saved whole", "difference"]
Rows = Callable[[], Iterator[tuple[int, Tensor]]]


@dataclass(frozen=True, eq=False)
class Factors:
    """ΔW = scale · left · rightᵀ.

    Args:
        left_OR: One row for each row of ΔW.
        right_IR: One for each of its columns.
        scale: Such as alpha / r.
    """

    left_OR: Tensor
    right_IR: Tensor
    scale: float


@dataclass(frozen=True, eq=False)
class WeightChange:
    """A weight of the base and how it changes, in the orientation of the files; either by factors or by rows.

    Args:
        name: Of the weight, as the base's files call it.
        place: Where in the model it belongs.
        kind: How the change is stored.
        shape: Of what is compared.
        out_axis: The axis of the output: 0 of a linear layer, 1 of an embedding and of what is stored (in, out).
        factors: Reads the factors; None where the change is given by rows.
        rows: Reads ΔW in chunks of rows, float32, each with the number of its first row; None where factors are given.
        base: Reads the base's weight in the same way; None where it is not at hand.
        rank: Largest rank that the change can have by how it is stored; None: any.
        floor: Relative norm that rounding to the files' dtype alone gives, about; None of adapters.
    """

    name: str
    place: WeightPlace
    kind: Kind
    shape: tuple[int, ...]
    out_axis: int
    factors: Callable[[], Factors] | None = None
    rows: Rows | None = None
    base: Rows | None = None
    rank: int | None = None
    floor: float | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether it has a spectrum."""
        return len(self.shape) == 2 and min(self.shape) > 1

    @property
    def out_width(self) -> int:
        """Length of the module's output; of a vector its own."""
        return self.shape[self.out_axis] if len(self.shape) == 2 else self.shape[0] if self.shape else 1


@dataclass(frozen=True)
class LeftOut:
    """A tensor that is not compared.

    Args:
        name: As its file calls it.
        where: `base`, `finetuned` or `adapter`: whose file.
        reason: Why, as the rest of a sentence that begins with the tensor's name.
    """

    name: str
    where: str
    reason: str
