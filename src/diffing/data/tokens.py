"""Documents to a corpus: token sequences of all datasets, within the limits of the spec."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffing.core.errors import UserError
from diffing.core.seeds import generator
from diffing.core.specs import CorpusSpec
from diffing.core.templates import TemplateRules
from diffing.data.chats import ROLES
from diffing.data.documents import Document, read_documents, sample
from diffing.data.sequences import SequenceMaker, TokenSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

__all__ = ["ROLES", "Corpus", "TokenSequence", "tokenize_corpus", "tokenize_documents"]

MIN_TOKENS = 2
MAX_SKIPS = 64


@dataclass(frozen=True, eq=False)
class Corpus:
    """All sequences, by dataset and then by document.

    Args:
        datasets: Names in the order of the spec.
        sequences: At least one of each dataset.
        fingerprint: Hash of names, document numbers, tokens and masks; where they were read from plays no part.
        notes: Sentences on what was left out or changed.
        n_documents: Documents per dataset that the sequences were taken from (after `max_samples`).
    """

    datasets: tuple[str, ...]
    sequences: tuple[TokenSequence, ...]
    fingerprint: str
    notes: tuple[str, ...]
    n_documents: dict[str, int]

    @property
    def n_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(s.ids) for s in self.sequences)


def tokenize_corpus(spec: CorpusSpec, tokenizer: "Tokenizer", rules: TemplateRules) -> Corpus:
    """Read and tokenise the datasets of `spec`.

    Raises:
        UserError: A dataset cannot be read or ends up empty, or a chat cannot be rendered.
    """
    names = [d.name for d in spec.datasets]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise UserError(f"Two datasets are called {twice!r}; give each its own name in data.datasets.")
    documents = {d.name: read_documents(d, spec.max_samples, spec.seed) for d in spec.datasets}
    return tokenize_documents(documents, spec, tokenizer, rules)


def tokenize_documents(
    documents_by_dataset: Mapping[str, Sequence[Document]],
    spec: CorpusSpec,
    tokenizer: "Tokenizer",
    rules: TemplateRules,
) -> Corpus:
    """Tokenise documents at hand; the limits and the seed of `spec` count, its datasets do not.

    Raises:
        UserError: A dataset ends up empty, or a chat cannot be rendered.
    """
    if not documents_by_dataset:
        raise UserError("There is no data to read; name some with data=embedded, data.path=PATH or data.datasets.")
    sequences: list[TokenSequence] = []
    notes: list[str] = []
    n_documents: dict[str, int] = {}
    for name, given in documents_by_dataset.items():
        documents = sample(given, spec.max_samples, spec.seed, name)
        selection = _select(name, documents, SequenceMaker(name, tokenizer, rules, spec.max_length), spec)
        sequences += selection.sequences
        notes += selection.notes
        n_documents[name] = len(documents)
    names = tuple(documents_by_dataset)
    return Corpus(names, tuple(sequences), _fingerprint(names, sequences), tuple(notes), n_documents)


@dataclass(frozen=True)
class _Selection:
    sequences: list[TokenSequence]
    notes: list[str]


def _select(name: str, documents: Sequence[Document], maker: SequenceMaker, spec: CorpusSpec) -> _Selection:
    order = list(range(len(documents)))
    if spec.max_tokens is not None:
        order = generator(spec.seed, "max_tokens", name).permutation(len(documents)).tolist()
    short: list[int] = []
    candidates = _long_enough(order, maker.sequences(documents[i] for i in order), short)
    kept = _within(candidates, spec.max_tokens)
    if not kept:
        raise UserError(
            f"Dataset {name!r} has no document of at least {MIN_TOKENS} tokens; give longer texts or another dataset."
        )
    positions = sorted(kept) if spec.half is None else _half(sorted(kept), name, spec.half, spec.seed)
    n_folded = sum(maker.folds_system(documents[i]) for i in positions)
    sequences = [kept[i] for i in positions]
    return _Selection(sequences, _notes(name, sequences, len(short), n_folded, spec.max_tokens))


def _half(positions: list[int], name: str, half: int, seed: int) -> list[int]:
    """One of two halves of the documents that would be read, drawn at random; the first has one more of an odd number.

    Raises:
        UserError: There is one document.
    """
    if len(positions) < 2:
        raise UserError(
            f"Dataset {name!r} has one document to read, which cannot be halved: read more, or drop data.half."
        )
    shuffled = generator(seed, "half", name).permutation(len(positions)).tolist()
    return sorted(positions[i] for i in shuffled[half - 1 :: 2])


def _long_enough(
    order: Sequence[int], sequences: Iterator[TokenSequence], short: list[int]
) -> Iterator[tuple[int, TokenSequence]]:
    """Positions and sequences of at least `MIN_TOKENS`; positions of shorter ones are added to `short`."""
    for position, sequence in zip(order, sequences, strict=True):
        if len(sequence.ids) >= MIN_TOKENS:
            yield position, sequence
        else:
            short.append(position)


def _within(candidates: Iterator[tuple[int, TokenSequence]], max_tokens: int | None) -> dict[int, TokenSequence]:
    """Whole sequences up to `max_tokens`, by position; at least one, even if it alone is longer.

    One that would pass the limit is skipped for shorter ones after it; `MAX_SKIPS` of them end the search,
    so that a large set is not tokenised for the sake of its shortest texts.
    """
    if max_tokens is None:
        return dict(candidates)
    kept: dict[int, TokenSequence] = {}
    left, n_skipped = max_tokens, 0
    too_long: dict[int, TokenSequence] = {}
    for position, sequence in candidates:
        if len(sequence.ids) <= left:
            kept[position] = sequence
            left -= len(sequence.ids)
        else:
            n_skipped += 1
            too_long = too_long or {position: sequence}
        if left < MIN_TOKENS or (kept and n_skipped >= MAX_SKIPS):
            break
    return kept or too_long


def _notes(
    name: str, sequences: Sequence[TokenSequence], n_short: int, n_folded: int, max_tokens: int | None
) -> list[str]:
    notes = []
    if n_short:
        notes.append(f"{name}: left out {n_short} documents of fewer than {MIN_TOKENS} tokens.")
    if n_folded:
        notes.append(
            f"{name}: the chat template takes no system role; in {n_folded} chats the system message "
            "stands at the head of the first user message."
        )
    n_tokens = sum(len(s.ids) for s in sequences)
    if max_tokens is not None and n_tokens > max_tokens:
        notes.append(
            f"{name}: every document is longer than data.max_tokens={max_tokens}; one of {n_tokens} tokens was taken."
        )
    return notes


def _fingerprint(names: Sequence[str], sequences: Sequence[TokenSequence]) -> str:
    digest = hashlib.sha256(repr(tuple(names)).encode())
    for s in sequences:
        digest.update(f"\n{s.dataset!r} {s.index} {len(s.ids)}\n".encode())
        for array, kind in ((s.ids, "<i4"), (s.roles, "u1"), (s.is_template, "u1"), (s.is_special, "u1")):
            digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
    return digest.hexdigest()[:16]
