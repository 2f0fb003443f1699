"""Tokens as people read them, and where each token stands in the decoded text."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

_UNKNOWN = "\ufffd"


@runtime_checkable
class Decoder(Protocol):
    """The part of a tokenizer that is used here."""

    def decode(self, token_ids: Any) -> Any:
        """Text of ids."""
        ...

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Vocabulary entry of one id."""
        ...


def token_string(tokenizer: Decoder, token_id: int) -> str:
    """One token with its leading space; a fragment of a character is shown as its vocabulary entry."""
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if piece is None:
        return f"<id {token_id}>"
    if "▁" in piece:
        return piece.replace("▁", " ")
    text = tokenizer.decode([token_id])
    return piece if not text or _UNKNOWN in text else text


def token_strings(tokenizer: Decoder, ids: Iterable[int]) -> dict[int, str]:
    """Strings of the distinct ids."""
    return {i: token_string(tokenizer, i) for i in sorted({int(i) for i in ids})}


def text_with_offsets(tokenizer: Decoder, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """Decoded text and each token's characters (start, end exclusive).

    A token that ends within a character is given no characters; the one that completes it has them.
    """
    ids = [int(i) for i in ids]
    text = tokenizer.decode(ids)
    ends = [_stable_length(tokenizer.decode(ids[: i + 1]), text) for i in range(len(ids))]
    if ends:
        ends[-1] = len(text)
    starts = [0, *ends[:-1]]
    return text, [(min(s, e), e) for s, e in zip(starts, ends, strict=True)]


def _stable_length(prefix: str, text: str) -> int:
    while prefix and not text.startswith(prefix):
        if not prefix.endswith(_UNKNOWN):
            return _common(prefix, text)
        prefix = prefix[:-1]
    return len(prefix)


def _common(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
