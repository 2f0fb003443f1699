"""Options of `kl`."""

from pydantic import Field

from diffing.core.method import MethodConfig


class KLConfig(MethodConfig):
    """Options of the per-token divergence.

    Args:
        temperature: Divides both models' logits.
        top_k: Tokens kept per position among those whose probability rose, and fell, most.
        n_examples: Examples kept per dataset and ranking.
        context_before: Tokens shown before the peak of an example.
        context_after: Tokens shown after it.
        max_token_rows: Largest number of rows of `tokens.parquet`; whole sequences, evenly spread.
        max_positions: Positions listed in `positions.parquet`.
        noise_sequences: Sequences read in two batch shapes to measure the models' own noise.
    """

    name: str = "kl"
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=5, ge=1, le=100)
    n_examples: int = Field(default=20, ge=1)
    context_before: int = Field(default=48, ge=0)
    context_after: int = Field(default=24, ge=0)
    max_token_rows: int = Field(default=2_000_000, ge=1)
    max_positions: int = Field(default=512, ge=1)
    noise_sequences: int = Field(default=8, ge=0)
