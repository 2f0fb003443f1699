"""Options of `activation_difference_lens`."""

from typing import Literal

from pydantic import Field, PositiveFloat, field_validator

from diffing.core.layers import Layers, listed
from diffing.core.method import MethodConfig
from diffing.data.prefills import EMBEDDED, prefill_digest

Side = Literal["finetuned", "base"]


class LensConfig(MethodConfig):
    """Options of the activation difference lens.

    Args:
        layers: Blocks whose mean differences are read by patchscope, steered with and tested.
        lens_layers: Blocks besides, whose means are read through the final norm and head alone; all in one pass.
        n_positions: Leading positions, from 0, whose means are taken.
        n_before_reply: Of chats, tokens before the first reply whose means are taken.
        n_null_draws: Draws of the null: difference of the base's means over two random halves of the documents.
        n_lens_tokens: Tokens read from each vector through the final norm and head; 0: none.
        n_patchscope_tokens: Tokens that a patchscope keeps of each vector; 0: no patchscope.
        patchscope_model: The model that the patchscope runs.
        scales: Lengths that the patchscope tries, in units of the finetuned stream's mean norm.
        n_random_directions: Random directions that a scale's coherence is compared with.
        n_directions: Mean differences of each layer that are steered with and tested for their effect.
        steered_model: The model that writes the steered texts.
        strengths: Lengths that steering tries, in units of the finetuned stream's mean norm; empty: no steering.
        prompts: What the steered texts begin with: `embedded`, or a file of prompts.
        n_prompts: Prompts taken from them, spread evenly.
        n_unsteered: Texts without steering for each prompt, from which the limits of coherence are taken.
        max_new_tokens: Tokens of a steered text.
        temperature: Of the texts' sampling; 0 takes the likeliest token always.
        causal_tokens: Tokens of each dataset on which the causal effect is measured; 0: none.
        n_causal_controls: Random directions beside it.
    """

    name: str = "activation_difference_lens"
    layers: Layers = Field(default=(0.5,), min_length=1)
    lens_layers: Layers = (1.0,)
    n_positions: int = Field(default=5, ge=1, le=256)
    n_before_reply: int = Field(default=5, ge=0, le=256)
    n_null_draws: int = Field(default=4, ge=1)
    n_lens_tokens: int = Field(default=20, ge=0)
    n_patchscope_tokens: int = Field(default=20, ge=0)
    patchscope_model: Side = "finetuned"
    scales: tuple[PositiveFloat, ...] = Field(default=(0.5, 0.7, 1.0, 1.4, 2.0), min_length=1)
    n_random_directions: int = Field(default=16, ge=1)
    n_directions: int = Field(default=2, ge=0)
    steered_model: Side = "finetuned"
    strengths: tuple[PositiveFloat, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    prompts: str = EMBEDDED
    n_prompts: int = Field(default=6, ge=1)
    n_unsteered: int = Field(default=4, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    causal_tokens: int = Field(default=512, ge=0)
    n_causal_controls: int = Field(default=3, ge=1)

    @field_validator("layers", "lens_layers", "scales", "strengths", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return listed(value)

    @field_validator("scales", "strengths")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(value)))


def inputs(config: LensConfig) -> dict[str, str]:
    """Digest of the prompts that steered texts begin with.

    Raises:
        UserError: Their file cannot be found.
    """
    return {"prompts": prefill_digest(config.prompts)}
