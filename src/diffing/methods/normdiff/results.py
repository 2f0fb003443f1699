"""Rows of the tables that `normdiff` writes; the columns are part of the results format.

`layer` is a block's index and `site` the place in it. Means leave out tokens whose activations are not finite.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenRow:
    """`tokens.parquet`: one token at one layer and site; metrics are null where activations are not finite."""

    dataset: str
    sequence: int
    position: int
    token_id: int
    token: str
    layer: int
    site: str
    norm_diff: float | None
    relative: float | None
    cosine: float | None
    norm_base: float | None
    norm_ft: float | None
    role: str
    is_template: bool
    kept: bool


@dataclass(frozen=True)
class DatasetRow:
    """`datasets.parquet`: one metric of a dataset's kept tokens at one layer; `low` and `high` bound the mean at 95 %.

    `null` is the same metric of the base model against itself in another batch shape.
    """

    dataset: str
    layer: int
    site: str
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
    """`positions.parquet`: means over the documents that reach a position; no position is left out here."""

    dataset: str
    layer: int
    site: str
    position: int
    n_sequences: int
    mean_norm_diff: float
    mean_relative: float
    low: float | None
    high: float | None
    mean_cosine: float | None
    mean_norm_base: float
    mean_norm_ft: float


@dataclass(frozen=True)
class RoleRow:
    """`roles.parquet`: kept tokens by chat role and by whether the template wrote them."""

    dataset: str
    layer: int
    site: str
    role: str
    is_template: bool
    n_tokens: int
    mean_norm_diff: float
    mean_relative: float
    low: float | None
    high: float | None
    mean_cosine: float | None


@dataclass(frozen=True)
class TemplateTokenRow:
    """`template_tokens.parquet`: a token that a chat template wrote, leading positions left out."""

    dataset: str
    layer: int
    site: str
    token_id: int
    token: str
    n_tokens: int
    mean_norm_diff: float
    mean_relative: float
    mean_cosine: float | None


@dataclass(frozen=True)
class SequenceRow:
    """`sequences.parquet`: one document at one layer, over its kept tokens."""

    dataset: str
    sequence: int
    layer: int
    site: str
    n_tokens: int
    mean_norm_diff: float
    mean_relative: float
    max_relative: float
    mean_cosine: float | None


@dataclass(frozen=True)
class ExampleRow:
    """`examples.parquet`: a stretch of a document at the example layer, with per-token values.

    `ranking` is `peak` (by the largest value of `metric` at one token) or `mean` (whole document, by the mean).
    """

    dataset: str
    metric: str
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
    norm_diff: tuple[float | None, ...]
    relative: tuple[float | None, ...]
    cosine: tuple[float | None, ...]
    norm_base: tuple[float | None, ...]
    norm_ft: tuple[float | None, ...]


@dataclass(frozen=True)
class VectorRow:
    """`vectors.parquet`: a saved mean difference.

    `key` names the tensors `<key>/mean_delta`, of kind `all` also `<key>/mean_base` and `<key>/mean_finetuned`;
    `stderr` is √(E‖δ − δ̄‖² / n) (null for one token), `explained` ‖δ̄‖² / E‖δ‖².
    """

    key: str
    layer: int
    site: str
    dataset: str
    kind: str
    position: int | None
    token_id: int | None
    token: str | None
    n_tokens: int
    norm: float
    stderr: float | None
    explained: float | None
    mean_norm_base: float
