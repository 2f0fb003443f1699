"""The beginnings that both models go on from: first tokens of documents, and chats up to the first answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffing.analysis.context import RunContext
from diffing.core.errors import UserError
from diffing.core.seeds import generator
from diffing.data.prompts import raw_prompt_ids
from diffing.data.tokens import ROLES, TokenSequence
from diffing.methods.perplexity_diff.config import PerplexityDiffConfig


@dataclass(frozen=True)
class Prefill:
    """A beginning.

    Args:
        dataset: Of its document.
        document: The document's row in the dataset.
        ids: Its tokens, of the base's tokenizer.
        seed: Of the texts that go on from it: both models have the same random numbers.
    """

    dataset: str
    document: int
    ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Prefills:
    """Beginnings by dataset, and sentences on what was left out."""

    by_dataset: dict[str, list[Prefill]]
    notes: tuple[str, ...]


def choose_prefills(config: PerplexityDiffConfig, context: RunContext, texts_only: bool) -> Prefills:
    """`n_texts` beginnings of each dataset; where it has fewer documents they are used again, with other seeds.

    Args:
        config: Options.
        context: The run's.
        texts_only: Whether chats are left out: their template is that of one tokenizer.

    Raises:
        UserError: No document has so long a beginning.
    """
    found: dict[str, list[Prefill]] = {}
    notes: list[str] = []
    datasets = [d for d in config.datasets if d in context.corpus.datasets] or list(context.corpus.datasets)
    for dataset in datasets:
        sequences = [s for s in context.corpus.sequences if s.dataset == dataset]
        begun = [(s, ids) for s in sequences if (ids := _beginning(s, config.prefill_tokens, context, texts_only))]
        if n_out := len(sequences) - len(begun):
            notes.append(
                f"{dataset}: {n_out} of {len(sequences)} documents have no beginning of prefill_tokens="
                f"{config.prefill_tokens} tokens with something after it, or no answer, and were left out."
            )
        if begun:
            found[dataset] = _drawn(dataset, begun, config.n_texts, context.seed)
    if not found:
        raise UserError(
            f"No document of {', '.join(datasets)} has a beginning to go on from: texts need more than "
            f"prefill_tokens={config.prefill_tokens} tokens, chats an answer; lower "
            "diffing.method.prefill_tokens, or give longer documents."
        )
    return Prefills(found, tuple(notes))


def _beginning(sequence: TokenSequence, n_tokens: int, context: RunContext, texts_only: bool) -> tuple[int, ...]:
    """Tokens of the beginning; none where the document has no such beginning."""
    if (sequence.roles != ROLES.index("text")).any():
        return () if texts_only else _before_answer(sequence)
    n_front = int(np.argmin(sequence.is_special)) if not sequence.is_special.all() else len(sequence.ids)
    if len(sequence.ids) <= n_front + n_tokens:
        return ()
    if n_front + n_tokens == 0:
        return tuple(raw_prompt_ids("", context.tokenizer))
    return tuple(sequence.ids[: n_front + n_tokens].tolist())


def _before_answer(sequence: TokenSequence) -> tuple[int, ...]:
    answer_T = (sequence.roles == ROLES.index("assistant")) & ~sequence.is_template
    return tuple(sequence.ids[: int(answer_T.argmax())].tolist()) if answer_T.any() else ()


def _drawn(
    dataset: str, begun: Sequence[tuple[TokenSequence, tuple[int, ...]]], n_texts: int, seed: int
) -> list[Prefill]:
    order = generator(seed, "perplexity_diff", "documents", dataset).permutation(len(begun))
    chosen = [begun[order[i % len(begun)]] for i in range(n_texts)]
    return [
        Prefill(dataset, s.index, ids, int(generator(seed, "perplexity_diff", "text", dataset, i).integers(2**62)))
        for i, (s, ids) in enumerate(chosen)
    ]
