"""Rows of the tables that `pca` writes; the columns are part of the results format.

A space is what was decomposed at one place: `layer` and `site`, `target` (delta, base or finetuned), `centring`
(centred: the covariance; uncentred: E[x xᵀ], which keeps the mean). Components are numbered from 1. `examples.parquet`
has the rows of `analysis/windows.py`: of kind `positive` and `negative` (`unit` is that of a component), and `subspace`
(`unit` is that of a space, ranked within a dataset).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpaceRow:
    """`spaces.parquet`: a decomposition.

    `total` is the sum of its eigenvalues, per token; `mean_share` ‖E x‖² / E‖x‖²; `participation_ratio` (Σλ)² / Σλ²;
    `n_above_null` counts the components that exceed their null, `share_above_null` is their share of `total`.
    """

    unit: int
    layer: int
    site: str
    target: str
    centring: str
    n_tokens: int
    n_not_finite: int
    n_unusual: int
    total: float
    mean_norm: float
    mean_share: float | None
    participation_ratio: float | None
    n_above_null: int
    share_above_null: float | None
    n_null_tokens: int
    n_null_documents: int
    is_exact: bool


@dataclass(frozen=True)
class SpectrumRow:
    """`spectrum.parquet`: an eigenvalue, its share of the total, and the 95th percentile of the null's at this rank."""

    layer: int
    site: str
    target: str
    centring: str
    component: int
    eigenvalue: float
    share: float | None
    cumulative: float | None
    null_p95: float
    is_above_null: bool


@dataclass(frozen=True)
class ComponentRow:
    """`components.parquet`: a leading component.

    `tensor` names its unit vector v; `n_coordinates` is 1/Σ vᵢ⁴, 1 for a single coordinate of the residual stream;
    `n_tokens_carrying` is (Σs²)²/Σs⁴ over the scores s, 1 when all of its variance is that of one token;
    `cosine_with_mean` is that with the mean shift; `positive` and `negative` are the tokens read from it and from its
    negative, likeliest first.
    """

    unit: int
    layer: int
    site: str
    target: str
    centring: str
    component: int
    eigenvalue: float
    share: float
    cumulative: float
    null_p95: float
    is_above_null: bool
    n_coordinates: float
    n_tokens_carrying: float
    cosine_with_mean: float | None
    tensor: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclass(frozen=True)
class ReadoutRow:
    """`readouts.parquet`: a token read from a direction.

    `of` is `component` (`unit` is that of a component) or `mean` (that of a space); `end` is positive or negative.
    """

    of: str
    unit: int
    end: str
    rank: int
    token_id: int
    token: str
    probability: float


@dataclass(frozen=True)
class DatasetRow:
    """`datasets.parquet`: a component's scores over a dataset's kept tokens; `low` and `high` bound the mean at 95 %.

    `mean_square` is in the units of eigenvalues; `frequency` is the share of tokens with |score| above 2√eigenvalue.
    """

    unit: int
    layer: int
    site: str
    target: str
    centring: str
    component: int
    dataset: str
    n_documents: int
    n_tokens: int
    mean: float
    low: float | None
    high: float | None
    mean_square: float
    frequency: float
