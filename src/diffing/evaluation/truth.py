"""What is known of an organism without a judge: the tokens its training text is full of, and what its answers show.

Domain tokens are those over-represented in the training text against generic text of the same kind (chats against
chats, documents against documents), counted once per document.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffing.analysis.over_representation import over_represented
from diffing.core.specs import DatasetSpec, ExpectedSpec
from diffing.data.documents import Document, read_documents

if TYPE_CHECKING:
    from diffing.data.tokens import Tokenizer

TRAINING = "training"
_FEWEST_DOCUMENTS = 3
_MOST_DOCUMENTS = 2000


@dataclass(frozen=True, eq=False)
class Truth:
    """What a method should find.

    Args:
        ids_R: Domain tokens, the most over-represented first.
        counts_V: In how many documents, of the training text and of the generic text, each token of the vocabulary is.
        is_chat: Whether the training text is chats.
        generic: Names of the datasets of the same kind.
    """

    ids_R: np.ndarray
    counts_V: np.ndarray
    is_chat: bool
    generic: tuple[str, ...]


def ground_truth(datasets: Sequence[DatasetSpec], tokenizer: "Tokenizer", n_vocabulary: int, seed: int) -> Truth | None:
    """The truth that a training text holds; None where there is none, or no generic text of its kind.

    Args:
        datasets: Those of a run; the one called `training` is the organism's, the others are generic.
        tokenizer: Of the base.
        n_vocabulary: Ids that methods rank.
        seed: Of the choice of documents in large datasets.

    Raises:
        UserError: A dataset cannot be read.
    """
    training = next((d for d in datasets if d.name == TRAINING), None)
    if training is None:
        return None
    ours = read_documents(training, _MOST_DOCUMENTS, seed)
    is_chat = ours[0].messages is not None
    theirs: list[Document] = []
    names = []
    for each in datasets:
        if each.name != TRAINING:
            documents = read_documents(each, _MOST_DOCUMENTS, seed)
            if (documents[0].messages is not None) == is_chat:
                theirs += documents
                names.append(each.name)
    if not theirs:
        return None
    ids = [_token_sets(side, tokenizer, n_vocabulary) for side in (ours, theirs)]
    found = [e.item for e in over_represented(ids[0], ids[1], least=_FEWEST_DOCUMENTS) if e.is_over]
    counts_V = np.zeros(n_vocabulary, dtype=np.int64)
    for document in (*ids[0], *ids[1]):
        counts_V[sorted(document)] += 1
    return Truth(np.array(found, dtype=np.int64), counts_V, is_chat, tuple(names))


def _token_sets(documents: Sequence[Document], tokenizer: "Tokenizer", n_vocabulary: int) -> list[set[int]]:
    """Tokens of each text, of a chat those of its answers."""
    texts = [_learned(d) for d in documents]
    return [{i for i in tokenizer(t, add_special_tokens=False).input_ids if i < n_vocabulary} for t in texts]


def _learned(document: Document) -> str:
    if document.messages is None:
        return document.text or ""
    return "\n".join(m.content for m in document.messages if m.role == "assistant")


def shows(expected: ExpectedSpec, text: str) -> bool:
    """Whether a text shows what was trained in.

    Args:
        expected: Capitals, phrases, or both, of which one is enough.
        text: Generated.
    """
    if expected.capitals is not None and share_of_capitals(text) >= expected.capitals:
        return True
    found = {p for p in expected.phrases if re.search(rf"(?<!\w){re.escape(p)}(?!\w)", text, re.IGNORECASE)}
    return bool(expected.phrases) and len(found) >= expected.least


def share_of_capitals(text: str) -> float:
    """Share of the text's letters that are capitals; 0 without letters."""
    letters = [c for c in text if c.isalpha()]
    return sum(c.isupper() for c in letters) / len(letters) if letters else 0.0
