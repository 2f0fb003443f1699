"""What both models continue: beginnings of texts, and chats up to the first reply."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from diffing.core.errors import UserError
from diffing.core.seeds import generator
from diffing.data.tokens import ROLES, Corpus, TokenSequence
from diffing.methods.model_patching.config import ModelPatchingConfig

_ASSISTANT = ROLES.index("assistant")
_TEXT = ROLES.index("text")


@dataclass(frozen=True)
class Opening:
    """A prompt.

    Args:
        dataset: Name of its dataset.
        document: Row of its document in the dataset.
        ids: Its tokens.
    """

    dataset: str
    document: int
    ids: tuple[int, ...]


def choose_openings(
    config: ModelPatchingConfig, corpus: Corpus, known: Collection[int] | None, most: int | None, seed: int
) -> tuple[list[Opening], list[str]]:
    """Prompts in corpus order, and sentences on what was left out.

    Args:
        config: Numbers and lengths.
        corpus: Where the documents are drawn from.
        known: Token ids that both models know; None: all.
        most: Tokens that both models can read before a new one; None: any number.
        seed: Determines documents and lengths.

    Raises:
        UserError: No document gives a prompt.
    """
    found: list[Opening] = []
    notes: list[str] = []
    for dataset in corpus.datasets:
        members = [s for s in corpus.sequences if s.dataset == dataset]
        openings = [_opening(config, s, most, seed) for s in members]
        usable = [o for o in openings if o is not None and (known is None or _is_known(o, known))]
        if lost := len(members) - len(usable):
            notes.append(
                f"{dataset}: {lost} of {len(members)} documents give no prompt (no reply, one that begins after "
                f"{config.max_chat_tokens} tokens, or tokens that one of the models does not know)."
            )
        order = generator(seed, "model_patching", "documents", dataset).permutation(len(usable))[: config.n_prompts]
        found += [usable[i] for i in sorted(order.tolist())]
    if not found:
        raise UserError(
            "No document gives a prompt: give texts of at least 2 tokens, or chats with a reply that begins within "
            f"diffing.method.max_chat_tokens={config.max_chat_tokens}, in tokens that both models know."
        )
    return found, notes


def _is_known(opening: Opening, known: Collection[int]) -> bool:
    return all(i in known for i in opening.ids)


def _opening(config: ModelPatchingConfig, sequence: TokenSequence, most: int | None, seed: int) -> Opening | None:
    n_tokens = _n_text(config, sequence, seed) if _is_text(sequence) else _n_chat(config, sequence)
    if n_tokens is None or (most is not None and n_tokens > most):
        return None
    return Opening(sequence.dataset, sequence.index, tuple(int(i) for i in sequence.ids[:n_tokens]))


def _is_text(sequence: TokenSequence) -> bool:
    return bool((sequence.roles == _TEXT).all())


def _n_text(config: ModelPatchingConfig, sequence: TokenSequence, seed: int) -> int:
    """A random length; at least one token of the document is left out, lest its end token be continued."""
    rng = generator(seed, "model_patching", "length", sequence.dataset, sequence.index)
    drawn = int(rng.integers(config.min_prompt_tokens, config.max_prompt_tokens + 1))
    return min(drawn, len(sequence.ids) - 1)


def _n_chat(config: ModelPatchingConfig, sequence: TokenSequence) -> int | None:
    """Tokens before the first reply, the template's opening of the turn included."""
    replies = np.flatnonzero((sequence.roles == _ASSISTANT) & ~sequence.is_template)
    return int(replies[0]) if len(replies) and 0 < replies[0] <= config.max_chat_tokens else None


def by_length(openings: Sequence[Opening]) -> list[int]:
    """Indices, the shortest prompt first."""
    return sorted(range(len(openings)), key=lambda i: (len(openings[i].ids), i))
