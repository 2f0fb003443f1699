"""Options of `weight_amplification`."""

import math
from collections.abc import Mapping

from pydantic import Field, field_validator

from diffing.core.amplification import AmplificationSpec, read_amplification
from diffing.core.method import MethodConfig
from diffing.data.prefills import EMBEDDED, prefill_digest


class WeightAmplificationConfig(MethodConfig):
    """Options of the scaled change.

    Args:
        factors: Of the whole change; 0 (the base) and 1 (the finetuned model) are always among them.
        map_factor: Factor of one part of the change (a third of the depth, attention or MLP) in the map.
        map_rest: Factor of everything else there.
        map_texts: Whether texts are written for the parts of the map too.
        n_documents: Documents per dataset that are read at every setting, evenly spread.
        document_tokens: Of each, the first so many tokens.
        prompts: `embedded`, or a file: jsonl with `text` and `kind` (raw or chat), or txt, a raw prompt a line.
        n_prompts: At most so many of them, raw ones and chats in turn.
        max_new_tokens: Tokens of a text, at most.
        temperature: Of sampling; the same random numbers at every setting.
        longest_phrase: Words of the longest phrase that is counted.
        n_phrases: Phrases listed per factor.
        export_factor: Write the adapter scaled by this (a number, a preset, a file of rules, or rules) to
            `files/adapter`; null: none is written.
    """

    name: str = "weight_amplification"
    factors: tuple[float, ...] = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
    map_factor: float = Field(default=1.0, allow_inf_nan=False)
    map_rest: float = Field(default=0.0, allow_inf_nan=False)
    map_texts: bool = False
    n_documents: int = Field(default=10, ge=1)
    document_tokens: int = Field(default=48, ge=2)
    prompts: str = EMBEDDED
    n_prompts: int = Field(default=16, ge=1)
    max_new_tokens: int = Field(default=48, ge=1)
    temperature: float = Field(default=0.7, ge=0, allow_inf_nan=False)
    longest_phrase: int = Field(default=2, ge=1, le=8)
    n_phrases: int = Field(default=50, ge=1)
    export_factor: AmplificationSpec | None = None

    @field_validator("factors", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return (value,) if isinstance(value, (int, float)) else value

    @field_validator("factors")
    @classmethod
    def _finite(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if odd := [f for f in value if not math.isfinite(f)]:
            raise ValueError(f"{odd[0]} is no finite number")
        return value

    @field_validator("export_factor", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        return read_amplification(value, "diffing.method.export_factor")

    @property
    def grid(self) -> tuple[float, ...]:
        """The factors of the whole change, ascending, 0 and 1 among them."""
        return tuple(sorted({0.0, 1.0, *(float(f) for f in self.factors)}))


def inputs(config: WeightAmplificationConfig) -> Mapping[str, str]:
    """Digest of the prompts.

    Raises:
        UserError: Their file cannot be found.
    """
    return {"prompts": prefill_digest(config.prompts)}
