"""Top examples: where in the text the models differ most."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from diffing.analysis.token_text import Decoder, text_with_offsets
from diffing.core.tables import table_of
from diffing.methods.kl.config import KLConfig
from diffing.methods.kl.gather import Gathered
from diffing.methods.kl.results import ExampleRow


def example_table(data: Gathered, names: Mapping[int, str], tokenizer: Decoder, config: KLConfig) -> pa.Table:
    """Per dataset, the documents with the largest token KL (window around it) and with the largest mean KL (whole).

    Where documents begin alike, so do the predictions: what they share is looked at in the first of them alone.
    """
    rows: list[ExampleRow] = []
    sums, counts = data.sequence_sums("kl", data.kept_N)
    mean = np.divide(sums, counts, out=np.full(len(sums), -np.inf), where=counts > 0)
    peaks = _peaks(data)
    for dataset in data.tokens.datasets:
        members = [i for i in peaks if data.tokens.dataset_of(i) == dataset]
        by_peak = sorted(members, key=lambda i: (-peaks[i][1], i))[: config.n_examples]
        by_mean = sorted(members, key=lambda i: (-mean[i], i))[: config.n_examples]
        for rank, i in enumerate(by_peak):
            rows.append(_peak_row(data, names, tokenizer, config, i, rank, peaks[i]))
        for rank, i in enumerate(by_mean):
            whole = (0, data.tokens.length_of(i))
            rows.append(_row(data, names, tokenizer, i, whole, peaks[i][0], "mean", rank, float(mean[i])))
    return table_of(ExampleRow, rows)


def _peaks(data: Gathered) -> dict[int, tuple[int, float]]:
    """Position and value of each sequence's largest token KL, of those kept and not the same as in one before."""
    counts_N = data.kept_N & data.tokens.is_new_N
    kl = np.where(counts_N, data.values("kl"), -np.inf)
    found = {}
    for i in np.unique(data.tokens.sequence_N[counts_N]).tolist():
        values = kl[data.tokens.rows_of(i)]
        found[i] = (int(values.argmax()), float(values.max()))
    return found


def _peak_row(
    data: Gathered,
    names: Mapping[int, str],
    tokenizer: Decoder,
    config: KLConfig,
    i: int,
    rank: int,
    peak: tuple[int, float],
) -> ExampleRow:
    position, value = peak
    window = (
        max(0, position - config.context_before),
        min(data.tokens.length_of(i), position + config.context_after + 1),
    )
    return _row(data, names, tokenizer, i, window, position, "peak", rank, value)


def _row(
    data: Gathered,
    names: Mapping[int, str],
    tokenizer: Decoder,
    i: int,
    window: tuple[int, int],
    peak: int,
    ranking: str,
    rank: int,
    score: float,
) -> ExampleRow:
    first = data.tokens.rows_of(i).start
    here = slice(first + window[0], first + window[1])
    ids = data.tokens.ids_N[here].tolist()
    text, offsets = text_with_offsets(tokenizer, ids)
    columns, at = data.columns, first + peak
    nll = columns["delta_nll"][here].tolist()
    return ExampleRow(
        dataset=data.tokens.dataset_of(i),
        ranking=ranking,
        rank=rank,
        sequence=int(data.tokens.documents[i]),
        start=window[0],
        peak=peak,
        score=score,
        text=text,
        tokens=tuple(names[t] for t in ids),
        token_ids=tuple(ids),
        starts=tuple(s for s, _ in offsets),
        ends=tuple(e for _, e in offsets),
        kl=tuple(columns["kl"][here].tolist()),
        delta_nll=tuple(None if np.isnan(v) else v for v in nll),
        top_base=tuple(names[t] for t in columns["top_base"][here].tolist()),
        top_ft=tuple(names[t] for t in columns["top_ft"][here].tolist()),
        risen=tuple(names[t] for t in columns["risen_ids"][at].tolist()),
        risen_change=tuple(columns["risen_change"][at].tolist()),
        fallen=tuple(names[t] for t in columns["fallen_ids"][at].tolist()),
        fallen_change=tuple(columns["fallen_change"][at].tolist()),
    )
