"""Rows of the tables that `diff_mining` writes; the columns are part of the results format.

`dataset` is a dataset's name, or `all`. `kind` is `single` for vocabulary tokens, or `merged` for tokens that differ in
case or leading spaces alone, taken together: a position counts once for a group; `token` is then its most frequent
token, `token_ids` are those that were counted, the most frequent first.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetRow:
    """`datasets.parquet`: a dataset. `mean_strength` is the mean over positions of the mean of the K largest D."""

    dataset: str
    n_documents: int
    n_positions: int
    mean_strength: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class OrderingRow:
    """`orderings.parquet`: a token in one order of one dataset.

    `ordering` is `occurrence`, `mean`, `asymmetry` or `z`. `largest` and `smallest` are the shares of positions at
    which the token is among the K largest, and smallest, D; `mean_difference` is its mean D and `positive` the share of
    positions at which D is above 0 (of a merged token: those of its token with the largest mean D). `null` is `largest`
    in the null runs; `z` is how far `largest` is above it, in standard errors and a constant (see the docs page).
    """

    ordering: str
    dataset: str
    kind: str
    rank: int
    token: str
    token_ids: tuple[int, ...]
    largest: float
    largest_stderr: float | None
    smallest: float
    asymmetry: float
    mean_difference: float
    mean_stderr: float | None
    positive: float
    null: float | None
    z: float | None


@dataclass(frozen=True)
class MergedTokenRow:
    """`merged_tokens.parquet`: every group that is among the K largest somewhere, by occurrence."""

    dataset: str
    rank: int
    token: str
    token_ids: tuple[int, ...]
    largest: float
    largest_stderr: float | None
    smallest: float
    null: float | None
    z: float | None


@dataclass(frozen=True)
class PositionRow:
    """`positions.parquet`: a merged token in a bucket of input positions (no positions are left out).

    `share` is that of the bucket's positions at which it is among the K largest; `share_everywhere` that of all.
    """

    dataset: str
    bucket: int
    positions: str
    n_positions: int
    rank: int
    token: str
    token_ids: tuple[int, ...]
    share: float
    share_everywhere: float


@dataclass(frozen=True)
class TopicRow:
    """`topics.parquet`: a token of a topic. `share` is the topic's part of all weights, `weight` the token's part."""

    topic: int
    share: float
    rank: int
    token: str
    token_ids: tuple[int, ...]
    weight: float
