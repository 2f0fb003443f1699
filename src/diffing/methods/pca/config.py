"""Options of `pca`, and the activations they ask for."""

from typing import Literal

from pydantic import Field, field_validator

from diffing.core.layers import Layers, Site, listed
from diffing.core.method import MethodConfig, Needs

Target = Literal["delta", "base", "finetuned"]
Centring = Literal["centred", "uncentred"]
CENTRINGS: tuple[Centring, ...] = ("centred", "uncentred")


class PcaConfig(MethodConfig):
    """Options of the principal components.

    Args:
        layers: Layers to decompose; None: `preprocessing.layers`.
        sites: Where in a layer; None: `preprocessing.sites`.
        of: What is decomposed: `delta` (finetuned − base), `base`, `finetuned`; examples and token ranking are of the
            first.
        example_layer: Layer of the token ranking, the examples by document and the headline; None: the one with the
            largest mean squared difference relative to the base's mean squared norm.
        outlier_norm: Tokens whose norm is more than so many times the median are left out (attention sinks beyond the
            first positions); None: none are.
        n_components: Components that get read-outs, examples and a vector; spectra are whole.
        n_null_draws: Draws of the null spectrum.
        max_null_tokens: Tokens that the null is drawn from; whole documents, at random.
        n_lens_tokens: Tokens read from each direction through the final norm and head; 0: none, the models are not
            loaded for it.
        n_examples: Documents kept for each end of a component, and by dataset for the token ranking's subspace.
        context_before: Tokens shown before the peak of an example.
        context_after: Tokens shown after it.
    """

    name: str = "pca"
    layers: Layers | None = Field(default=None, min_length=1)
    sites: tuple[Site, ...] | None = Field(default=None, min_length=1)
    of: tuple[Target, ...] = Field(default=("delta",), min_length=1)
    example_layer: int | None = None
    outlier_norm: float | None = Field(default=10, gt=1)
    n_components: int = Field(default=10, ge=1)
    n_null_draws: int = Field(default=20, ge=2)
    max_null_tokens: int = Field(default=16_384, ge=1)
    n_lens_tokens: int = Field(default=12, ge=0)
    n_examples: int = Field(default=8, ge=1)
    context_before: int = Field(default=32, ge=0)
    context_after: int = Field(default=16, ge=0)

    @field_validator("layers", "sites", "of", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return listed(value)

    @field_validator("of")
    @classmethod
    def _once(cls, value: tuple[Target, ...]) -> tuple[Target, ...]:
        return tuple(dict.fromkeys(value))


def needs(config: PcaConfig) -> Needs:
    """The activations that `config` asks for."""
    return Needs(config.layers, config.layers, config.sites, option="diffing.method.layers")
