"""Options of `crosscoder`."""

from typing import Literal

from pydantic import Field

from diffing.analysis.latents.config import DictionaryConfig


class CrosscoderConfig(DictionaryConfig):
    """Options of the crosscoder: those of `DictionaryConfig`, and its variants.

    Args:
        norm: How activations are scaled before training: `per_model` brings each model to mean square 1, `shared` both
            by one factor; relative decoder norms depend on it.
        n_shared: Designated shared latents, whose decoder row is the same for both models; 0: none.
        shared_ratio: By which the score of these is divided before selection.
        n_dedicated: Latents that are the base's alone, and as many that are the finetuned model's alone; 0: none.
    """

    name: str = "crosscoder"
    norm: Literal["per_model", "shared"] = "per_model"
    n_shared: int = Field(default=0, ge=0)
    shared_ratio: float = Field(default=0.15, gt=0, le=1)
    n_dedicated: int = Field(default=0, ge=0)
