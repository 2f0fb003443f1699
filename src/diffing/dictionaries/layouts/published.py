"""A dictionary that was opened from a layout, and what is known of it."""

from dataclasses import dataclass

from diffing.dictionaries.dictionary import Dictionary


@dataclass(frozen=True)
class Facts:
    """What a layout's config tells; None where it is silent.

    Args:
        model: Name of the model that it was trained on.
        hook: Where in the model, in the words of its library.
        layer: Number of the layer, from 0.
        kind: What its library calls it: an architecture or a class.
        k: Active latents per token that training aimed at.
        normalisation: What is done to raw activations before the encoder, and undone after the decoder.
    """

    model: str | None = None
    hook: str | None = None
    layer: int | None = None
    kind: str | None = None
    k: float | None = None
    normalisation: str = "none"


@dataclass(frozen=True, eq=False)
class Published:
    """A dictionary that gives what its own library gives: raw activations in, raw reconstruction out.

    Args:
        dictionary: The module, in float32 on the CPU.
        layout: Which layout it lay in.
        facts: From its config.
        notes: Sentences on what is not as in its library, or not sure.
    """

    dictionary: Dictionary
    layout: str
    facts: Facts
    notes: tuple[str, ...] = ()
