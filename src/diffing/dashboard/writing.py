"""Texts that several models write at once, a token of each in turn, so that all are seen to grow."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffing.models.generation import GeneratedToken
    from diffing.models.pair import ModelPair

_REDRAW_SECONDS = 0.08


@dataclass
class Writing:
    """A text on its way; what is there stays when the page is stopped or reloaded.

    Args:
        text: So far.
        n_tokens: Tokens so far.
        log_prob: Sum of their log-probabilities, nats.
        has_ended: The model ended it, or its length did.
        is_answer: It begins a turn: white space before its first word is none of its own.
    """

    text: str = ""
    n_tokens: int = 0
    log_prob: float = 0.0
    has_ended: bool = False
    is_answer: bool = False
    _drawn: float = field(default=0.0, repr=False)

    def add(self, token: "GeneratedToken") -> None:
        """One more token."""
        self.text += token.text.lstrip() if self.is_answer and not self.text else token.text
        self.n_tokens += 1
        self.log_prob += token.log_prob


def write_together(
    streams: Mapping[str, Iterator["GeneratedToken"]],
    into: Mapping[str, Writing],
    draw: Callable[[str, Writing], object],
) -> None:
    """Advance the streams in turn until all have ended; `draw` is called as each text grows, not at every token."""
    going = dict(streams)
    try:
        while going:
            for name in list(going):
                writing = into[name]
                token = next(going[name], None)
                if token is None:
                    del going[name]
                    writing.has_ended = True
                else:
                    writing.add(token)
                now = time.monotonic()
                if token is None or now - writing._drawn > _REDRAW_SECONDS:
                    writing._drawn = now
                    draw(name, writing)
    finally:
        for stream in streams.values():
            close = getattr(stream, "close", None)
            if close is not None:
                close()


def prompt_of(pair: "ModelPair", side: str, kind: str, messages: Sequence[tuple[str, str]]) -> list[int]:
    """Token ids of a prompt for one side of a pair.

    Args:
        pair: The pair.
        side: `base` or `finetuned`; each reads its own vocabulary.
        kind: `chat` (through the chat template) or `plain text` (contents one after the other).
        messages: Role and content of each turn.

    Raises:
        UserError: There is no template, or it refuses the chat; or the prompt is empty.
    """
    from diffing.data.messages import Message
    from diffing.data.prompts import prompt_ids, raw_prompt_ids

    tokenizer = pair.base.tokenizer if side == "base" else pair.finetuned.tokenizer
    if kind == "chat":
        return prompt_ids([Message(role, content) for role, content in messages], tokenizer, pair.rules)
    return raw_prompt_ids("".join(content for _, content in messages), tokenizer)
