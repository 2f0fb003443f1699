"""The whole configuration of a run, as composed by the command line or built by the Python API."""

from typing import Any, Literal

from pydantic import Field, field_validator

from diffing.core.config import Strict
from diffing.core.layers import Layers, Site, listed
from diffing.core.specs import DataConfig, Dtype, ModelSpec, NullPair, OrganismSpec, Sharing

Mode = Literal["full", "preprocessing", "diffing", "report", "cache", "benchmark"]


class PairConfig(Strict):
    """How the two models are held in memory."""

    sharing: Sharing = "auto"
    allow_rounding: bool = False


class PipelineConfig(Strict):
    """What to do, and with which methods (empty: the one under `diffing/method`)."""

    mode: Mode = "full"
    methods: tuple[str, ...] = ()

    @field_validator("methods", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return () if value is None else (value,) if isinstance(value, str) else value


class PreprocessingConfig(Strict):
    """How text is read through the models."""

    store: Literal["disk", "live"] = "disk"
    layers: Layers = Field(default=(0.5,), min_length=1)
    sites: tuple[Site, ...] = Field(default=("residual",), min_length=1)
    dtype: Dtype | None = None
    shard_bytes: int = Field(default=256 * 2**20, ge=2**16)
    shard_tokens: int = Field(default=8192, ge=1)

    @field_validator("layers", "sites", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return listed(value)

    batch_tokens: int = Field(default=2048, ge=1)


class CacheConfig(Strict):
    """What `pipeline.mode=cache` does, and to which caches (`name`: the start of a cache's name, or all)."""

    action: Literal["list", "verify", "delete"] = "list"
    name: str | None = None
    older_than_days: float | None = Field(default=None, ge=0)


class BenchmarkConfig(Strict):
    """What `pipeline.mode=benchmark` compares (`organisms`: in place of the suite's own; nulls always stay)."""

    size: Literal["quick", "default"] = "default"
    organisms: tuple[str, ...] = ()
    seeds: int = Field(default=1, ge=1, le=20)

    @field_validator("organisms", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return () if value is None else (value,) if isinstance(value, str) else value


class StorageConfig(Strict):
    """Where results go."""

    base_dir: str = Field(default="./outputs", min_length=1)


class InfrastructureConfig(Strict):
    """The machine: storage and threads."""

    name: str = "local"
    storage: StorageConfig = StorageConfig()
    threads: int | None = Field(default=None, ge=1)


class WandbConfig(Strict):
    """Optional tracking."""

    enabled: bool = False
    project: str = "diffing"
    entity: str | None = None


class DiffingConfig(Strict):
    """The chosen method's own options; parsed by the method."""

    method: dict[str, Any]

    @field_validator("method")
    @classmethod
    def _has_name(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("name"), str):
            raise ValueError("a method needs a name")
        return value


class RunConfig(Strict):
    """Everything one run is told."""

    model: ModelSpec
    organism: OrganismSpec
    organism_variant: str | None = None
    data: DataConfig
    diffing: DiffingConfig
    pipeline: PipelineConfig = PipelineConfig()
    pair: PairConfig = PairConfig()
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    cache: CacheConfig = CacheConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    infrastructure: InfrastructureConfig = InfrastructureConfig()
    overwrite: bool = False
    seed: int = 0
    null_pair: NullPair = "none"
    stability: bool = False
    skip_first_tokens: int = Field(default=1, ge=0)
    wandb: WandbConfig = WandbConfig()
