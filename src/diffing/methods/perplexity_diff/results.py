"""Rows of the tables that `perplexity_diff` writes; the columns are part of the results format."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextRow:
    """`texts.parquet`: a text that one of the models wrote; nats.

    `source` is who wrote it: `finetuned` or `base`; `rank` is by `advantage` among the texts of that source.
    `mean_log_ratio` is the mean of log p − log q over its tokens, p of the finetuned model, q of the base, `per_byte`
    their sum by the bytes of its text. `advantage` is how much likelier its writer finds it than the other model: that
    mean, or its negative for texts of the base, per token, or per byte where the tokenizers differ. `log_ratios` has a
    value for each token; None where the tokenizers differ.
    """

    source: str
    rank: int
    dataset: str
    document: int
    prefill: str
    text: str
    advantage: float
    mean_log_ratio: float | None
    per_byte: float | None
    nll_finetuned: float
    nll_base: float
    n_tokens: int
    n_bytes: int
    is_ended: bool
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    log_ratios: tuple[float | None, ...]


@dataclass(frozen=True)
class DatasetRow:
    """`datasets.parquet`: the texts of one source on one dataset; `low` and `high` bound the mean at 95 %."""

    dataset: str
    source: str
    n_texts: int
    n_tokens: int
    advantage: float
    low: float | None
    high: float | None
    per_byte: float | None
    per_byte_low: float | None
    per_byte_high: float | None
    median: float
    p95: float
    maximum: float
    share_above_base: float


@dataclass(frozen=True)
class PositionRow:
    """`positions.parquet`: mean advantage of the n-th new token of the texts of one source on one dataset."""

    dataset: str
    source: str
    position: int
    n_texts: int
    advantage: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PhraseRow:
    """`phrases.parquet`: a word or phrase of the finetuned model's top third of texts, beside the base's texts."""

    phrase: str
    n_top: int
    n_base: int
    log_odds: float
    z: float
    p: float
    is_over: bool
