"""Rows of the tables that `activation_difference_lens` writes; the columns are part of the results format.

A place is `dataset`, `kind` and `position`: of kind `first` counted from the start of a document (0 upward), of kind
`reply` from the first token that the assistant wrote (−1 downward). `of` is delta (the mean of f − b), base or
finetuned (the means of b and f).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PositionRow:
    """`positions.parquet`: the means at a place after a layer.

    `norm` is ‖δ̄‖, `stderr` √(Σ‖δ−δ̄‖²/(n(n−1))), `chance` what ‖δ̄‖ would be on average if each document's δ had a random
    sign; `explained` is ‖δ̄‖² / mean ‖δ‖², `relative` ‖δ̄‖ / mean ‖f‖, `beyond_chance` √(‖δ̄‖² − stderr²) / mean ‖f‖, or
    0 where ‖δ̄‖ is at most twice `chance`. `token` is the commonest there, `token_share` its
    share of the documents; `n_prefixes` counts the different beginnings up to the place.
    """

    layer: int
    dataset: str
    kind: str
    position: int
    token_id: int
    token: str
    token_share: float
    n_documents: int
    n_prefixes: int
    is_ranked: bool
    norm: float
    stderr: float | None
    chance: float
    explained: float | None
    relative: float
    beyond_chance: float
    mean_norm_delta: float
    mean_norm_base: float
    mean_norm_finetuned: float
    tensor: str


@dataclass(frozen=True)
class ReadoutRow:
    """`readouts.parquet`: a token read from a mean, or (`end` negative) from its negative, by final norm and head."""

    layer: int
    dataset: str
    kind: str
    position: int
    of: str
    end: str
    rank: int
    token_id: int
    token: str
    probability: float


@dataclass(frozen=True)
class PatchscopeRow:
    """`patchscope.parquet`: a token that a mean says in identity prompts, at the chosen scale.

    `probability` is the average over the prompts, `random` what random directions of that length give the token;
    `is_shared`: it is among the likeliest in every prompt.
    """

    layer: int
    dataset: str
    kind: str
    position: int
    of: str
    scale: float
    rank: int
    token_id: int
    token: str
    probability: float
    random: float
    is_shared: bool


@dataclass(frozen=True)
class ScaleRow:
    """`scales.parquet`: the mean pairwise cosine of the unembeddings of the 20 likeliest tokens, by scale."""

    layer: int
    dataset: str
    kind: str
    position: int
    of: str
    scale: float
    coherence: float
    random_coherence: float
    is_chosen: bool


@dataclass(frozen=True)
class StrengthRow:
    """`strengths.parquet`: texts steered at one strength; strength 0 is without steering.

    `perplexity` (under the base) and `repetition` are medians over the texts, the limits the 95th percentiles of
    unsteered texts.
    """

    layer: int
    dataset: str
    kind: str
    position: int
    strength: float
    n_texts: int
    perplexity: float | None
    repetition: float | None
    perplexity_limit: float | None
    repetition_limit: float | None
    is_within: bool
    is_chosen: bool


@dataclass(frozen=True)
class TextRow:
    """`texts.parquet`: a text steered beside one that is not, of the same prompt and random numbers."""

    layer: int
    dataset: str
    kind: str
    position: int
    strength: float
    is_chosen: bool
    prompt: str
    unsteered: str
    steered: str
    perplexity: float | None
    repetition: float | None


@dataclass(frozen=True)
class CausalRow:
    """`causal.parquet`: what a change of the finetuned stream does to its loss on a dataset's text.

    `change` is toward_base (the component along δ̄ replaced by the base's), random (the same along a random direction)
    or random_matched (a random direction added, as long as the first change was at each token). `effect` is the loss
    changed minus unchanged, nats per token, with its 95 % interval; `kl` KL(unchanged ‖ changed); `mean_size` the mean
    length of the change.
    """

    layer: int
    dataset: str
    kind: str
    position: int
    text: str
    change: str
    number: int
    n_tokens: int
    effect: float
    low: float | None
    high: float | None
    kl: float
    mean_size: float
