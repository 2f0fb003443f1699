"""Dictionaries on disk, and training that goes on where it was stopped: safetensors with JSON in the header.

A checkpoint replaces the last one by rename, and the one before is kept: whenever the process is killed, one that loads
is there.
"""

import json
import os
from dataclasses import astuple
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffing.core.config import parse
from diffing.core.errors import UserError
from diffing.core.files import atomic_path
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.schedules import TrainingSpec
from diffing.dictionaries.spec import DictionarySpec
from diffing.dictionaries.trainer import StepRow, Trainer

SCHEMA = 1
_KIND = "diffing dictionary"


def save_dictionary(path: Path, dictionary: Dictionary, facts: dict | None = None) -> None:
    """Write a dictionary as one safetensors file, whole or not at all.

    Args:
        path: The file.
        dictionary: What to write.
        facts: JSON values to keep with it: where it was trained, on what.
    """
    _write(path, _weights(dictionary), dictionary.spec, {"facts": facts or {}})


def load_dictionary(path: Path) -> Dictionary:
    """Read what `save_dictionary` wrote, or the dictionary of a checkpoint.

    Raises:
        UserError: The file is missing, damaged, no dictionary of ours, or of a newer schema.
    """
    tensors, header = _read(path)
    return _dictionary(path, tensors, header)


def dictionary_facts(path: Path) -> dict:
    """The JSON values that were kept with a dictionary."""
    return _read(path)[1].get("facts", {})


def save_checkpoint(folder: Path, trainer: Trainer, key: str) -> None:
    """Write all that training needs to go on; `key` tells which training it belongs to."""
    tensors = {f"dictionary.{k}": v for k, v in _weights(trainer.dictionary).items()}
    for i, state in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors["silent_F"] = trainer.silent_F
    tensors["history"] = torch.tensor([astuple(row) for row in trainer.history], dtype=torch.float64)
    counters = {n: getattr(trainer, n) for n in ("n_steps", "n_skipped", "n_empty", "n_tokens", "n_thresholds")}
    path = folder / "checkpoint.safetensors"
    last = folder / "checkpoint_before.safetensors"
    more = {"key": key, "training": trainer.spec.model_dump(mode="json"), "counters": counters}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "checkpoint_next.safetensors") as temporary:
        _fill(temporary, tensors, trainer.dictionary.spec, {**more, "variance": trainer.variance})
    if path.exists():
        os.replace(path, last)
    os.replace(folder / "checkpoint_next.safetensors", path)


def load_checkpoint(folder: Path, key: str, device: str | torch.device = "cpu") -> Trainer | None:
    """The newest whole checkpoint of the training `key`; None when there is none."""
    for name in ("checkpoint_next", "checkpoint", "checkpoint_before"):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            continue
        try:
            tensors, header = _read(path)
        except UserError:
            continue
        if header.get("key") == key:
            return _trainer(path, tensors, header, device)
    return None


def _trainer(path: Path, tensors: dict[str, Tensor], header: dict, device: str | torch.device) -> Trainer:
    own = {k.removeprefix("dictionary."): v for k, v in tensors.items() if k.startswith("dictionary.")}
    dictionary = _dictionary(path, own, header).to(device)
    trainer = Trainer(dictionary, parse(TrainingSpec, header["training"]), header["variance"])
    state = trainer.optimizer.state_dict()
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, entry = name.split(".")
            state["state"].setdefault(int(number), {})[entry] = value
    trainer.optimizer.load_state_dict(state)
    trainer.silent_F = tensors["silent_F"]
    trainer.history = [_step_row(values) for values in tensors["history"].tolist()]
    for name, value in header["counters"].items():
        setattr(trainer, name, value)
    return trainer


def _step_row(values: list[float]) -> StepRow:
    step, n_tokens, fve, l0, n_dead, loss, aux, lr = values
    return StepRow(int(step), int(n_tokens), fve, l0, int(n_dead), loss, aux, lr)


def _weights(dictionary: Dictionary) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in dictionary.state_dict().items()}


def _write(path: Path, tensors: dict[str, Tensor], spec: DictionarySpec, more: dict) -> None:
    with atomic_path(path) as temporary:
        _fill(temporary, tensors, spec, more)


def _fill(path: Path, tensors: dict[str, Tensor], spec: DictionarySpec, more: dict) -> None:
    header = {"kind": _KIND, "schema": SCHEMA, "spec": spec.model_dump(mode="json"), **more}
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    path.write_bytes(save(contiguous, metadata={"diffing": json.dumps(header, allow_nan=False)}))


def _read(path: Path) -> tuple[dict[str, Tensor], dict]:
    if not path.is_file():
        raise UserError(f"There is no dictionary {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("diffing", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise UserError(f"{path} is cut off, damaged or no safetensors file ({error}).") from None
    if header.get("kind") != _KIND:
        raise UserError(
            f"{path} is not a dictionary written by diffing; name the folder that holds it with its config."
        )
    if header["schema"] > SCHEMA:
        raise UserError(f"{path} has schema {header['schema']}, this version reads up to {SCHEMA}; update diffing.")
    return tensors, header


def _dictionary(path: Path, tensors: dict[str, Tensor], header: dict) -> Dictionary:
    dictionary = Dictionary(parse(DictionarySpec, header["spec"]))
    expected = dictionary.state_dict()
    own = {
        k.removeprefix("dictionary."): v
        for k, v in tensors.items()
        if not k.startswith(("optimizer.", "silent", "history"))
    }
    wrong = sorted(k for k in expected if k not in own or own[k].shape != expected[k].shape)
    if wrong:
        raise UserError(
            f"{path} lacks {wrong[0]} in the shape {tuple(expected[wrong[0]].shape)}; it is no whole dictionary."
        )
    dictionary.load_state_dict({k: own[k] for k in expected})
    return dictionary
