"""What methods offer to someone who tries a pair out: values at each token of a text, and directions to steer along."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenValues:
    """One quantity at every token of a text, computed on the spot.

    Args:
        name: Term of the field, such as "KL".
        unit: Such as "nats"; "" for a pure number.
        values_T: One for each token; None where it is not defined or not finite.
        layer: The decoder block it speaks of; None when it speaks of the output.
        is_signed: Whether negative values mean the opposite of positive ones.
    """

    name: str
    unit: str
    values_T: tuple[float | None, ...]
    layer: int | None = None
    is_signed: bool = False


@dataclass(frozen=True)
class NamedVector:
    """A direction in the residual stream that a result offers for steering.

    Args:
        tensor: Name of the tensor in the result, shape (D,).
        label: What it is, for people.
        layer: The decoder block after which it was measured.
        norm: Its Euclidean length.
        note: How many tokens it rests on, and the like.
        maximum: The largest length along it that was seen, as of a latent at its largest activation; None: not known.
    """

    tensor: str
    label: str
    layer: int
    norm: float
    note: str = ""
    maximum: float | None = None
