"""Rows of the tables that dictionary methods write; the columns are part of the results format.

Activations and norms are in normalised units unless a column says raw; unknown numbers are null.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LatentRow:
    """`latents.parquet`: one latent, the most telling first (`rank`).

    Args:
        latent: Its number.
        rank: Place by how telling it is.
        tag: See `tags.tag`.
        verdict: Of an ft_only latent: specific, shrunk or decoupled; null for others.
        is_dead: Active at no kept token.
        frequency: Share of kept tokens at which it is active.
        mean_activation: Where it is active.
        maximum: Largest activation.
        maximum_raw: What the finetuned model's stream (or the difference) gains in length there, in raw units.
        energy_share: Σ ‖a_j d_j‖² over all tokens and sites, as a share of all latents'.
        norm_base: ‖d_j^base‖; null for a difference.
        norm_ft: ‖d_j^ft‖; of a difference ‖d_j‖.
        norm_base_raw: The same in raw units.
        norm_ft_raw: The same in raw units.
        relative_norm: ½((‖d^b‖ − ‖d^f‖)/max + 1): 0 finetuned only, ½ shared, 1 base only.
        decoder_cosine: Of the two models' rows.
        nu_error: ν from the errors; large: the base has it too, its row was shrunk.
        nu_reconstruction: ν from the reconstructions; large: in the base other latents stand for it.
        nu_activation: ν from the activations themselves.
        beta_ft_error: β^ft that `nu_error` divides by.
        other_seed_cosine: Largest cosine of its decoder row with a live one of another seed; null with one seed.
        comes_back: Whether that latent is as similar as 0.7 and has the same tag.
        promoted: Tokens that its row promotes, by the logit lens of the finetuned model.
        suppressed: The same of the negative row.
    """

    latent: int
    rank: int
    tag: str
    verdict: str | None
    is_dead: bool
    frequency: float
    mean_activation: float | None
    maximum: float
    maximum_raw: float
    energy_share: float
    norm_base: float | None
    norm_ft: float
    norm_base_raw: float | None
    norm_ft_raw: float
    relative_norm: float | None
    decoder_cosine: float | None
    nu_error: float | None
    nu_reconstruction: float | None
    nu_activation: float | None
    beta_ft_error: float | None
    other_seed_cosine: float | None
    comes_back: bool | None
    promoted: str
    suppressed: str


@dataclass(frozen=True)
class LatentGroupRow:
    """`latent_groups.parquet`: how often a live latent is active in a dataset, or in a range of input positions.

    `kind` is dataset or position; `group` a dataset's name or a range such as 8–15; `first` its first position.
    """

    latent: int
    kind: str
    group: str
    first: int | None
    n_tokens: int
    frequency: float
    mean_activation: float | None


@dataclass(frozen=True)
class LatentTokenRow:
    """`latent_tokens.parquet`: tokens that a latent's row (`promoted`) or its negative (`suppressed`) promotes."""

    latent: int
    side: str
    rank: int
    token_id: int
    token: str
    probability: float


@dataclass(frozen=True)
class QualityRow:
    """`quality.parquet`: how well the dictionary does on a dataset; `is_held_out`: documents it did not learn from.

    `site` is base, finetuned, difference (what a difference dictionary reads) or explained difference (f̂ − b̂
    against δ, of a crosscoder).
    """

    dataset: str
    is_held_out: bool
    site: str
    n_tokens: int
    fve: float | None
    l0: float
    dead_share: float


@dataclass(frozen=True)
class CurveRow:
    """`training.parquet`: a step of the training of one seed."""

    seed: int
    step: int
    n_tokens: int
    fve: float
    l0: float
    n_dead: int
    loss: float
    aux: float
    lr: float


@dataclass(frozen=True)
class SplicedRow:
    """`loss_recovered.parquet`: a model's loss (nats per token) with its activations replaced by reconstructions.

    `recovered` is (ce_mean − ce_spliced) / (ce_mean − ce), with every activation replaced by the mean for `ce_mean`;
    null where that changes nothing.
    """

    dataset: str
    model: str
    n_tokens: int
    ce: float
    ce_spliced: float
    ce_mean: float
    recovered: float | None


@dataclass(frozen=True)
class CausalRow:
    """`causal.parquet`: what taking latents out of the finetuned model, or putting them into the base, does.

    `latents` is claimed (the most telling ones) or random (one row for each set of matched size); `effect` is the mean
    change of the loss in nats per token, `kl` the mean KL from the unchanged model, `size` the mean length of what was
    taken or put, in raw units.
    """

    dataset: str
    change: str
    latents: str
    number: int
    n_latents: int
    n_tokens: int
    effect: float
    low: float | None
    high: float | None
    kl: float
    size: float


@dataclass(frozen=True)
class CausalTextRow:
    """`causal_texts.parquet`: a text of the finetuned model with latents held down, or of the base with them held up.

    `latents` is unchanged, claimed or random. `shared_tokens`: at its beginning, with the unchanged text; `score`: mean
    log p − log q of its new tokens under the unchanged models, nats per token; `change_of_score`: against the
    unchanged text; null where nothing was written.
    """

    dataset: str
    document: int
    change: str
    latents: str
    number: int
    prompt: str
    text: str
    shared_tokens: int
    score: float | None
    change_of_score: float | None


@dataclass(frozen=True)
class CausalTextMeanRow:
    """`causal_text_means.parquet`: mean over the texts of a set, with an interval by texts at 95 %."""

    change: str
    latents: str
    number: int
    n_texts: int
    change_of_score: float
    low: float | None
    high: float | None
    shared_tokens: float


@dataclass(frozen=True)
class CoactivationRow:
    """`coactivation.parquet`: two telling latents that are active at the same tokens; `jaccard`: both over either."""

    latent: int
    other: int
    n_both: int
    jaccard: float
    lift: float
