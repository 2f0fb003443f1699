"""Which phrases and tokens are over-represented in the texts of one source against those of another."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import pyarrow as pa

from diffing.analysis.merged_tokens import merge_key
from diffing.analysis.over_representation import Excess, over_represented
from diffing.analysis.phrases import n_words, parts, phrases
from diffing.core.tables import TokenScoreRow, table_of
from diffing.methods.logit_amplification.config import LogitAmplificationConfig
from diffing.methods.logit_amplification.results import PhraseRow, TokenRow
from diffing.methods.logit_amplification.writing import BASE, NULL, Slot, Source, Written

ItemT = TypeVar("ItemT", str, int)
UNAMPLIFIED = Source("amplified", 0.0)


@dataclass(frozen=True)
class Comparison:
    """Texts of one source and those they are compared with; `name` says which those are."""

    of: Source
    against: Source
    name: str


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of a run.

    Args:
        config: Options.
        written: The texts.
        names: String of each token that occurs.
    """

    config: LogitAmplificationConfig
    written: Mapping[Slot, Written]
    names: Mapping[int, str]

    @cached_property
    def made(self) -> list[Comparison]:
        """The comparisons in which the two sides do not consist of the same texts."""
        amplified = [Source("amplified", a) for a in self.config.alphas]
        pairs = [Comparison(source, BASE, "base") for source in (NULL, *amplified)]
        if UNAMPLIFIED in amplified:
            pairs += [Comparison(source, UNAMPLIFIED, "unamplified") for source in amplified if source != UNAMPLIFIED]
        return [c for c in pairs if sorted(self._ids(c.of)) != sorted(self._ids(c.against))]

    @cached_property
    def phrases(self) -> dict[Comparison, list[Excess[str]]]:
        """By comparison, all phrases that were tested."""
        sets = {s: phrases(w.text, self.config.longest_phrase) for s, w in self.written.items()}
        return {c: self._compare(c, sets, self.config.min_texts) for c in self.made}

    @cached_property
    def merged(self) -> dict[Comparison, list[Excess[str]]]:
        """The same of merged tokens."""
        sets = {s: {merge_key(self.names[i]) for i in w.ids} for s, w in self.written.items()}
        return {c: self._compare(c, sets, self.config.min_texts) for c in self.made}

    @cached_property
    def main(self) -> Source:
        """The source whose texts show most: of the positive α (else of all) the one with most phrases against the base.

        Of equals the smallest α.
        """
        amplified = [Source("amplified", a) for a in self.config.alphas]
        chosen = [s for s in amplified if s.alpha is not None and s.alpha > 0] or amplified
        return max(chosen, key=lambda s: (self.n_over(s, "base") or 0, -(s.alpha or 0.0)))

    def n_over(self, of: Source, against: str) -> int | None:
        """Over-represented phrases; None where nothing was compared."""
        found = next((rows for c, rows in self.phrases.items() if (c.of, c.name) == (of, against)), None)
        return None if found is None else sum(r.is_over for r in found)

    def telling(self, of: Source) -> dict[str, float]:
        """Phrases over-represented in a source's texts against the base's, and their z."""
        found = next((rows for c, rows in self.phrases.items() if (c.of, c.name) == (of, "base")), [])
        return {r.item: r.z for r in found if r.is_over}

    def token_scores(self) -> pa.Table:
        """Every token that occurs in texts of the main source, the base or the null, by z in the main source's."""
        sets = {s: set(w.ids) for s, w in self.written.items()}
        ours = {r.item: r for r in self._compare(Comparison(self.main, BASE, "base"), sets, 1)}
        null = {r.item: r for r in self._compare(Comparison(NULL, BASE, "base"), sets, 1)}
        is_null_known = any(c.of == NULL for c in self.made)
        rows = []
        for i in sorted(ours.keys() | null.keys()):
            z, at_null = (side[i].z if i in side else 0.0 for side in (ours, null))
            rows.append(TokenScoreRow(i, self.names[i], z, None, at_null if is_null_known else None))
        return table_of(TokenScoreRow, sorted(rows, key=lambda r: (-r.score, r.token_id)))

    def over_ids(self) -> set[int]:
        """Tokens over-represented in the main source's texts against the base's, of those in `min_texts` texts."""
        sets = {s: set(w.ids) for s, w in self.written.items()}
        found = self._compare(Comparison(self.main, BASE, "base"), sets, self.config.min_texts)
        return {r.item for r in found if r.is_over}

    def _ids(self, source: Source) -> list[tuple[int, ...]]:
        return [w.ids for s, w in self.written.items() if s.source == source]

    def _compare(
        self, comparison: Comparison, sets: Mapping[Slot, Collection[ItemT]], least: int
    ) -> list[Excess[ItemT]]:
        ours, theirs = (
            [items for slot, items in sets.items() if slot.source == source]
            for source in (comparison.of, comparison.against)
        )
        return over_represented(ours, theirs, least)


def phrase_table(found: Comparisons) -> pa.Table:
    """`phrases.parquet`."""
    rows: list[PhraseRow] = []
    for comparison, tested in found.phrases.items():
        whole = parts({r.item: r.n_texts for r in tested if r.is_over}, found.config.longest_phrase)
        n, m = (_n_texts(found, s) for s in (comparison.of, comparison.against))
        rows += [
            PhraseRow(
                comparison.of.name, comparison.of.alpha, comparison.name, rank, r.item, n_words(r.item), r.n_texts,
                r.n_against, r.n_texts / n, r.n_against / m, r.log_odds, r.z, r.p, r.is_over, whole.get(r.item),
            )
            for rank, r in enumerate(tested)
        ]  # fmt: skip
    return table_of(PhraseRow, rows)


def token_table(found: Comparisons) -> pa.Table:
    """`tokens.parquet`."""
    members: dict[str, list[int]] = {}
    for i in sorted({i for w in found.written.values() for i in w.ids}):
        members.setdefault(merge_key(found.names[i]), []).append(i)
    rows: list[TokenRow] = []
    for comparison, tested in found.merged.items():
        n, m = (_n_texts(found, s) for s in (comparison.of, comparison.against))
        rows += [_token_row(found, comparison, rank, r, members[r.item], n, m) for rank, r in enumerate(tested)]
    return table_of(TokenRow, rows)


def _token_row(
    found: Comparisons, comparison: Comparison, rank: int, row: Excess[str], ids: Sequence[int], n: int, m: int
) -> TokenRow:
    return TokenRow(
        comparison.of.name, comparison.of.alpha, comparison.name, rank, row.item,
        tuple(found.names[i] for i in ids), tuple(ids), row.n_texts, row.n_against, row.n_texts / n, row.n_against / m,
        row.log_odds, row.z, row.p, row.is_over,
    )  # fmt: skip


def _n_texts(found: Comparisons, source: Source) -> int:
    return sum(slot.source == source for slot in found.written)
