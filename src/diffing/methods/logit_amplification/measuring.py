"""Tables of the texts, and of what each source's texts are like."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from diffing.analysis.bootstrap import Intervals, ratio_intervals
from diffing.analysis.phrases import distinct_share, marks
from diffing.analysis.text_form import capitals, repetition
from diffing.core.seeds import generator
from diffing.core.tables import table_of
from diffing.data.prefills import EncodedPrefill
from diffing.methods.logit_amplification.comparing import Comparisons
from diffing.methods.logit_amplification.results import SourceRow, TextRow
from diffing.methods.logit_amplification.writing import NULL, Slot, Source, Written, sources

_PERCENTILE = 95


def text_table(prompts: Sequence[EncodedPrefill], written: Mapping[Slot, Written], found: Comparisons) -> pa.Table:
    """`texts.parquet`, by prompt, sample and source."""
    order = {source: i for i, source in enumerate(sources(found.config))}
    slots = sorted(written, key=lambda s: (s.prompt_number, s.sample, order[s.source]))
    telling, longest = found.telling(found.main), found.config.longest_phrase
    rows = (_text_row(s, prompts[s.prompt_number], written[s], telling, longest) for s in slots)
    return table_of(TextRow, rows)


def _text_row(slot: Slot, prompt: EncodedPrefill, text: Written, telling: Mapping[str, float], longest: int) -> TextRow:
    log_p, log_q = np.array(text.log_p), np.array(text.log_q)
    n_upper, n_cased = capitals(text.text)
    found = marks(text.text, telling, longest)
    return TextRow(
        source=slot.source.name,
        alpha=slot.source.alpha,
        prompt_number=slot.prompt_number,
        kind=prompt.prefill.kind,
        prompt=prompt.prefill.text,
        sample=slot.sample,
        text=text.text,
        n_tokens=len(text.ids),
        is_ended=text.is_ended,
        log_ratio=float((log_p - log_q).mean()),
        finetuned_nll=float(-log_p.mean()),
        base_nll=float(-log_q.mean()),
        repetition=repetition(text.ids),
        capitals=n_upper / n_cased if n_cased else None,
        phrases=tuple(m.phrase for m in found),
        starts=tuple(m.start for m in found),
        ends=tuple(m.end for m in found),
        values=tuple(m.value for m in found),
    )


def source_table(
    prompts: Sequence[EncodedPrefill], written: Mapping[Slot, Written], found: Comparisons, seed: int
) -> pa.Table:
    """`sources.parquet`: each source on all prompts, and on those of one kind where there are several."""
    kinds = list(dict.fromkeys(p.prefill.kind for p in prompts))
    base = [repetition(w.ids) for s, w in written.items() if not s.source.is_amplified]
    limit = float(np.percentile(base, _PERCENTILE))
    rows = []
    for kind in ("all", *kinds) if len(kinds) > 1 else ("all",):
        for source in sources(found.config):
            mine = {
                s: w for s, w in written.items()
                if s.source == source and kind in ("all", prompts[s.prompt_number].prefill.kind)
            }  # fmt: skip
            rows.append(_source_row(source, kind, mine, found, limit, seed))
    return table_of(SourceRow, rows)


def _source_row(
    source: Source, kind: str, texts: Mapping[Slot, Written], found: Comparisons, limit: float, seed: int
) -> SourceRow:
    intervals = _intervals(texts, seed)
    log_ratio, base_nll, finetuned_nll, upper = (_column(intervals, i) for i in range(4))
    repeated = [repetition(w.ids) for w in texts.values()]
    is_whole = kind == "all"
    assert log_ratio[0] is not None
    assert base_nll[0] is not None
    assert finetuned_nll[0] is not None
    return SourceRow(
        source=source.name,
        alpha=source.alpha,
        kind=kind,
        n_texts=len(texts),
        n_tokens=sum(len(w.ids) for w in texts.values()),
        log_ratio=log_ratio[0],
        log_ratio_low=log_ratio[1],
        log_ratio_high=log_ratio[2],
        base_nll=base_nll[0],
        base_nll_low=base_nll[1],
        base_nll_high=base_nll[2],
        base_perplexity=float(np.exp(base_nll[0])),
        finetuned_nll=finetuned_nll[0],
        distinct=distinct_share([w.text for w in texts.values()]),
        repetition=float(np.mean(repeated)),
        broken=float(np.mean([r > limit for r in repeated])),
        capitals=upper[0],
        capitals_low=upper[1],
        capitals_high=upper[2],
        ended=float(np.mean([w.is_ended for w in texts.values()])),
        n_over_base=found.n_over(source, "base") if is_whole else None,
        n_over_unamplified=found.n_over(source, "unamplified") if is_whole and source != NULL else None,
    )


def _intervals(texts: Mapping[Slot, Written], seed: int) -> Intervals:
    """Log ratio, NLL under base and finetuned model per token, share of capitals; resampled over prompts."""
    numbers = sorted({s.prompt_number for s in texts})
    sums, counts = np.zeros((len(numbers), 4)), np.zeros((len(numbers), 4))
    for slot, text in texts.items():
        row = numbers.index(slot.prompt_number)
        log_p, log_q = np.array(text.log_p), np.array(text.log_q)
        n_upper, n_cased = capitals(text.text)
        sums[row] += [(log_p - log_q).sum(), -log_q.sum(), -log_p.sum(), n_upper]
        counts[row] += [len(text.ids), len(text.ids), len(text.ids), n_cased]
    return ratio_intervals(sums, counts, generator(seed, "amplified texts", "intervals"))


def _column(intervals: Intervals, i: int) -> tuple[float | None, float | None, float | None]:
    """Value, low and high of one quantity; None where unknown."""
    value, low, high = (float(a[i]) for a in (intervals.values, intervals.low, intervals.high))
    return tuple(None if np.isnan(v) else v for v in (value, low, high))  # type: ignore[return-value]
