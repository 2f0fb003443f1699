"""Rows of the tables that `weight_amplification` writes; the columns are part of the results format."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SettingRow:
    """`settings.parquet`: one way of scaling the change, and whether the model still computed.

    `part` is `whole`, or the third of the depth and the kind of module that alone has the factor; everything else then
    has the factor `rest`. `problem` says why there are no numbers.
    """

    setting: int
    part: str
    factor: float
    rest: float | None
    layers: str
    modules: str
    n_modules: int
    problem: str | None


@dataclass(frozen=True)
class EffectRow:
    """`effects.parquet`: mean KL from the base, or mean ΔNLL, over a slice of one dataset at one setting.

    `relative` is the mean over that of the finetuned model itself; `low` and `high` bound the mean at 95 %.
    """

    setting: int
    part: str
    factor: float
    dataset: str
    metric: str
    n_sequences: int
    n_tokens: int
    mean: float | None
    low: float | None
    high: float | None
    relative: float | None


@dataclass(frozen=True)
class GrowthRow:
    """`growth.parquet`: KL grows as factor^exponent from one factor of the whole change to the next."""

    dataset: str
    from_factor: float
    to_factor: float
    exponent: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class TextRow:
    """`texts.parquet`: one text; `prompt` numbers prompts, whose random numbers are the same at every setting.

    Log-probabilities are means per token, in nats, under the base and under the finetuned model itself.
    """

    setting: int
    part: str
    factor: float
    prompt: int
    kind: str
    prompt_text: str
    text: str
    n_tokens: int
    is_ended: bool
    log_prob_base: float
    log_prob_ft: float
    repetition: float
    capitals: float | None
    differs: bool


@dataclass(frozen=True)
class TextMeasureRow:
    """`text_measures.parquet`: mean of one measure over the texts of one kind at one setting."""

    setting: int
    part: str
    factor: float
    kind: str
    measure: str
    n_texts: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PhraseRow:
    """`phrases.parquet`: a phrase that stands in more of a factor's texts than of the base's; rank from 0."""

    factor: float
    rank: int
    phrase: str
    n_texts: int
    n_against: int
    log_odds: float
    z: float
    p: float
    is_over: bool
