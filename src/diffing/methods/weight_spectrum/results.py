"""Rows of the tables that `weight_spectrum` writes; the columns are part of the results format.

A weight's `unit` is its place in `weights.parquet`. Output and input are those of its module, whatever way its file is
turned. `base_out` and `base_in` say how long the base's own matrix is along a singular vector of the change, beside a
random direction (1).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightRow:
    """`weights.parquet`: a weight that is compared.

    `layer` is null outside of the blocks; `norm` is ‖ΔW‖, `base_norm` ‖W‖, `relative` their ratio; `share` that of
    ‖ΔW‖² in the sum over all weights; `share_moved` of entries that differ at all; `floor` about the `relative` that
    rounding to the files' dtype gives; `rank` the largest that the change can have; `largest` σ₁; `stable_rank`
    ‖ΔW‖²/σ₁²; `effective_rank` (Σσ²)²/Σσ⁴; `null_…` those of a random change of this shape, norm and rank.
    """

    unit: int
    name: str
    layer: int | None
    module: str
    column: str
    part: str
    kind: str
    n_out: int
    n_in: int | None
    n_numbers: int
    writes_residual: bool
    rank: int | None
    norm: float
    base_norm: float | None
    relative: float | None
    share: float | None
    share_moved: float | None
    floor: float | None
    largest: float | None
    stable_rank: float | None
    effective_rank: float | None
    null_stable_rank: float | None
    null_effective_rank: float | None
    is_exact: bool


@dataclass(frozen=True)
class SpectrumRow:
    """`spectrum.parquet`: a singular value of a change, numbered from 1; `null_share` is a random change's share."""

    unit: int
    layer: int | None
    module: str
    index: int
    singular_value: float
    share: float
    cumulative: float
    null_share: float | None
    base_out: float | None
    base_in: float | None


@dataclass(frozen=True)
class MapRow:
    """`map.parquet`: a cell of the map of layers; the members of a list inside a block (experts) are one cell."""

    layer: int | None
    column: str
    part: str
    n_weights: int
    norm: float
    base_norm: float | None
    relative: float | None


@dataclass(frozen=True)
class PartRow:
    """`parts.parquet`: attention, MLP, embedding, head, norms, and what is neither."""

    part: str
    n_weights: int
    n_moved_weights: int
    n_numbers: int
    norm: float
    base_norm: float | None
    relative: float | None
    share: float | None


@dataclass(frozen=True)
class VectorRow:
    """`vectors.parquet`: an output vector of a matrix that writes into the residual stream; `tensor` names it.

    `positive` and `negative` are the tokens read from it and from its negative, likeliest first.
    """

    unit: int
    layer: int | None
    module: str
    index: int
    singular_value: float
    share: float
    base_out: float | None
    base_in: float | None
    tensor: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclass(frozen=True)
class ReadoutRow:
    """`readouts.parquet`: a token read from one end (positive or negative) of a vector."""

    unit: int
    index: int
    end: str
    rank: int
    token_id: int
    token: str
    probability: float


@dataclass(frozen=True)
class LeftOutRow:
    """`left_out.parquet`: a tensor that is not compared; `where` is base, finetuned or adapter."""

    name: str
    where: str
    reason: str
