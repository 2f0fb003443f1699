"""Token ids to text as they come, never half a character."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_UNKNOWN = "\ufffd"
_CONTEXT = 6


class TextStream:
    """Turns ids that follow a prompt into the characters that each completes.

    The pieces put together are what the ids add to the decoded prompt; special tokens add nothing. Some tokenizers
    (SentencePiece) drop a space at the start of a text, and decoding the new ids alone would lose it.

    Args:
        tokenizer: Its decoder need not be able to decode single tokens.
        prompt_ids: What went before.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = [int(i) for i in prompt_ids[-_CONTEXT:]]
        self._start, self._given = 0, len(self._ids)

    def push(self, token_id: int) -> str:
        """The characters that one more token completes; "" as long as the last is unfinished."""
        self._ids.append(token_id)
        piece = self._new_text()
        if not piece or piece.endswith(_UNKNOWN):
            return ""
        self._start, self._given = self._given, len(self._ids)
        return piece

    def rest(self) -> str:
        """What is held back, for the end of the text: a character that was never finished."""
        piece = self._new_text()
        self._start = self._given = len(self._ids)
        return piece

    def _new_text(self) -> str:
        before = self._decode(self._ids[self._start : self._given])
        return self._decode(self._ids[self._start :])[len(before.rstrip(_UNKNOWN)) :]

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text
