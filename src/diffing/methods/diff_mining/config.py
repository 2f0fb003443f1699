"""Options of `diff_mining`."""

from pydantic import Field, field_validator

from diffing.core.method import MethodConfig


class DiffMiningConfig(MethodConfig):
    """Options of counting which tokens the finetuned model prefers.

    Args:
        top_k: Tokens counted at each position: the K with the largest D, and the K with the smallest.
        floor: Added to both models' probabilities before their ratio is taken, so that D of tokens which neither model
            expects is near 0; 0: the plain log-ratio.
        layer: Where predictions are read: None: the output; else a block (a number, or a share of the depth), whose
            residual stream each model's own final norm and head read.
        null_runs: Folders of finished `diff_mining` runs of other finetuned models of the same base, or of a null pair,
            on the same text: what occurs there too is taken off in the order `z`.
        n_listed: Tokens listed for each order, dataset and kind.
        n_examples: Documents kept per dataset, by their position with the largest mean D of its K.
        context_before: Tokens shown before the peak of an example.
        context_after: Tokens shown after it.
        n_topics: Topics that the positions are divided into; 0: none.
        max_topic_positions: Positions that topics are made from, drawn at random.
    """

    name: str = "diff_mining"
    top_k: int = Field(default=100, ge=1, le=10_000)
    floor: float = Field(default=3e-7, ge=0, lt=1)
    layer: int | float | None = None
    null_runs: tuple[str, ...] = ()
    n_listed: int = Field(default=500, ge=1)
    n_examples: int = Field(default=20, ge=1)
    context_before: int = Field(default=32, ge=0)
    context_after: int = Field(default=16, ge=0)
    n_topics: int = Field(default=8, ge=0, le=200)
    max_topic_positions: int = Field(default=20_000, ge=1)

    @field_validator("layer", mode="before")
    @classmethod
    def _a_layer(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError("true and false are no layers; write a number, a share of the depth, or null")
        return value

    @field_validator("null_runs", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return () if value is None else (value,) if isinstance(value, str) else value
