"""Writes texts with each model and lets both read them; finished units survive an interruption.

A unit holds texts of one writer; which ones is fixed by the options, so that a run that goes on gives the bits of one
that was not interrupted.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffing.analysis.context import RunContext
from diffing.analysis.text_scores import continuation_log_probs
from diffing.core.errors import UserError
from diffing.core.files import write_json
from diffing.core.progress import bar
from diffing.data.prompts import raw_prompt_ids
from diffing.methods.perplexity_diff.config import PerplexityDiffConfig
from diffing.methods.perplexity_diff.prefills import Prefill
from diffing.models.batch_generation import Continuation, Prompt, write_texts
from diffing.models.generation import end_ids
from diffing.models.pair import ModelHandle, ModelPair
from diffing.models.sampling import Sampling

Source = Literal["finetuned", "base"]
SOURCES: tuple[Source, ...] = ("finetuned", "base")
_UNIT_TEXTS = 32

Sampler = Callable[[bool, Sequence[Prompt], Sampling, frozenset[int]], list[Continuation]]


@dataclass(frozen=True)
class ScoredText:
    """A text that one model wrote and both read.

    Args:
        ids: Its new tokens, as its writer has them.
        text: The same decoded.
        is_ended: Whether it came to its end.
        finetuned: Log-probability of each token of the finetuned model's tokenizer, nats.
        base: The same of the base's; the tokens are the same unless the tokenizers differ.
    """

    ids: tuple[int, ...]
    text: str
    is_ended: bool
    finetuned: tuple[float, ...]
    base: tuple[float, ...]


@dataclass(frozen=True)
class Written:
    """A text, who wrote it, and after what."""

    source: Source
    prefill: Prefill
    scored: ScoredText


def write_and_read(
    config: PerplexityDiffConfig, context: RunContext, prefills: Sequence[Prefill], sampler: Sampler | None
) -> list[Written]:
    """Both models' texts after each beginning; those that came out empty are left out.

    Args:
        config: Options.
        context: The run's.
        prefills: Beginnings.
        sampler: Writes texts instead of the own sampler.
    """
    found: list[Written] = []
    units = [prefills[i : i + _UNIT_TEXTS] for i in range(0, len(prefills), _UNIT_TEXTS)]
    total = len(SOURCES) * len(prefills) * config.max_new_tokens
    with bar("perplexity_diff: writing and reading texts", total, "tokens") as advance:
        for source in SOURCES:
            work = _Work(config, context.pair, source, sampler)
            for number, unit in enumerate(units):
                path = context.scratch / f"{source}_{number:04d}.json"
                if (texts := _stored(path, len(unit))) is None:
                    texts = work.unit(unit, advance)
                    write_json(path, [asdict(text) for text in texts])
                    advance(len(unit) * config.max_new_tokens - sum(len(t.ids) for t in texts))
                else:
                    advance(len(unit) * config.max_new_tokens)
                found += [Written(source, p, t) for p, t in zip(unit, texts, strict=True) if t.finetuned and t.base]
    return found


def _stored(path: Path, n_texts: int) -> list[ScoredText] | None:
    """A stored unit; None when there is none or it is not whole."""
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        texts = [
            ScoredText(tuple(r["ids"]), r["text"], r["is_ended"], tuple(r["finetuned"]), tuple(r["base"])) for r in rows
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return texts if len(texts) == n_texts else None


@dataclass(frozen=True)
class _Work:
    config: PerplexityDiffConfig
    pair: ModelPair
    source: Source
    sampler: Sampler | None

    def unit(self, prefills: Sequence[Prefill], done: Callable[[int], None]) -> list[ScoredText]:
        writer = self.pair.finetuned if self.source == "finetuned" else self.pair.base
        same_tokens = self.pair.vocabulary.refusal is None
        beginnings = [_decoded(self.pair.base, p.ids) for p in prefills]
        prompts = [
            Prompt(p.ids if same_tokens else tuple(raw_prompt_ids(text, writer.tokenizer)), p.seed)
            for p, text in zip(prefills, beginnings, strict=True)
        ]
        sampling = Sampling(self.config.max_new_tokens, self.config.temperature)
        ends = end_ids(writer, self.pair.rules)
        if self.sampler is None:
            written = write_texts(writer, prompts, sampling, ends, done)
        else:
            written = self.sampler(self.source == "finetuned", prompts, sampling, ends)
        if same_tokens:
            return self._read_tokens(prompts, written)
        return [self._read_text(b, _without_end(w)) for b, w in zip(beginnings, written, strict=True)]

    def _read_tokens(self, prompts: Sequence[Prompt], written: Sequence[Continuation]) -> list[ScoredText]:
        """Both models read the same tokens, up to the first that only one of them knows."""
        shared = self.pair.vocabulary.shared_ids
        known = None if shared is None else frozenset(shared.tolist())
        cut = [_up_to(w.ids, known) for w in written]
        texts = [(p.ids, ids) for p, ids in zip(prompts, cut, strict=True)]
        finetuned, base = (_finite(continuation_log_probs(h, texts)) for h in (self.pair.finetuned, self.pair.base))
        return [
            ScoredText(ids, _decoded(self.pair.base, ids), w.is_ended, tuple(f), tuple(b))
            for ids, w, f, b in zip(cut, written, finetuned, base, strict=True)
        ]

    def _read_text(self, beginning: str, written: Continuation) -> ScoredText:
        """Each model reads the same characters through its own tokenizer."""
        log_probs = [
            tuple(_finite(continuation_log_probs(h, [split_ids(h, beginning, written.text)]))[0])
            for h in (self.pair.finetuned, self.pair.base)
        ]
        return ScoredText(written.ids, written.text, written.is_ended, *log_probs)


def _decoded(handle: ModelHandle, ids: Sequence[int]) -> str:
    return str(handle.tokenizer.decode(list(ids), skip_special_tokens=True))


def split_ids(handle: ModelHandle, beginning: str, text: str) -> tuple[list[int], list[int]]:
    """Tokens of `beginning + text`: those within the beginning, and those that have a character of the text.

    At least one token stands before the text.
    """
    ids = raw_prompt_ids(beginning + text, handle.tokenizer)
    encoded = handle.tokenizer(beginning + text, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in encoded["offset_mapping"]][: len(ids)]
    n_before = max(1, sum(end <= len(beginning) for end in ends))
    return ids[:n_before], ids[n_before:]


def _without_end(written: Continuation) -> Continuation:
    if not written.is_ended:
        return written
    return Continuation(written.ids[:-1], written.log_probs[:-1], written.text, True)


def _up_to(ids: tuple[int, ...], known: frozenset[int] | None) -> tuple[int, ...]:
    if known is None:
        return ids
    return ids[: next((n for n, i in enumerate(ids) if i not in known), len(ids))]


def _finite(log_probs: Sequence[np.ndarray]) -> list[list[float]]:
    """Raises UserError: One is not finite."""
    if n_bad := sum(int((~np.isfinite(x)).sum()) for x in log_probs):
        raise UserError(
            f"{n_bad} tokens of the written texts have no finite log-probability (NaN or infinite logits); "
            "check the weights, or try model.dtype=float32."
        )
    return [x.tolist() for x in log_probs]
