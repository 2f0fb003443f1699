"""Options of `normdiff`, and the activations they ask for."""

from pydantic import Field, field_validator

from diffing.core.layers import Layers, Site, listed
from diffing.core.method import MethodConfig, Needs

_SPREAD: Layers = (0.0, 0.25, 0.5, 0.75, 1.0)


class NormDiffConfig(MethodConfig):
    """Options of the activation differences.

    Args:
        layers: Layers to compare. None: all when activations are read live, and from disk five spread over the depth
            besides `preprocessing.layers`.
        sites: Where in a layer; None: `preprocessing.sites`.
        example_layer: Layer of the token ranking, the examples and the headline; None: the one with the largest mean
            relative difference.
        n_examples: Examples kept per dataset and ranking.
        context_before: Tokens shown before the peak of an example.
        context_after: Tokens shown after it.
        max_token_rows: Largest number of rows of `tokens.parquet`; whole sequences, evenly spread.
        max_positions: Positions listed in `positions.parquet`.
        n_vector_positions: Leading positions whose mean difference is saved.
        max_template_tokens: Template tokens, the most frequent first, whose mean difference is saved and listed.
    """

    name: str = "normdiff"
    layers: Layers | None = Field(default=None, min_length=1)
    sites: tuple[Site, ...] | None = Field(default=None, min_length=1)
    example_layer: int | None = None
    n_examples: int = Field(default=20, ge=1)
    context_before: int = Field(default=48, ge=0)
    context_after: int = Field(default=24, ge=0)
    max_token_rows: int = Field(default=2_000_000, ge=1)
    max_positions: int = Field(default=64, ge=1)
    n_vector_positions: int = Field(default=5, ge=0)
    max_template_tokens: int = Field(default=24, ge=0)

    @field_validator("layers", "sites", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return listed(value)


def needs(config: NormDiffConfig) -> Needs:
    """The activations that `config` asks for."""
    if config.layers is not None:
        return Needs(config.layers, config.layers, config.sites, option="diffing.method.layers")
    return Needs(_SPREAD, ("all",), config.sites, with_preprocessing_layers=True, option="diffing.method.layers")
