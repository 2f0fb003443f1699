"""Options of `logit_amplification`."""

import math

from pydantic import Field, field_validator

from diffing.core.method import MethodConfig
from diffing.data.prefills import EMBEDDED, prefill_digest

_MOST_ALPHAS = 12


class LogitAmplificationConfig(MethodConfig):
    """Options of amplified decoding.

    Args:
        alphas: By how much the difference of the models is amplified; 0 is the finetuned model.
        epsilon: Only tokens of at least so many times the finetuned model's largest probability are drawn; 0: all.
        prompts: `embedded`, or a file of your own: jsonl with `text` and `kind` (raw or chat), or txt, a raw prompt on
            each line.
        n_samples: Texts for each prompt and α.
        max_new_tokens: Tokens of a text, at most.
        temperature: Divides the amplified log-probabilities; 0: always the likeliest token.
        longest_phrase: Words of the longest phrase that is counted.
        min_texts: Texts, of the two sets compared, that a phrase must be in to be tested.
    """

    name: str = "logit_amplification"
    alphas: tuple[float, ...] = (0.0, 1.0, 3.0)
    epsilon: float = Field(default=0.1, ge=0, le=1)
    prompts: str = EMBEDDED
    n_samples: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=48, ge=1)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    longest_phrase: int = Field(default=3, ge=1, le=8)
    min_texts: int = Field(default=4, ge=1)

    @field_validator("alphas")
    @classmethod
    def _usable(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("name at least one α, such as [0,1,3]")
        if not all(math.isfinite(a) for a in value):
            raise ValueError("every α must be a finite number")
        if len(value) > _MOST_ALPHAS:
            raise ValueError(f"at most {_MOST_ALPHAS} values of α")
        return tuple(sorted(set(value)))


def inputs_of(config: LogitAmplificationConfig) -> dict[str, str]:
    """Digest of the prompts.

    Raises:
        UserError: Their file cannot be found.
    """
    return {"prompts": prefill_digest(config.prompts)}
