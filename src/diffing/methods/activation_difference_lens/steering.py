"""Texts steered along mean differences, beside texts of the same prompts and random numbers that are not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffing.analysis.context import RunContext
from diffing.analysis.steering import steering_vector
from diffing.analysis.text_scores import continuation_log_probs
from diffing.core.progress import bar
from diffing.core.seeds import generator
from diffing.data.prefills import EncodedPrefill, encode_prefills, read_prefills
from diffing.methods.activation_difference_lens.config import LensConfig
from diffing.methods.activation_difference_lens.directions import Direction
from diffing.methods.activation_difference_lens.results import StrengthRow, TextRow
from diffing.models.batch_generation import Continuation, Prompt, write_texts
from diffing.models.generation import end_ids
from diffing.models.pair import ModelHandle
from diffing.models.sampling import Sampling
from diffing.models.steering import Steering

_NGRAM = 3
_LIMIT = 95


@dataclass(frozen=True)
class _Text:
    """A text, its perplexity under the base (None: nothing to judge) and its share of repeated trigrams."""

    text: str
    perplexity: float | None
    repetition: float | None


def steered_texts(
    config: LensConfig, context: RunContext, layer: int, chosen: Sequence[Direction], mean_norm: float
) -> tuple[list[StrengthRow], list[TextRow]]:
    """Steer with every direction of a layer at every strength, and choose the largest that leaves texts coherent."""
    prompts = some_prompts(config, context)
    writer = context.pair.finetuned if config.steered_model == "finetuned" else context.pair.base
    plain = [_prompt(context, p, number) for p in prompts for number in range(config.n_unsteered)]
    steered = [
        _prompt(context, p, 0, _steering(context, layer, direction, strength, mean_norm))
        for direction in chosen
        for strength in config.strengths
        for p in prompts
    ]
    written = _written(config, context, writer, layer, [*plain, *steered])
    texts = _measured(context, [*plain, *steered], written)
    own, rest = texts[: len(plain)], texts[len(plain) :]
    limits = _limits(own)
    beside = own[:: config.n_unsteered]
    strengths: list[StrengthRow] = []
    rows: list[TextRow] = []
    for i, direction in enumerate(chosen):
        n = len(config.strengths) * len(prompts)
        groups = [rest[i * n :][j * len(prompts) :][: len(prompts)] for j in range(len(config.strengths))]
        mine = _strength_rows(direction, config.strengths, groups, own, limits)
        strengths += mine
        for row, group in zip(mine[1:], groups, strict=True):
            pairs = zip(prompts, beside, group, strict=True)
            rows += [
                TextRow(
                    *direction.where, row.strength, row.is_chosen, p.prefill.text, a.text, b.text, b.perplexity,
                    b.repetition,
                )
                for p, a, b in pairs
            ]  # fmt: skip
    return strengths, rows


def some_prompts(config: LensConfig, context: RunContext) -> list[EncodedPrefill]:
    """Prompts spread evenly over those that the tokenizer can take.

    Raises:
        UserError: They cannot be read, or none is left.
    """
    found, _ = encode_prefills(read_prefills(config.prompts), context.tokenizer, context.pair.rules)
    picks = np.unique(np.linspace(0, len(found) - 1, config.n_prompts).round().astype(int))
    return [found[i] for i in picks.tolist()]


def _prompt(context: RunContext, prompt: EncodedPrefill, number: int, steering: Steering | None = None) -> Prompt:
    seed = generator(context.seed, "steered texts", prompt.prefill.kind, prompt.prefill.text, number).integers(2**62)
    return Prompt(prompt.ids, int(seed), steering)


def _steering(context: RunContext, layer: int, direction: Direction, strength: float, mean_norm: float) -> Steering:
    vector_D = steering_vector(direction.unit_D.float(), float(strength), mean_norm)
    return Steering(layer, vector_D, "all", skip_first_tokens=context.skip_first_tokens)


def _written(
    config: LensConfig, context: RunContext, writer: ModelHandle, layer: int, prompts: Sequence[Prompt]
) -> list[Continuation]:
    sampling = Sampling(config.max_new_tokens, config.temperature)
    with bar(f"steered texts at layer {layer}", len(prompts) * config.max_new_tokens, "tokens at most") as advance:
        return write_texts(writer, prompts, sampling, end_ids(writer, context.pair.rules), advance)


def _measured(context: RunContext, prompts: Sequence[Prompt], written: Sequence[Continuation]) -> list[_Text]:
    base = context.pair.base
    n_known = next(base.sites.embed.parameters()).shape[0]
    known = [i for i, w in enumerate(written) if w.ids and max(w.ids) < min(n_known, base.vocab_size)]
    scored = continuation_log_probs(base, [(prompts[i].ids, written[i].ids) for i in known])
    perplexity = {i: float(np.exp(-found.mean())) for i, found in zip(known, scored, strict=True)}
    return [_Text(w.text, perplexity.get(i), repetition_rate(w.ids)) for i, w in enumerate(written)]


def repetition_rate(ids: Sequence[int]) -> float | None:
    """Share of trigrams that stood in the text before; None where there are fewer than two."""
    grams = list(zip(*(ids[i:] for i in range(_NGRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else None


def _limits(texts: Sequence[_Text]) -> tuple[float | None, float | None]:
    columns = ([t.perplexity for t in texts], [t.repetition for t in texts])
    known = [[v for v in column if v is not None] for column in columns]
    perplexity, repetition = (float(np.percentile(v, _LIMIT)) if v else None for v in known)
    return perplexity, repetition


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def _strength_rows(
    direction: Direction, strengths: Sequence[float], groups: Sequence[Sequence[_Text]], own: Sequence[_Text],
    limits: tuple[float | None, float | None],
) -> list[StrengthRow]:  # fmt: skip
    """The largest strength is chosen up to which all are within the limits."""
    medians = [(_median([t.perplexity for t in g]), _median([t.repetition for t in g])) for g in groups]
    within = [_is_coherent(both, limits) for both in medians]
    n_good = next((i for i, good in enumerate(within) if not good), len(within))
    own_medians = _median([t.perplexity for t in own]), _median([t.repetition for t in own])
    rows = [StrengthRow(*direction.where, 0.0, len(own), *own_medians, *limits, True, False)]
    for i, strength in enumerate(strengths):
        values = (len(groups[i]), *medians[i], *limits, within[i], i == n_good - 1)
        rows.append(StrengthRow(*direction.where, float(strength), *values))
    return rows


def _is_coherent(found: tuple[float | None, float | None], limits: tuple[float | None, float | None]) -> bool:
    """Whether texts are as likely and as little repetitive; texts too short to repeat anything are not repetitive."""
    (perplexity, repetition), (most_perplexity, most_repetition) = found, limits
    if perplexity is None or most_perplexity is None or perplexity > most_perplexity:
        return False
    return repetition is None or most_repetition is None or repetition <= most_repetition
