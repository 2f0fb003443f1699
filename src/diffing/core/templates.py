"""Chat template rules as plain data: which tokens end a turn, and whether the model thinks aloud."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TemplateRules:
    """What the toolkit must know of a model's chat format beyond the template itself.

    Args:
        chat_template: Jinja text that replaces the tokenizer's own, or None.
        end_of_turn: The token that ends a turn, where known.
        has_thinking: Whether the template accepts `enable_thinking`; it is then switched off.
    """

    chat_template: str | None = None
    end_of_turn: str | None = None
    has_thinking: bool = False
