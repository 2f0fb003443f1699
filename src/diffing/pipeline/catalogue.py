"""Models and organisms that have a configuration, by name, for the Python API."""

from pathlib import Path
from typing import Any

import yaml

from diffing.core.config import parse
from diffing.core.specs import DataConfig, ModelSpec, OrganismSpec

_CONFIGS = Path(__file__).parents[1] / "configs"


def model_named(name: str) -> ModelSpec | None:
    """The configured model of this name, or None."""
    values = _read("model", name)
    return parse(ModelSpec, values, "model") if values is not None else None


def organism_named(name: str) -> OrganismSpec | None:
    """The configured organism of this name, or None."""
    values = _read("organism", name)
    return parse(OrganismSpec, values, "organism") if values is not None else None


def data_named(name: str) -> DataConfig:
    """The configured data group of this name."""
    return parse(DataConfig, _read("data", name), "data")


def names(group: str) -> list[str]:
    """All names in a group."""
    return sorted(p.stem for p in (_CONFIGS / group).glob("*.yaml") if not p.stem.startswith("_"))


def _read(group: str, name: str) -> dict[str, Any] | None:
    if name not in names(group):
        return None
    values = yaml.safe_load((_CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"))
    values.pop("defaults", None)
    return values
