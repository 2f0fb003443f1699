"""Top examples: where in the text the activations moved most, at one layer."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa

from diffing.analysis.token_text import Decoder, text_with_offsets
from diffing.core.layers import Slot
from diffing.core.tables import table_of
from diffing.methods.normdiff.config import NormDiffConfig
from diffing.methods.normdiff.gather import Gathered
from diffing.methods.normdiff.results import ExampleRow
from diffing.methods.normdiff.statistics import known

RANKED = ("relative", "norm_diff", "cosine")
_SHOWN = ("norm_diff", "relative", "cosine", "norm_base", "norm_ft")


def example_table(
    data: Gathered, slot: Slot, names: Mapping[int, str], tokenizer: Decoder, config: NormDiffConfig
) -> pa.Table:
    """Per dataset and metric the documents with the largest value at one token; whole ones by mean `relative`.

    Where documents begin alike, so do the activations: what they share is looked at in the first of them alone.
    """
    rows: list[ExampleRow] = []
    peaks_of = {metric: _peaks(data, slot, metric) for metric in RANKED}
    for metric, peaks in peaks_of.items():
        for dataset in data.tokens.datasets:
            mine = [i for i in peaks if data.tokens.dataset_of(i) == dataset]
            best = sorted(mine, key=lambda i: (-peaks[i][1], i))[: config.n_examples]
            for rank, i in enumerate(best):
                at, score = peaks[i]
                start = max(0, at - config.context_before)
                stop = min(data.tokens.length_of(i), at + config.context_after + 1)
                rows.append(_row(data, slot, names, tokenizer, i, (start, stop), at, metric, "peak", rank, score))
    peaks = peaks_of["relative"]
    for rank, i, mean in _by_mean(data, slot, peaks, config.n_examples):
        whole = (0, data.tokens.length_of(i))
        rows.append(_row(data, slot, names, tokenizer, i, whole, peaks[i][0], "relative", "mean", rank, mean))
    return table_of(ExampleRow, rows)


def _peaks(data: Gathered, slot: Slot, metric: str) -> dict[int, tuple[int, float]]:
    """Position and value of each sequence's largest known value, of those kept and not the same as in one before."""
    values = np.where(data.kept_N & data.tokens.is_new_N, data.values(slot, metric), np.nan)
    found = {}
    for i in np.unique(data.tokens.sequence_N[~np.isnan(values)]).tolist():
        here = values[data.tokens.rows_of(i)]
        at = int(np.nanargmax(here))
        found[i] = (at, float(here[at]))
    return found


def _by_mean(data: Gathered, slot: Slot, members: Iterable[int], n: int) -> Iterator[tuple[int, int, float]]:
    """Rank, sequence and mean of those of each dataset's documents with the largest mean relative difference."""
    sums, counts = data.sequence_sums(slot, "relative", data.kept_N)
    mean = np.divide(sums, counts, out=np.full(len(sums), -np.inf), where=counts > 0)
    for dataset in data.tokens.datasets:
        mine = [i for i in members if data.tokens.dataset_of(i) == dataset]
        for rank, i in enumerate(sorted(mine, key=lambda i: (-mean[i], i))[:n]):
            yield rank, i, float(mean[i])


def _row(
    data: Gathered, slot: Slot, names: Mapping[int, str], tokenizer: Decoder, i: int, window: tuple[int, int],
    peak: int, metric: str, ranking: str, rank: int, score: float,
) -> ExampleRow:  # fmt: skip
    first = data.tokens.rows_of(i).start
    here = slice(first + window[0], first + window[1])
    ids = data.tokens.ids_N[here].tolist()
    text, offsets = text_with_offsets(tokenizer, ids)
    values = {m: tuple(known(v) for v in data.columns[slot][m][here]) for m in _SHOWN}
    return ExampleRow(
        dataset=data.tokens.dataset_of(i), metric=metric, ranking=ranking, rank=rank,
        sequence=int(data.tokens.documents[i]), start=window[0], peak=peak, score=score, text=text,
        tokens=tuple(names[t] for t in ids), token_ids=tuple(ids),
        starts=tuple(s for s, _ in offsets), ends=tuple(e for _, e in offsets), **values,
    )  # fmt: skip
