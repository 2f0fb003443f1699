"""Chats to tokens through the chat template, with masks for role and template."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from diffing.core.errors import UserError
from diffing.core.templates import TemplateRules
from diffing.data.layouts import Layout, Renderer, TemplateRefusal
from diffing.data.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("text", "system", "user", "assistant", "tool")


class Rendered(NamedTuple):
    """Tokens of a chat; `roles` are positions in `ROLES`; `is_template` marks what is no message's content.

    A token that holds characters of a content and of the template counts as content. Template tokens
    have the role of the turn they open or close.
    """

    ids: Int32[np.ndarray, " T"]
    roles: UInt8[np.ndarray, " T"]
    is_template: Bool[np.ndarray, " T"]


class Span(NamedTuple):
    """Characters `start` to `end` (exclusive) of the rendered text."""

    start: int
    end: int


def chat_template(tokenizer: "PreTrainedTokenizerBase", rules: TemplateRules, where: str, otherwise: str) -> str:
    """The template in force: the rules' own, else the tokenizer's.

    Args:
        tokenizer: May carry one template or several by name; `default` is then taken.
        rules: The model's rules.
        where: What needs the template, for the message.
        otherwise: What else the user can do, for the message.

    Raises:
        UserError: There is none, or the tokenizer cannot say where its tokens stand in the text.
    """
    own = tokenizer.chat_template
    template = rules.chat_template or (own.get("default") if isinstance(own, dict) else own)
    if not template:
        raise UserError(
            f"{where} holds chats and the tokenizer has no chat template; "
            f"give one with model.chat_template=FILE, or {otherwise}."
        )
    if not tokenizer.is_fast:
        raise UserError(
            f"{where} holds chats, which need a fast tokenizer; give one with model.tokenizer_id=ID, or {otherwise}."
        )
    return template


def render(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", rules: TemplateRules) -> Rendered:
    """Tokens of one chat through the chat template, no generation prompt.

    Raises:
        UserError: There is no template, or it refuses or alters the chat.
    """
    template = chat_template(tokenizer, rules, "The data", "leave chats out of data.datasets")
    return render_with(Renderer(tokenizer, template, rules), messages, "The chat")


def render_with(renderer: Renderer, messages: Sequence[Message], where: str) -> Rendered:
    """As `render`, for many chats of one template; `where` names the chat in messages."""
    roles = tuple(m.role for m in messages)
    contents = [m.content for m in messages]
    try:
        layout = renderer.layout(roles)
        text = renderer.text(roles, contents, layout.folds_system)
    except TemplateRefusal as refusal:
        raise UserError(
            f"{where} (roles {', '.join(roles)}) does not fit the chat template: {str(refusal).rstrip('.')}; "
            "mend it, or give another template with model.chat_template=FILE."
        ) from refusal
    in_order = [contents[i] for i in layout.order]
    spans = _spans_by_layout(text, layout.pieces, in_order) or _spans_by_search(text, layout.pieces, in_order)
    if spans is None:
        raise UserError(
            f"{where} cannot be traced through the chat template, which alters the text of a message; "
            "mend it, or give another template with model.chat_template=FILE."
        )
    return _tokens(renderer.tokenizer, text, layout, roles, spans)


def _stripped(content: str) -> list[str]:
    """The forms in which templates print a content, the longest first."""
    return [content, content.rstrip(), content.lstrip(), content.strip()]


def _spans_by_layout(text: str, pieces: Sequence[str], contents: Sequence[str]) -> list[Span] | None:
    """Spans of the contents when the text is exactly pieces and contents in turn."""
    spans, position = [], 0
    for i, content in enumerate(contents):
        start = position + len(pieces[i])
        after = pieces[i + 1]
        fits = (c for c in _stripped(content) if text.startswith(c + after, start))
        form = next(fits, None)
        if form is None or not text.startswith(pieces[i], position):
            return None
        position = start + len(form)
        spans.append(Span(start, position))
    return spans if text[position:] == pieces[-1] else None


def _spans_by_search(text: str, pieces: Sequence[str], contents: Sequence[str]) -> list[Span] | None:
    """Spans of the contents found one after the other, for templates whose own text depends on them.

    Template text that does stand where the layout has it is stepped over, lest a content be found in it.
    """
    spans, position = [], 0
    for piece, content in zip(pieces, contents, strict=False):
        position += len(piece) if text.startswith(piece, position) else 0
        found = [(text.find(c, position), -len(c)) for c in _stripped(content) if text.find(c, position) >= 0]
        if not found:
            return None
        start, negative_length = min(found)
        position = start - negative_length
        spans.append(Span(start, position))
    return spans


def _character_roles(
    text: str, layout: Layout, roles: Sequence[str], spans: Sequence[Span], bos: str
) -> UInt8[np.ndarray, " C"]:
    codes = [ROLES.index(roles[i]) for i in layout.order]
    out = np.empty(len(text), dtype=np.uint8)
    previous = 0
    for i, span in enumerate(spans):
        between = text[previous : span.start]
        closing = layout.closings[i - 1] if i else _before_first_turn(between, layout, bos)
        cut = previous + (len(closing) if between.startswith(closing) else 0)
        out[previous:cut] = codes[i - 1] if i else ROLES.index("system")
        out[cut : span.start] = codes[i + 1] if i == layout.shared else codes[i]
        out[span.start : span.end] = codes[i]
        previous = span.end
    out[previous:] = codes[-1]
    return out


def _before_first_turn(head: str, layout: Layout, bos: str) -> str:
    """A system prompt that the template adds by itself; empty when only the BOS token precedes the first turn."""
    if layout.opening is None or not head.endswith(layout.opening):
        return ""
    added = head.removesuffix(layout.opening)
    return added if added.removeprefix(bos).strip() else ""


def _tokens(
    tokenizer: "PreTrainedTokenizerBase", text: str, layout: Layout, roles: Sequence[str], spans: Sequence[Span]
) -> Rendered:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.array(encoded["input_ids"], dtype=np.int32)
    character_roles = _character_roles(text, layout, roles, spans, str(tokenizer.bos_token or ""))
    is_content = np.zeros(len(text), dtype=bool)
    for span in spans:
        is_content[span.start : span.end] = True
    starts, ends = _extents(encoded["offset_mapping"], len(text))
    next_content = np.append(np.where(is_content, np.arange(len(text)), len(text)), len(text))
    next_content = np.minimum.accumulate(next_content[::-1])[::-1]
    holds_content = next_content[starts] < ends
    at = np.where(holds_content, next_content[starts], starts)
    return Rendered(ids, character_roles[at], ~holds_content)


def _extents(offsets: Sequence[tuple[int, int]], n_characters: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each token, at least one character; some tokenizers give spaces no width."""
    pairs = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = pairs[:, 0].copy(), pairs[:, 1]
    previous = np.maximum.accumulate(np.append(0, ends))[:-1]
    empty = ends <= starts
    starts[empty] = previous[empty]
    starts = np.minimum(starts, n_characters - 1)
    return starts, np.maximum(ends, starts + 1)
