"""A base with an adapter merged into it, as a model folder of its own: made once, kept in the cache."""

import json
import shutil
from pathlib import Path
from typing import Any

from diffing.core.config import fingerprint
from diffing.core.errors import UserError
from diffing.core.files import build_once, cache_dir
from diffing.core.progress import say
from diffing.core.specs import ModelSpec
from diffing.models.adapters import attach
from diffing.models.folders import wanted_files
from diffing.models.hashing import content_hash
from diffing.models.loading import load_module
from diffing.models.merging import delta_is_zero, merge
from diffing.models.quiet import quiet_transformers
from diffing.models.sources import ResolvedSource

_VERSION = 1


def merged_model(model: ModelSpec, base: ResolvedSource, adapter: ResolvedSource) -> ResolvedSource:
    """The full finetune that an adapter makes of a base: float32 weights, merged in float32, nothing rounded.

    Args:
        model: How the base is loaded; its dtype does not matter here.
        base: The base's files.
        adapter: The adapter's.

    Raises:
        UserError: The base is quantised, the adapter does not fit or changes nothing, or the disk is full.
    """
    if model.quantization != "none":
        raise UserError(
            f"{adapter.id} cannot be merged into {model.quantization} weights; set model.quantization=none."
        )
    key = fingerprint({"base": base.identity, "adapter": adapter.identity, "version": _VERSION})
    target = cache_dir() / "models" / f"{Path(adapter.id.rpartition(':')[2]).name}-merged-{key[:12]}"
    build_once(target, lambda folder: _build(model, base, adapter, folder))
    content = content_hash(target, [target / n for n in wanted_files(_names(target), "model", False)])
    card = json.loads((target / "card.json").read_text(encoding="utf-8"))
    return ResolvedSource(target, f"{base.id} + {adapter.id}", None, None, content, "merged", card)


def _build(model: ModelSpec, base: ResolvedSource, adapter: ResolvedSource, folder: Path) -> None:
    say(f"Merging {adapter.id} into {base.id} (once) …")
    module = load_module(model.model_copy(update={"device_map": "cpu"}), base, "float32")
    peft_model = attach(module, adapter.folder, adapter.id)
    if delta_is_zero(peft_model):
        raise UserError(f"Adapter {adapter.id} changes nothing: there is nothing to merge; check its id.")
    merged, _ = merge(peft_model)
    with quiet_transformers():
        merged.save_pretrained(str(folder))
    written = set(_names(folder))
    for name in wanted_files(_names(base.folder), "tokenizer", False):
        if name not in written:
            shutil.copyfile(base.folder / name, folder / name)
    card: dict[str, Any] = {**base.card, "base": base.id, "merged": adapter.id}
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _names(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.is_file()]
