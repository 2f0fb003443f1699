"""Tables from the texts: the ranking, means by dataset and position, tokens, phrases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from diffing.analysis.bootstrap import ratio_interval
from diffing.analysis.over_representation import over_represented
from diffing.analysis.phrases import phrases
from diffing.analysis.token_excess import token_excess_table
from diffing.core.seeds import generator
from diffing.core.tables import table_of
from diffing.data.token_table import TokenTable
from diffing.data.tokens import ROLES, Corpus, TokenSequence
from diffing.methods.perplexity_diff.results import DatasetRow, PhraseRow, PositionRow, TextRow
from diffing.methods.perplexity_diff.writing import SOURCES, Source, Written

_PERCENTILE = 95
_POSITION_RESAMPLES = 200
_LEAST_TEXTS = 3
_TOP_SHARE = 1 / 3
Names = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Scored:
    """A text with its scores, in nats.

    Args:
        written: The text.
        same_tokens: Whether both models read the same tokens.
    """

    written: Written
    same_tokens: bool

    @property
    def sign(self) -> float:
        """1 for texts of the finetuned model, −1 for those of the base."""
        return 1.0 if self.written.source == "finetuned" else -1.0

    @cached_property
    def ratios_T(self) -> np.ndarray:
        """log p − log q of each token; none where the tokenizers differ."""
        text = self.written.scored
        return np.array(text.finetuned) - np.array(text.base) if self.same_tokens else np.zeros(0)

    @property
    def total(self) -> float:
        """log p − log q of the whole text."""
        text = self.written.scored
        return float(self.ratios_T.sum()) if self.same_tokens else float(np.sum(text.finetuned) - np.sum(text.base))

    @property
    def n_bytes(self) -> int:
        """Of the text in UTF-8."""
        return len(self.written.scored.text.encode())

    @property
    def size(self) -> int:
        """Tokens, or bytes where the tokenizers differ: what the advantage is per."""
        return len(self.written.scored.ids) if self.same_tokens else self.n_bytes

    @property
    def advantage(self) -> float:
        """How much likelier the writer finds the text than the other model, per token or byte."""
        return self.sign * self.total / self.size


def ranked(texts: Sequence[Written], same_tokens: bool) -> list[Scored]:
    """Texts of the finetuned model by advantage, largest first, then those of the base."""
    scored = [Scored(t, same_tokens) for t in texts]
    kept = [(i, s) for i, s in enumerate(scored) if s.size]
    return [s for _, s in sorted(kept, key=lambda x: (SOURCES.index(x[1].written.source), -x[1].advantage, x[0]))]


def text_table(texts: Sequence[Scored], names: Names, beginnings: Mapping[tuple[int, ...], str]) -> pa.Table:
    """All texts, ranked within each source.

    Args:
        texts: In order.
        names: By source, the strings of its tokens.
        beginnings: By tokens, the beginnings decoded.
    """
    rows: list[TextRow] = []
    for source in SOURCES:
        mine = [t for t in texts if t.written.source == source]
        rows += [_text_row(rank, t, names, beginnings) for rank, t in enumerate(mine)]
    return table_of(TextRow, rows)


def _text_row(rank: int, t: Scored, names: Names, beginnings: Mapping[tuple[int, ...], str]) -> TextRow:
    text, prefill = t.written.scored, t.written.prefill
    n_tokens = len(text.ids)
    return TextRow(
        source=t.written.source,
        rank=rank,
        dataset=prefill.dataset,
        document=prefill.document,
        prefill=beginnings[prefill.ids],
        text=text.text,
        advantage=t.advantage,
        mean_log_ratio=t.total / n_tokens if t.same_tokens else None,
        per_byte=t.total / t.n_bytes if t.n_bytes else None,
        nll_finetuned=-float(np.mean(text.finetuned)),
        nll_base=-float(np.mean(text.base)),
        n_tokens=n_tokens,
        n_bytes=t.n_bytes,
        is_ended=text.is_ended,
        tokens=tuple(names[t.written.source][i] for i in text.ids),
        token_ids=text.ids,
        log_ratios=tuple(t.ratios_T.tolist()) if t.same_tokens else (None,) * n_tokens,
    )


def dataset_table(texts: Sequence[Scored], seed: int) -> pa.Table:
    """Means, and the share of texts above the 95th percentile of the base's own advantage."""
    rows: list[DatasetRow] = []
    for dataset in dict.fromkeys(t.written.prefill.dataset for t in texts):
        base = _of(texts, dataset, "base")
        threshold = float(np.percentile([t.advantage for t in base], _PERCENTILE)) if base else float("nan")
        rows += [
            _dataset_row(dataset, source, mine, threshold, seed)
            for source in SOURCES
            if (mine := _of(texts, dataset, source))
        ]
    return table_of(DatasetRow, rows)


def _of(texts: Sequence[Scored], dataset: str, source: Source) -> list[Scored]:
    return [t for t in texts if (t.written.prefill.dataset, t.written.source) == (dataset, source)]


def _dataset_row(dataset: str, source: Source, mine: Sequence[Scored], threshold: float, seed: int) -> DatasetRow:
    totals = np.array([t.sign * t.total for t in mine])
    rng = generator(seed, "perplexity_diff", "mean", dataset, source)
    mean = ratio_interval(totals, np.array([t.size for t in mine]), rng)
    n_bytes = np.array([t.n_bytes for t in mine])
    rng = generator(seed, "perplexity_diff", "bytes", dataset, source)
    by_byte = ratio_interval(totals, n_bytes, rng) if n_bytes.any() else None
    values = np.array([t.advantage for t in mine])
    return DatasetRow(
        dataset, source, len(mine), sum(len(t.written.scored.ids) for t in mine), mean.value, mean.low, mean.high,
        by_byte.value if by_byte else None, by_byte.low if by_byte else None, by_byte.high if by_byte else None,
        float(np.median(values)), float(np.percentile(values, _PERCENTILE)), float(values.max()),
        float((values > threshold).mean()),
    )  # fmt: skip


def position_table(texts: Sequence[Scored], seed: int) -> pa.Table:
    """Mean advantage at each new token; empty where the tokenizers differ."""
    rows = []
    for dataset in dict.fromkeys(t.written.prefill.dataset for t in texts):
        for source in SOURCES:
            mine = [t.sign * t.ratios_T for t in _of(texts, dataset, source) if t.same_tokens]
            for position in range(max((len(v) for v in mine), default=0)):
                values = np.array([v[position] for v in mine if len(v) > position])
                rng = generator(seed, "perplexity_diff", "position", dataset, source, position)
                found = ratio_interval(values, np.ones(len(values)), rng, _POSITION_RESAMPLES)
                rows.append(
                    PositionRow(dataset, source, position, len(values), found.value, found.low, found.high)
                )  # fmt: skip
    return table_of(PositionRow, rows)


def token_score_table(texts: Sequence[Scored], names: Mapping[int, str]) -> pa.Table:
    """Tokens of the finetuned model's texts, by how far above the mean log p − log q is where they are written."""
    mine = [t for t in texts if t.written.source == "finetuned"]
    sequences = tuple(_sequence(t, i) for i, t in enumerate(mine))
    corpus = Corpus(("texts",), sequences, "", (), {"texts": len(mine)})
    return token_excess_table(TokenTable.of(corpus), np.concatenate([t.ratios_T for t in mine]), names)


def _sequence(text: Scored, index: int) -> TokenSequence:
    ids = np.array(text.written.scored.ids, dtype=np.int32)
    roles = np.full(len(ids), ROLES.index("text"), dtype=np.uint8)
    nowhere = np.zeros(len(ids), dtype=bool)
    return TokenSequence("texts", index, ids, roles, nowhere, nowhere)


def phrase_table(texts: Sequence[Scored]) -> pa.Table:
    """Phrases of the top third of the finetuned model's texts against the base's, most over-represented first.

    Nothing is compared where no text stands out: where no advantage is above 0.
    """
    mine = [t for t in texts if t.written.source == "finetuned" and t.advantage > 0]
    top = mine[: max(1, round(_TOP_SHARE * len(mine)))]
    base = [t for t in texts if t.written.source == "base"]
    if not mine:
        return table_of(PhraseRow, [])
    ours, theirs = ([phrases(t.written.scored.text) for t in side] for side in (top, base))
    found = over_represented(ours, theirs, _LEAST_TEXTS)
    rows = [PhraseRow(r.item, r.n_texts, r.n_against, r.log_odds, r.z, r.p, r.is_over) for r in found if r.z > 0]
    return table_of(PhraseRow, rows)
