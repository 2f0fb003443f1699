"""One text through both models: every value that a method can give of it, and what each model expected."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from diffing.analysis.predictions import Predictions, top_predictions
from diffing.analysis.token_text import token_strings
from diffing.core.errors import UserError
from diffing.core.method import MethodSpec, load_method, method_names
from diffing.core.probing import TokenValues
from diffing.core.result import Result
from diffing.core.specs import CorpusSpec
from diffing.data.chats import ROLES
from diffing.data.documents import documents_from_texts
from diffing.data.sequences import SequenceMaker, TokenSequence
from diffing.data.tokens import MIN_TOKENS, tokenize_documents
from diffing.models.pair import ModelPair

_NAME = "text"


@dataclass(frozen=True, eq=False)
class ProbedText:
    """One text read through both models.

    Args:
        token_ids: Its T tokens.
        tokens: As people read them.
        roles: Of each token: text, system, user, assistant or tool.
        is_template: Whether the chat template wrote it.
        values: By method, its values at every token.
        predictions: What each model expected next.
        strings: Every id of the text and of the predictions, as people read it.
        notes: Sentences on what was cut off or left out.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    roles: tuple[str, ...]
    is_template: tuple[bool, ...]
    values: Mapping[str, tuple[TokenValues, ...]]
    predictions: Predictions
    strings: Mapping[int, str]
    notes: tuple[str, ...]


def probing_methods() -> list[str]:
    """Names of the installed methods that give values of one text."""
    return [name for name in method_names() if load_method(name).probe is not None]


def probe_text(
    pair: ModelPair,
    text_or_chat: str | Sequence[Mapping[str, Any]],
    methods: Sequence[str] = ("kl", "normdiff"),
    max_length: int = 1024,
    k: int = 10,
    results: Sequence[Result] = (),
) -> ProbedText:
    """Read one text or chat through both models.

    A method that cannot read the text or this pair leaves its sentence in the notes.

    Args:
        pair: Both models.
        text_or_chat: A text, or a chat as a list of {"role", "content"}; tokenised as a corpus is.
        methods: Whose values to give; those that have none of one text are passed over.
        max_length: Tokens read; more are cut off, with a note.
        k: Predictions listed at each token.
        results: Finished runs whose own dictionaries are tried on the text.

    Raises:
        UserError: The text has fewer than 2 tokens, more than the models read, or tokens that the vocabularies do not
            share; the chat does not fit its template; a method does not exist.
    """
    specs = [load_method(name) for name in methods]
    sequence, notes = _tokens(pair, text_or_chat, max_length)
    _refuse_too_long(pair, len(sequence.ids))
    predictions = top_predictions(pair, sequence, k)
    values: dict[str, tuple[TokenValues, ...]] = {}
    for spec in specs:
        if spec.probe is not None:
            values[spec.name], said = _values(spec, pair, sequence)
            notes += said
    for result in results:
        trial = load_method(result.method).trial
        if trial is not None:
            values[result.method], said = _guarded(load_method(result.method), partial(trial, result, pair, sequence))
            notes += said
    ids = sequence.ids.tolist()
    listed = [i for side in (predictions.base, predictions.finetuned) for i in side.ids_TK.ravel().tolist()]
    strings = token_strings(pair.tokenizer, [*ids, *listed])
    return ProbedText(
        token_ids=tuple(ids),
        tokens=tuple(strings[i] for i in ids),
        roles=tuple(ROLES[r] for r in sequence.roles.tolist()),
        is_template=tuple(sequence.is_template.tolist()),
        values=values,
        predictions=predictions,
        strings=strings,
        notes=(*notes, *_vocabulary_note(pair)),
    )


def _tokens(pair: ModelPair, text_or_chat: Any, max_length: int) -> tuple[TokenSequence, list[str]]:
    """The text's first `max_length` tokens, and a sentence where there are more."""
    documents = documents_from_texts(_NAME, [text_or_chat])
    (start,) = SequenceMaker(_NAME, pair.tokenizer, pair.rules, MIN_TOKENS).sequences(documents)
    if len(start.ids) < MIN_TOKENS:
        n_tokens = "only one token" if len(start.ids) else "no tokens"
        raise UserError(f"The text has {n_tokens}, and predictions take at least {MIN_TOKENS}; write more.")
    spec = CorpusSpec(datasets=(), max_length=max_length + 1)
    corpus = tokenize_documents({_NAME: documents}, spec, pair.tokenizer, pair.rules)
    (sequence,), notes = corpus.sequences, list(corpus.notes)
    if len(sequence.ids) <= max_length:
        return sequence, notes
    return _cut(sequence, max_length), [*notes, f"Only the first {max_length:,} tokens of the text were read."]


def _cut(sequence: TokenSequence, n: int) -> TokenSequence:
    per_token = {f.name: getattr(sequence, f.name)[:n] for f in fields(sequence) if f.name not in ("dataset", "index")}
    return TokenSequence(sequence.dataset, sequence.index, **per_token)


def _refuse_too_long(pair: ModelPair, n_tokens: int) -> None:
    limits = [h.max_positions for h in (pair.base, pair.finetuned) if h.max_positions is not None]
    if limits and n_tokens > min(limits):
        raise UserError(f"The text has {n_tokens:,} tokens and the models read at most {min(limits):,}; shorten it.")


def _values(spec: MethodSpec, pair: ModelPair, sequence: TokenSequence) -> tuple[tuple[TokenValues, ...], list[str]]:
    """A method's values, and a sentence where it has none."""
    assert spec.probe is not None
    return _guarded(spec, partial(spec.probe, pair, sequence))


def _guarded(
    spec: MethodSpec, compute: Callable[[], tuple[TokenValues, ...]]
) -> tuple[tuple[TokenValues, ...], list[str]]:
    """Values, and a sentence where there are none."""
    try:
        values = compute()
    except UserError as error:
        return (), [f"{spec.title}: {error}"]
    return values, [] if values else [f"{spec.title}: nothing of these two models can be compared."]


def _vocabulary_note(pair: ModelPair) -> list[str]:
    shared = pair.vocabulary.shared_ids
    if shared is None:
        return []
    return [f"The vocabularies differ: probabilities are over the {len(shared):,} tokens that both models have."]
