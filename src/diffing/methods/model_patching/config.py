"""Options of `model_patching`."""

from typing import Any

from pydantic import Field, field_validator, model_validator

from diffing.core.method import MethodConfig


class ModelPatchingConfig(MethodConfig):
    """Options of patching at the first divergence.

    Args:
        n_prompts: Prompts of each dataset; documents are drawn at random.
        min_prompt_tokens: Shortest beginning of a text that is continued.
        max_prompt_tokens: Longest one; the length is drawn for each document.
        max_chat_tokens: Chats whose first reply begins later are left out.
        max_new_tokens: Tokens that each model writes after a prompt.
        n_layers: Blocks after which states are patched, spread evenly from the first to the last; None: all.
        layer: The block after which the headline cuts between upstream and late: an index, or a share of the depth.
    """

    name: str = "model_patching"
    n_prompts: int = Field(default=20, ge=1)
    min_prompt_tokens: int = Field(default=8, ge=1)
    max_prompt_tokens: int = Field(default=48, ge=1)
    max_chat_tokens: int = Field(default=128, ge=1)
    max_new_tokens: int = Field(default=24, ge=1)
    n_layers: int | None = Field(default=10, ge=1)
    layer: int | float = 0.5

    @field_validator("layer", mode="before")
    @classmethod
    def _is_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("true and false are no layers; write a number or a share of the depth")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> "ModelPatchingConfig":
        if self.min_prompt_tokens > self.max_prompt_tokens:
            raise ValueError(
                f"min_prompt_tokens={self.min_prompt_tokens} is above max_prompt_tokens={self.max_prompt_tokens}"
            )
        return self
