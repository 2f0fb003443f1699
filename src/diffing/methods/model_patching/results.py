"""Columns of the tables of `model_patching`."""

from dataclasses import dataclass

ALL = "all datasets"
BASE_INTO_FINETUNED = "base into finetuned"
FINETUNED_INTO_BASE = "finetuned into base"
DIRECTIONS = (BASE_INTO_FINETUNED, FINETUNED_INTO_BASE)


@dataclass(frozen=True)
class PromptRow:
    """One prompt: both texts, and where they part.

    Logit differences are of the finetuned model's token minus the base's.

    Args:
        dataset: Its dataset.
        document: Row of its document.
        n_prompt_tokens: Tokens of the prompt.
        prompt: Its text.
        position: New tokens that both wrote before they part; None: they do not.
        is_compared: Whether states were patched.
        is_near_tie: Whether one of the models would almost have chosen otherwise.
        base_text: What the base wrote, special tokens shown.
        ft_text: What the finetuned model wrote.
        base_start: Characters of `base_text` before the token at which they part.
        base_end: And where that token ends.
        ft_start: The same of `ft_text`.
        ft_end: The same of `ft_text`.
        base_token_id: The base's choice.
        base_token: As text.
        ft_token_id: The finetuned model's choice.
        ft_token: As text.
        margin_base: The base's logit of its choice minus its largest other one.
        margin_ft: The same of the finetuned model.
        base_difference: Logit difference of the base, L(base, base).
        ft_difference: Of the finetuned model, L(finetuned, finetuned).
        effect: Their difference.
        base_into_ft: L(base, finetuned), from the embedding to the head.
        ft_into_base: L(finetuned, base).
    """

    dataset: str
    document: int
    n_prompt_tokens: int
    prompt: str
    position: int | None
    is_compared: bool
    is_near_tie: bool
    base_text: str
    ft_text: str
    base_start: int | None
    base_end: int | None
    ft_start: int | None
    ft_end: int | None
    base_token_id: int | None
    base_token: str | None
    ft_token_id: int | None
    ft_token: str | None
    margin_base: float | None
    margin_ft: float | None
    base_difference: float | None
    ft_difference: float | None
    effect: float | None
    base_into_ft: tuple[float, ...]
    ft_into_base: tuple[float, ...]


@dataclass(frozen=True)
class DatasetRow:
    """A dataset, or all: how often and where texts part, and how deep the choice is made."""

    dataset: str
    n_prompts: int
    n_diverged: int
    n_compared: int
    n_near_ties: int
    share: float
    share_low: float | None
    share_high: float | None
    mean_position: float | None
    position_low: float | None
    position_high: float | None
    effect: float | None
    effect_low: float | None
    effect_high: float | None
    half_layer: float | None
    half_low: float | None
    half_high: float | None


@dataclass(frozen=True)
class LayerRow:
    """States up to a point put into the other model: how much of the donor's answer follows.

    Args:
        dataset: Its dataset, or all.
        direction: Whose states are put where.
        layer: The point: −1 the embedding, 0 to L − 1 the blocks, L after the final norm, L + 1 the head.
        point: Its name.
        n_prompts: Divergences averaged over.
        recovery: Moved logit difference over the models' difference, sum over sum: 0 the receiver, 1 the donor.
        low: Of the 95 % interval.
        high: Of the 95 % interval.
        logit_difference: Mean of L.
    """

    dataset: str
    direction: str
    layer: int
    point: str
    n_prompts: int
    recovery: float | None
    low: float | None
    high: float | None
    logit_difference: float


@dataclass(frozen=True)
class FactorialRow:
    """The 2 × 2 of upstream states and late stack at a point: cell means, main effects, interaction, in logits."""

    dataset: str
    layer: int
    point: str
    n_prompts: int
    base_base: float
    ft_base: float
    base_ft: float
    ft_ft: float
    upstream: float
    upstream_low: float | None
    upstream_high: float | None
    late: float
    late_low: float | None
    late_high: float | None
    interaction: float
    interaction_low: float | None
    interaction_high: float | None
    upstream_share: float | None
    share_low: float | None
    share_high: float | None


@dataclass(frozen=True)
class DivergenceTokenRow:
    """A token that a model chose where texts part: by how many prompts each model did."""

    token_id: int
    token: str
    n_ft: int
    n_base: int
    share_ft: float
    share_base: float
