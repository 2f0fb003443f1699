"""Prompts to tokens: a chat up to where the model's answer begins, or plain text to be continued."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffing.core.errors import UserError
from diffing.core.templates import TemplateRules
from diffing.data.chats import chat_template
from diffing.data.layouts import Renderer, TemplateRefusal
from diffing.data.messages import Message, check_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_ids(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", rules: TemplateRules) -> list[int]:
    """Token ids of a chat through the chat template, up to where the model writes.

    After a user, system or tool message the template opens the assistant's turn, thinking switched off. An
    assistant message at the end is the beginning of the answer and is left open; an empty one counts as none.

    Args:
        messages: The chat.
        tokenizer: The model's.
        rules: The model's chat template rules.

    Raises:
        UserError: There is no message or no template, or the template refuses the chat or alters the beginning of
            the answer.
    """
    turns = list(messages)
    if turns and turns[-1].role == "assistant" and not turns[-1].content:
        turns.pop()
    if not turns:
        raise UserError("The prompt holds no message; write one.")
    for i, message in enumerate(turns):
        check_text(message.content, f"Message {i + 1} of the prompt", "write it anew")
    template = chat_template(tokenizer, rules, "The prompt", "give a plain text to be continued")
    renderer = Renderer(tokenizer, template, rules)
    try:
        text = _begun(renderer, turns) if turns[-1].role == "assistant" else _opened(renderer, turns)
    except TemplateRefusal as refusal:
        raise UserError(
            f"The prompt (roles {', '.join(m.role for m in turns)}) does not fit the chat template: "
            f"{str(refusal).rstrip('.')}; mend it, or give another template with model.chat_template=FILE."
        ) from refusal
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def raw_prompt_ids(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of a text to be continued, with the special tokens that the tokenizer puts in front.

    An end token that the tokenizer appends is left out: nothing would follow it.

    Args:
        text: May be empty where the tokenizer has a BOS token.
        tokenizer: The model's.

    Raises:
        UserError: There would be no token at all.
    """
    check_text(text, "The prompt", "write it anew")
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    bare = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    is_appended = ids[-len(bare) :] != bare if bare else ids != [tokenizer.bos_token_id]
    if ids[-1:] == [tokenizer.eos_token_id] and is_appended:
        ids.pop()
    if not ids and isinstance(tokenizer.bos_token_id, int):
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise UserError("The prompt is empty, and the tokenizer has no token that begins a text; write something.")
    return ids


def _opened(renderer: Renderer, messages: Sequence[Message]) -> str:
    """The chat and the opening of the assistant's turn."""
    roles, contents = tuple(m.role for m in messages), [m.content for m in messages]
    return renderer.text(roles, contents, renderer.layout(roles).folds_system, generation_prompt=True)


def _begun(renderer: Renderer, messages: Sequence[Message]) -> str:
    """The chat without what closes its last turn; white space at the end, which templates trim, is put back."""
    roles, contents = tuple(m.role for m in messages), [m.content for m in messages]
    layout = renderer.layout(roles)
    text = renderer.text(roles, contents, layout.folds_system)
    begun, closing = contents[-1], layout.pieces[-1]
    if layout.order[-1] == len(roles) - 1 and text.endswith(closing):
        head = text.removesuffix(closing)
        if head.endswith(begun.lstrip()):
            return head
        if head.endswith(begun.strip()):
            return head + begun[len(begun.rstrip()) :]
    raise UserError(
        "The chat template alters the beginning of the answer, so that it cannot be continued; "
        "end the prompt with a user message."
    )
