"""Rows of the tables that `logit_amplification` writes; the columns are part of the results format.

`source` says who wrote: `base`; `null`, the base again with other random numbers; `amplified`, with the α beside it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextRow:
    """`texts.parquet`: one text. Spans are characters of phrases over-represented at `main_alpha` against the base."""

    source: str
    alpha: float | None
    prompt_number: int
    kind: str
    prompt: str
    sample: int
    text: str
    n_tokens: int
    is_ended: bool
    log_ratio: float
    finetuned_nll: float
    base_nll: float
    repetition: float
    capitals: float | None
    phrases: tuple[str, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class SourceRow:
    """`sources.parquet`: the texts of one source, of all kinds of prompt or of one; `low` and `high` bound at 95 %."""

    source: str
    alpha: float | None
    kind: str
    n_texts: int
    n_tokens: int
    log_ratio: float
    log_ratio_low: float | None
    log_ratio_high: float | None
    base_nll: float
    base_nll_low: float | None
    base_nll_high: float | None
    base_perplexity: float
    finetuned_nll: float
    distinct: float
    repetition: float
    broken: float
    capitals: float | None
    capitals_low: float | None
    capitals_high: float | None
    ended: float
    n_over_base: int | None
    n_over_unamplified: int | None


@dataclass(frozen=True)
class PhraseRow:
    """`phrases.parquet`: one phrase in the texts of a source against other texts; `rank` from 0, largest z first."""

    source: str
    alpha: float | None
    against: str
    rank: int
    phrase: str
    n_words: int
    n_texts: int
    n_against: int
    share: float
    share_against: float
    log_odds: float
    z: float
    p: float
    is_over: bool
    part_of: str | None


@dataclass(frozen=True)
class TokenRow:
    """`tokens.parquet`: tokens that differ in case or leading space alone, taken together."""

    source: str
    alpha: float | None
    against: str
    rank: int
    key: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    n_texts: int
    n_against: int
    share: float
    share_against: float
    log_odds: float
    z: float
    p: float
    is_over: bool
