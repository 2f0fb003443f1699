"""Tables of numbers: effects with intervals, how they grow, measures of the texts."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from diffing.analysis.bootstrap import RESAMPLES, ratio_interval
from diffing.analysis.text_form import capitals, repetition
from diffing.core.seeds import generator
from diffing.core.tables import table_of
from diffing.data.prefills import EncodedPrefill
from diffing.methods.weight_amplification.gather import Gathered, Outcome
from diffing.methods.weight_amplification.reading import METRICS
from diffing.methods.weight_amplification.results import EffectRow, GrowthRow, SettingRow, TextMeasureRow, TextRow

MEASURES = ("log_prob_base", "log_prob_ft", "repetition", "capitals", "n_tokens")
_NAME = "weight_amplification"


def setting_table(data: Gathered) -> pa.Table:
    """What was tried."""
    rows = [
        SettingRow(s.number, s.part, s.factor, s.rest, s.layers, s.modules, s.n_modules, o.problem)
        for o in data.outcomes
        for s in (o.setting,)
    ]
    return table_of(SettingRow, rows)


def effect_table(data: Gathered, seed: int) -> pa.Table:
    """Mean KL and ΔNLL of each dataset at each setting; unknown where a token's is not finite."""
    rows = [
        _effect_row(data, outcome, dataset, name, metric, seed)
        for outcome in data.outcomes
        for dataset, name in enumerate(data.corpus.datasets)
        for metric in METRICS
    ]
    return table_of(EffectRow, rows)


def _effect_row(data: Gathered, outcome: Outcome, dataset: int, name: str, metric: str, seed: int) -> EffectRow:
    s, in_set = outcome.setting, data.datasets_S == dataset
    sums, counts = outcome.effect.sums[metric][in_set], outcome.effect.counts[metric][in_set]
    n_sequences, n_tokens = int((counts > 0).sum()), int(counts.sum())
    if not n_tokens or not np.isfinite(sums).all():
        return EffectRow(s.number, s.part, s.factor, name, metric, n_sequences, n_tokens, None, None, None, None)
    found = ratio_interval(sums, counts, generator(seed, _NAME, name, metric))
    plain = data.whole(1.0).effect.sums[metric][in_set].sum() / counts.sum()
    return EffectRow(
        s.number, s.part, s.factor, name, metric, n_sequences, n_tokens, found.value, found.low, found.high,
        float(found.value / plain) if plain != 0 and np.isfinite(plain) else None,
    )  # fmt: skip


def growth_table(data: Gathered, seed: int) -> pa.Table:
    """By how many powers of the factor KL grows from each positive factor to the next.

    The exponent is log(KL(b)/KL(a)) / log(b/a); the interval is from resampling sequences, the same at both factors.
    """
    positive = [o for o in data.grid() if o.setting.factor > 0]
    rows = []
    for dataset, name in enumerate(data.corpus.datasets):
        for a, b in pairwise(positive):
            row = _growth_row(data, a, b, dataset, name, seed)
            if row is not None:
                rows.append(row)
    return table_of(GrowthRow, rows)


def _growth_row(data: Gathered, a: Outcome, b: Outcome, dataset: int, name: str, seed: int) -> GrowthRow | None:
    in_set = data.datasets_S == dataset
    before, after = (o.effect.sums["kl"][in_set] for o in (a, b))
    if not (np.isfinite(before).all() and np.isfinite(after).all() and before.sum() > 0 and after.sum() > 0):
        return None
    span = np.log(b.setting.factor / a.setting.factor)
    value = float(np.log(after.sum() / before.sum()) / span)
    low, high = None, None
    if len(before) > 1:
        rng = generator(seed, _NAME, "growth", name)
        picks = rng.integers(0, len(before), size=(RESAMPLES, len(before)))
        drawn = np.log(after[picks].sum(1) / before[picks].sum(1)) / span
        low, high = (float(x) for x in np.percentile(drawn, [2.5, 97.5]))
    return GrowthRow(name, a.setting.factor, b.setting.factor, value, low, high)


def text_table(data: Gathered, prompts: Sequence[EncodedPrefill]) -> pa.Table:
    """Every text; `differs` says whether it is another than the base's after the same prompt."""
    base = data.whole(0.0).texts
    rows = [
        TextRow(
            o.setting.number, o.setting.part, o.setting.factor, i, prompts[i].prefill.kind, prompts[i].prefill.text,
            t.text, len(t.ids), t.is_ended, t.log_prob_base, t.log_prob_ft, repetition(t.ids), _capital_share(t.text),
            not base or t.ids != base[i].ids,
        )
        for o in data.outcomes
        for i, t in enumerate(o.texts)
    ]  # fmt: skip
    return table_of(TextRow, rows)


def _capital_share(text: str) -> float | None:
    n_upper, n_cased = capitals(text)
    return n_upper / n_cased if n_cased else None


def text_measure_table(texts: pa.Table, seed: int) -> pa.Table:
    """Means of the texts' measures per setting: over all texts and over those of each kind of prompt."""
    rows = texts.to_pylist()
    found = []
    for number in dict.fromkeys(r["setting"] for r in rows):
        mine = [r for r in rows if r["setting"] == number]
        for kind in ("all", *dict.fromkeys(r["kind"] for r in mine)):
            of_kind = [r for r in mine if kind in ("all", r["kind"])]
            found += [row for m in MEASURES if (row := _measure_row(of_kind, kind, m, seed)) is not None]
    return table_of(TextMeasureRow, found)


def _measure_row(rows: list[dict], kind: str, measure: str, seed: int) -> TextMeasureRow | None:
    values = np.array([r[measure] for r in rows if r[measure] is not None], dtype=np.float64)
    if not len(values):
        return None
    found = ratio_interval(values, np.ones(len(values)), generator(seed, _NAME, "texts", kind, measure))
    first = rows[0]
    return TextMeasureRow(
        first["setting"], first["part"], first["factor"], kind, measure, len(values), found.value, found.low, found.high
    )
