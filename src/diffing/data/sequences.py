"""One document to one token sequence with its masks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from diffing.core.templates import TemplateRules
from diffing.data.chats import chat_template, render_with
from diffing.data.documents import Document
from diffing.data.layouts import Renderer
from diffing.data.rows import leave_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 64
CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """Tokens of one document and what each is; `roles` are positions in `ROLES`, `index` the document's row."""

    dataset: str
    index: int
    ids: Int32[np.ndarray, " T"]
    roles: UInt8[np.ndarray, " T"]
    is_template: Bool[np.ndarray, " T"]
    is_special: Bool[np.ndarray, " T"]


class SequenceMaker:
    """Turns documents of the dataset `name` into sequences of at most `max_length` tokens."""

    def __init__(self, name: str, tokenizer: "PreTrainedTokenizerBase", rules: TemplateRules, max_length: int) -> None:
        self._name, self._tokenizer, self._rules, self._max_length = name, tokenizer, rules, max_length
        added = tokenizer.added_tokens_decoder.items()
        self._special_ids = sorted({*tokenizer.all_special_ids, *(i for i, t in added if t.special)})
        self._renderer: Renderer | None = None

    def sequences(self, documents: Iterable[Document]) -> Iterator[TokenSequence]:
        """The sequence of each document; reads `documents` little more than it yields."""
        documents = iter(documents)
        while chunk := list(islice(documents, CHUNK)):
            ids_of_texts = iter(self._encode([d.text for d in chunk if d.text is not None]))
            for document in chunk:
                yield self._chat(document) if document.text is None else self._text(document, next(ids_of_texts))

    def folds_system(self, document: Document) -> bool:
        """Whether the template takes no system role, so that this chat's stands in its first user message."""
        roles = tuple(m.role for m in document.messages or ())
        return bool(roles) and self._chat_renderer().layout(roles).folds_system

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Ids with the tokenizer's own special tokens; of a long text only as much as the limit needs."""
        if not texts:
            return []
        limit = self._max_length * CHARACTERS_PER_TOKEN
        ids = self._tokenizer([t[:limit] for t in texts], verbose=False)["input_ids"]
        for i, text in enumerate(texts):
            # The last tokens before a cut may differ from those of the whole text: have a margin, or take the whole.
            if len(text) > limit and len(ids[i]) < self._max_length + CHARACTERS_PER_TOKEN:
                ids[i] = self._tokenizer(text, verbose=False)["input_ids"]
        return ids

    def _text(self, document: Document, ids: list[int]) -> TokenSequence:
        ids_T = np.array(ids[: self._max_length], dtype=np.int32)
        roles_T = np.zeros(len(ids_T), dtype=np.uint8)
        return self._sequence(document, ids_T, roles_T, np.zeros(len(ids_T), dtype=bool))

    def _chat(self, document: Document) -> TokenSequence:
        where = f"Chat {document.index} of dataset {self._name!r}"
        rendered = render_with(self._chat_renderer(), document.messages or (), where)
        return self._sequence(document, *(a[: self._max_length] for a in rendered))

    def _sequence(
        self,
        document: Document,
        ids: Int32[np.ndarray, " T"],
        roles: UInt8[np.ndarray, " T"],
        is_template: Bool[np.ndarray, " T"],
    ) -> TokenSequence:
        is_special = np.isin(ids, self._special_ids)
        return TokenSequence(document.dataset, document.index, ids, roles, is_template, is_special)

    def _chat_renderer(self) -> Renderer:
        if self._renderer is None:
            otherwise = f"leave the set out with {leave_out(self._name)}"
            template = chat_template(self._tokenizer, self._rules, f"Dataset {self._name!r}", otherwise)
            self._renderer = Renderer(self._tokenizer, template, self._rules)
        return self._renderer
