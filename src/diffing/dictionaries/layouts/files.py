"""The files that layouts are made of: a JSON config and named tensors, read with a sentence for each fault."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffing.core.errors import UserError, one_line
from diffing.core.files import atomic_path, read_json

_AGAIN = "copy it there, or fetch the dictionary again"


class Foreign(BaseModel):
    """The keys that count in another library's config; what else it holds is let pass."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


ForeignT = TypeVar("ForeignT", bound=Foreign)


def read_config(path: Path, cls: type[ForeignT]) -> ForeignT:
    """A JSON file as a config.

    Raises:
        UserError: It is missing, no JSON, or a key is missing or of the wrong kind.
    """
    values = read_json(path, _AGAIN)
    if not isinstance(values, dict):
        raise UserError(f"{path} is corrupt (no JSON object); {_AGAIN}.")
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise UserError(f"{path} lacks {key}, without which the dictionary cannot be read.") from None
        raise UserError(f"{path}: {key} cannot be {first['input']!r} ({first['msg']}).") from None


@dataclass(frozen=True, eq=False)
class Stored:
    """Named tensors of one file.

    Args:
        path: The file, for messages.
        tensors: Its tensors.
    """

    path: Path
    tensors: dict[str, Tensor]

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self.tensors

    def get(self, name: str, *shape: int | None) -> Tensor:
        """A tensor in float32, checked.

        Args:
            name: Its name.
            shape: Its shape; None: any size.

        Raises:
            UserError: It is missing, has another shape, or holds NaN or infinity.
        """
        found = self.raw(name, *shape)
        if not torch.isfinite(found).all():
            raise UserError(f"{self.path}: {name} holds NaN or infinity, so the dictionary is useless.")
        return found

    def raw(self, name: str, *shape: int | None) -> Tensor:
        """As `get`, for a tensor that may hold NaN."""
        if name not in self.tensors:
            held = ", ".join(sorted(self.tensors)[:8]) or "nothing"
            raise UserError(f"{self.path} lacks the tensor {name}; it holds {held}.")
        found = self.tensors[name]
        if len(found.shape) != len(shape) or any(n not in (None, m) for n, m in zip(shape, found.shape, strict=True)):
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise UserError(
                f"{self.path}: {name} has the shape {tuple(found.shape)} instead of ({wanted}) that its config and its "
                "other tensors imply."
            )
        return found.float()

    def number(self, name: str) -> float:
        """A tensor that is one number."""
        return float(self.get(name))


def read_tensors(path: Path) -> Stored:
    """All tensors of a safetensors file.

    Raises:
        UserError: It is missing, damaged or no safetensors file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; {_AGAIN}.")
    try:
        with safe_open(path, framework="pt") as file:
            return Stored(path, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is cut off, damaged or no safetensors file ({one_line(error, 80)}); {_AGAIN}."
        ) from None


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))


def layer_in(hook: str | None) -> int | None:
    """The first number that stands alone in a hook's name: `blocks.12.hook_resid_post`, `layers_12` → 12."""
    parts: list[Any] = (hook or "").replace("_", ".").replace("/", ".").split(".")
    return next((int(p) for p in parts if p.isdecimal()), None)
