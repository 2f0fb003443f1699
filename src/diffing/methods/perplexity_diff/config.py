"""Options of `perplexity_diff`."""

from typing import Literal

from pydantic import Field

from diffing.core.method import MethodConfig


class PerplexityDiffConfig(MethodConfig):
    """Options of the perplexity difference.

    Args:
        n_texts: Texts that each model writes per dataset.
        max_new_tokens: Tokens of a text, unless it ends before.
        prefill_tokens: First tokens of a document that a text goes on from; in chats, all up to the first answer.
        datasets: Datasets whose beginnings are used; those that the data lacks are passed over, and where it has none
            of them all that it has are used.
        temperature: Divides the logits while writing; scores are of the models as they are.
        sampler: `own`, or `vllm` (for large models on an accelerator; needs the extra of that name).
    """

    name: str = "perplexity_diff"
    n_texts: int = Field(default=32, ge=1)
    max_new_tokens: int = Field(default=48, ge=1)
    prefill_tokens: int = Field(default=4, ge=0)
    datasets: tuple[str, ...] = ("pretraining", "chat")
    temperature: float = Field(default=1.0, gt=0)
    sampler: Literal["own", "vllm"] = "own"
