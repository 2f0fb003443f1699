"""Writes the texts of all sources, and reads each with both models; finished units survive an interruption.

A unit holds texts of one writer and one kind of prompt; which ones is fixed by the options, so that a run that goes on
gives the bits of one that was not interrupted.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from diffing.analysis.context import RunContext
from diffing.analysis.text_scores import continuation_log_probs
from diffing.core.errors import UserError
from diffing.core.files import read_json, write_json
from diffing.core.progress import bar
from diffing.core.seeds import generator
from diffing.data.prefills import EncodedPrefill
from diffing.methods.logit_amplification.config import LogitAmplificationConfig
from diffing.models.batch_generation import Amplified, Prompt, write_texts
from diffing.models.generation import end_ids
from diffing.models.sampling import Sampling

_UNIT_TEXTS = 32


@dataclass(frozen=True)
class Source:
    """Who writes: the base, the base again with other random numbers (`null`), or both models with an α."""

    name: str
    alpha: float | None = None

    @property
    def is_amplified(self) -> bool:
        """Whether both models write."""
        return self.alpha is not None


BASE, NULL = Source("base"), Source("null")


@dataclass(frozen=True)
class Slot:
    """A text to be written."""

    source: Source
    prompt_number: int
    sample: int


@dataclass(frozen=True)
class Written:
    """A text.

    Args:
        ids: Its new tokens.
        text: The same decoded.
        is_ended: Whether it came to its end.
        log_probs: Of each token under the distribution drawn from, before temperature; nats.
        log_p: Of each token under the finetuned model.
        log_q: Of each token under the base.
    """

    ids: tuple[int, ...]
    text: str
    is_ended: bool
    log_probs: tuple[float, ...]
    log_p: tuple[float, ...]
    log_q: tuple[float, ...]


def sources(config: LogitAmplificationConfig) -> list[Source]:
    """All writers, the base first."""
    return [BASE, NULL, *(Source("amplified", alpha) for alpha in config.alphas)]


def write_all(
    config: LogitAmplificationConfig, context: RunContext, prompts: Sequence[EncodedPrefill]
) -> dict[Slot, Written]:
    """The texts of every source, prompt and sample.

    Texts of one prompt and sample share their random numbers, but for those of `null`. The base's texts obey the same
    plausibility mask, by its own probabilities.

    Raises:
        UserError: An α is too large for finite numbers, or the models' logits are not finite.
    """
    found: dict[Slot, Written] = {}
    units = _units(config, prompts)
    total = sum(len(u) for u in units) * config.max_new_tokens
    with bar("logit_amplification: writing", total, "tokens") as advance:
        for number, unit in enumerate(units):
            path = context.scratch / f"unit_{number:04d}.json"
            written = _stored(path, len(unit))
            if written is None:
                written = _write(config, context, prompts, unit, advance)
                write_json(path, [asdict(w) for w in written])
                short = len(unit) * config.max_new_tokens - sum(len(w.ids) for w in written)
                advance(short)
            else:
                advance(len(unit) * config.max_new_tokens)
            found |= dict(zip(unit, written, strict=True))
    return found


def _units(config: LogitAmplificationConfig, prompts: Sequence[EncodedPrefill]) -> list[list[Slot]]:
    """Texts in units of one writer and kind, prompts of similar length together."""
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i].prefill.kind, len(prompts[i].ids), i))
    units: list[list[Slot]] = []
    for amplified in (False, True):
        chosen = [s for s in sources(config) if s.is_amplified == amplified]
        for kind in dict.fromkeys(prompts[i].prefill.kind for i in order):
            slots = [
                Slot(source, i, sample)
                for i in order
                if prompts[i].prefill.kind == kind
                for sample in range(config.n_samples)
                for source in chosen
            ]
            n_units = -(-len(slots) // _UNIT_TEXTS)
            ends = [round(k * len(slots) / n_units) for k in range(n_units + 1)]
            units += [slots[a:b] for a, b in pairwise(ends)]
    return units


def _stored(path: Path, n_texts: int) -> list[Written] | None:
    """A unit of an earlier run; None when there is none or it is not whole."""
    if not path.is_file():
        return None
    try:
        rows: list[dict[str, Any]] = read_json(path, "it is written anew")
        texts = [
            Written(
                tuple(r["ids"]), r["text"], r["is_ended"], tuple(r["log_probs"]), tuple(r["log_p"]), tuple(r["log_q"])
            )
            for r in rows
        ]
    except (UserError, TypeError, KeyError):
        return None
    return texts if len(texts) == n_texts else None


def _write(
    config: LogitAmplificationConfig, context: RunContext, prompts: Sequence[EncodedPrefill], unit: Sequence[Slot],
    advance: Any,
) -> list[Written]:  # fmt: skip
    pair = context.pair
    first = pair.finetuned if unit[0].source.is_amplified else pair.base
    writer = Amplified(first, pair.base, config.epsilon, pair.vocabulary.shared_ids)
    given = [Prompt(prompts[s.prompt_number].ids, _seed(context.seed, s), alpha=s.source.alpha or 0.0) for s in unit]
    sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    ends = end_ids(pair.finetuned, pair.rules) | end_ids(pair.base, pair.rules)
    written = write_texts(writer, given, sampling, ends, advance)
    texts = [(p.ids, w.ids) for p, w in zip(given, written, strict=True)]
    log_p, log_q = (continuation_log_probs(h, texts) for h in (pair.finetuned, pair.base))
    return [
        Written(w.ids, w.text, w.is_ended, w.log_probs, tuple(p.tolist()), tuple(q.tolist()))
        for w, p, q in zip(written, log_p, log_q, strict=True)
    ]


def _seed(seed: int, slot: Slot) -> int:
    """Seed of a text: the same for all sources of a prompt and sample but `null`."""
    purpose = "null texts" if slot.source == NULL else "amplified texts"
    return int(generator(seed, purpose, slot.prompt_number, slot.sample).integers(2**62))
