"""Rows of the tables that `kl` writes; the columns are part of the results format."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenRow:
    """`tokens.parquet`: one input position. Quantities speak of the prediction made at it; nats."""

    dataset: str
    sequence: int
    position: int
    token_id: int
    token: str
    next_token_id: int | None
    next_token: str | None
    kl: float
    reverse_kl: float
    js: float
    delta_nll: float | None
    entropy_base: float
    entropy_ft: float
    top1_agree: bool
    role: str
    kept: bool


@dataclass(frozen=True)
class SequenceRow:
    """`sequences.parquet`: one document."""

    dataset: str
    sequence: int
    n_tokens: int
    mean_kl: float
    max_kl: float
    mean_reverse_kl: float
    mean_js: float
    mean_delta_nll: float | None
    top1_agree: float


@dataclass(frozen=True)
class DatasetRow:
    """`datasets.parquet`: one metric on one dataset; `low` and `high` bound the mean at 95 %."""

    dataset: str
    metric: str
    n_sequences: int
    n_tokens: int
    mean: float
    low: float | None
    high: float | None
    sd: float | None
    median: float
    p5: float
    p25: float
    p75: float
    p95: float
    p99: float
    maximum: float
    null: float | None


@dataclass(frozen=True)
class PositionRow:
    """`positions.parquet`: mean over the documents that reach this position (no positions are left out)."""

    dataset: str
    position: int
    n_sequences: int
    mean_kl: float
    low: float | None
    high: float | None
    mean_delta_nll: float | None


@dataclass(frozen=True)
class RoleRow:
    """`roles.parquet`: kept tokens by chat role and by whether the template wrote them."""

    dataset: str
    role: str
    is_template: bool
    n_tokens: int
    mean_kl: float
    low: float | None
    high: float | None
    mean_delta_nll: float | None


@dataclass(frozen=True)
class ExampleRow:
    """`examples.parquet`: a stretch of a document, with per-token values.

    `ranking` is `peak` (by its largest token KL) or `mean` (whole document, by mean KL).
    """

    dataset: str
    ranking: str
    rank: int
    sequence: int
    start: int
    peak: int
    score: float
    text: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    kl: tuple[float, ...]
    delta_nll: tuple[float | None, ...]
    top_base: tuple[str, ...]
    top_ft: tuple[str, ...]
    risen: tuple[str, ...]
    risen_change: tuple[float, ...]
    fallen: tuple[str, ...]
    fallen_change: tuple[float, ...]


@dataclass(frozen=True)
class RisenFallenRow:
    """`risen_fallen.parquet`: how often a token was among the k that rose, or fell, most at a position."""

    dataset: str
    direction: str
    rank: int
    token_id: int
    token: str
    n_positions: int
    share: float
    mean_change: float
    mean_probability_change: float
    kl_share: float
