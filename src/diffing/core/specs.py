"""What is compared and on which text: models, organisms, pairs, datasets, corpora.

A source is named by one string, `id`: `embedded:NAME` for what the package ships, a local path,
or a hub id `org/name`.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from diffing.core.amplification import AmplificationSpec, read_amplification
from diffing.core.config import Strict

EMBEDDED = "embedded:"
Kind = Literal["auto", "adapter", "model"]
Sharing = Literal["auto", "adapter", "merged", "separate"]
Dtype = Literal["float32", "bfloat16", "float16"]
NullPair = Literal["none", "identical", "dtype", "generic", "generic_other", "seeds"]


def is_embedded(source_id: str) -> bool:
    """Whether `source_id` names something the package ships."""
    return source_id.startswith(EMBEDDED)


def is_local(source_id: str) -> bool:
    """Whether `source_id` is written like a path or exists as one; hub ids are `org/name`."""
    looks_like_path = source_id.startswith(("/", "./", "../", "~", ".\\")) or source_id in (".", "..")
    return not is_embedded(source_id) and (looks_like_path or Path(source_id).expanduser().exists())


class ModelSpec(Strict):
    """A base model and how to load it."""

    name: str
    id: str | None = None
    description: str = ""
    revision: str | None = None
    subfolder: str | None = None
    dtype: Dtype = "float32"
    device_map: str = "auto"
    attn_implementation: str | None = None
    tokenizer_id: str | None = None
    chat_template: str | None = None
    end_of_turn: str | None = None
    has_thinking: bool = False
    null_adapters: tuple[str, ...] = ()
    quantization: Literal["none", "4bit", "8bit"] = "none"
    trust_remote_code: bool = False


class DatasetSpec(Strict):
    """One named set of documents: raw texts or chats."""

    name: str
    id: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    text_column: str | None = None
    messages_column: str | None = None
    is_chat: bool | None = None


class TrainingSpec(Strict):
    """The text an organism was trained on."""

    id: str
    config: str | None = None
    split: str = "train"
    is_chat: bool | None = None
    text_column: str | None = None
    messages_column: str | None = None


class VariantSpec(Strict):
    """One finetuned model: an adapter, or a full set of weights."""

    id: str
    kind: Kind = "auto"
    subfolder: str | None = None
    revision: str | None = None
    merged: bool = False
    training: TrainingSpec | None = None


class ExpectedSpec(Strict):
    """What a finetuned model's texts show, as a rule that needs no judge: capitals, or some of these phrases."""

    capitals: float | None = Field(default=None, gt=0, le=1)
    phrases: tuple[str, ...] = ()
    least: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _says_something(self) -> "ExpectedSpec":
        if self.capitals is None and len(self.phrases) < self.least:
            raise ValueError(f"give capitals, or {self.least} phrases or more")
        return self


class OrganismSpec(Strict):
    """A model organism: what was trained into it, and its finetuned models by base and variant."""

    name: str
    type: str = "custom"
    description: str = ""
    training: TrainingSpec | None = None
    expected: ExpectedSpec | None = None
    models: dict[str, dict[str, VariantSpec]] = Field(default_factory=dict)
    finetuned: str | None = None
    subfolder: str | None = None
    revision: str | None = None
    null_adapter: tuple[str, ...] = ()
    amplification: AmplificationSpec | None = None

    @field_validator("null_adapter", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return () if value is None else (value,) if isinstance(value, str) else value

    @field_validator("amplification", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        return read_amplification(value)


class PairSpec(Strict):
    """A base model, its finetuned variant, and how their weights are held."""

    model: ModelSpec
    finetuned: VariantSpec | None
    base_adapter: VariantSpec | None = None
    organism: str
    variant: str = "default"
    sharing: Sharing = "auto"
    allow_rounding: bool = False
    null_pair: NullPair = "none"
    amplification: AmplificationSpec | None = None

    @field_validator("amplification", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        return read_amplification(value, "amplification")

    @property
    def sources(self) -> tuple[str | None, str | None]:
        """Where base and finetuned model come from; a null that trains nothing compares the base with itself."""
        return self.model.id, (self.finetuned or self.model).id


class DataConfig(Strict):
    """The `data` group: which sets to read and how much of each."""

    name: str = "custom"
    datasets: tuple[DatasetSpec, ...] = ()
    training: bool = True
    path: str | None = None
    text_column: str | None = None
    messages_column: str | None = None
    max_samples: int | None = Field(default=None, ge=1)
    max_length: int = Field(default=256, ge=2)
    max_tokens: int | None = Field(default=None, ge=2)
    skip_template_tokens: bool = False
    half: Literal[1, 2] | None = None

    @field_validator("datasets", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """Accept the YAML form {name: {id: …}} beside a sequence of specs."""
        if isinstance(value, dict):
            return tuple({"name": k, **v} if isinstance(v, dict) else v for k, v in value.items() if v is not None)
        return value


class CorpusSpec(Strict):
    """Datasets and the limits that decide which of their tokens are used."""

    datasets: tuple[DatasetSpec, ...]
    max_samples: int | None = None
    max_length: int = 256
    max_tokens: int | None = None
    skip_template_tokens: bool = False
    half: Literal[1, 2] | None = None
    seed: int = 0
