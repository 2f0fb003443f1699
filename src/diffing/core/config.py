"""Base of all settings: frozen, strict pydantic models, parsed once, and their fingerprints."""

import hashlib
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from diffing.core.errors import UserError
from diffing.core.suggest import did_you_mean


class Strict(BaseModel):
    """Immutable settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


StrictT = TypeVar("StrictT", bound=Strict)


def fingerprint(value: Any, length: int = 16) -> str:
    """Hex digest of a JSON-like value; independent of key order and of the process.

    Args:
        value: Nested dicts, lists, strings, numbers, booleans, None, or pydantic models.
        length: Number of hex digits kept.
    """
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def parse(cls: type[StrictT], values: Any, where: str = "") -> StrictT:
    """Parse composed settings into `cls`.

    Args:
        cls: The settings class.
        values: Plain nested dicts.
        where: Dotted prefix for messages, e.g. "diffing.method".

    Raises:
        UserError: A key is unknown (the nearest right one is named) or a value does not fit.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(cls, error, where)) from None


def _sentence(cls: type[BaseModel], error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    path = [str(p) for p in first["loc"]]
    dotted = ".".join([where, *path] if where else path)
    if first["type"] == "extra_forbidden":
        prefix = dotted.rpartition(".")[0]
        keys = _keys_at(cls, path[:-1])
        names = [f"{prefix}.{k}" if prefix else k for k in keys]
        return f"Unknown option {dotted}: {did_you_mean(dotted, names)}"
    if first["type"] == "missing":
        return f"Option {dotted} is required; set it with {dotted}=VALUE."
    return f"Option {dotted} cannot be {first['input']!r}: {first['msg'].removeprefix('Value error, ')}."


def _keys_at(cls: type[BaseModel], path: list[str]) -> list[str]:
    """Field names of the model found by walking `path` from `cls`; [] where it leaves the models."""
    for name in path:
        field = cls.model_fields.get(name)
        inner = next((t for t in _types(field.annotation) if issubclass(t, BaseModel)), None) if field else None
        if inner is None:
            return []
        cls = inner
    return list(cls.model_fields)


def _types(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and not getattr(annotation, "__args__", None):
        return [annotation]
    return [t for a in getattr(annotation, "__args__", ()) for t in _types(a)]
