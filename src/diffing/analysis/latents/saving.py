"""Files of a dictionary in a run folder: ours, and the layouts of other libraries that were asked for."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from diffing.core.layers import Slot
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.layouts import Facts, write_layout
from diffing.dictionaries.spec import DictionarySpec

OURS = "dictionary"


def dictionary_files(
    dictionary: Dictionary, layouts: tuple[str, ...], slot: Slot, model: str, hook: str
) -> Mapping[str, Callable[[Path], None]]:
    """Writers by folder: `dictionary`, and `dictionary_<layout>` for each layout asked for."""
    facts = Facts(model=model, hook=hook, layer=slot.layer, kind=dictionary.spec.sparsity, k=dictionary.spec.k)
    named = {OURS: "diffing", **{f"{OURS}_{layout}": layout for layout in layouts}}
    return {name: partial(_write, dictionary=dictionary, layout=layout, facts=facts) for name, layout in named.items()}


def _write(folder: Path, dictionary: Dictionary, layout: str, facts: Facts) -> None:
    write_layout(folder, dictionary, layout, facts)


def refuse_layouts(spec: DictionarySpec, layouts: tuple[str, ...], scratch: Path) -> None:
    """Refuse a layout that cannot hold such a dictionary, before it is trained: a small one is written on trial.

    Raises:
        UserError: There is no such layout, it is read only, or it cannot hold the dictionary.
    """
    small = Dictionary(spec)
    with torch.no_grad():
        small.decoder_FMD.fill_(spec.width**-0.5)
        small.threshold.fill_(1.0)
    for layout in layouts:
        folder = scratch / "layout_trial"
        write_layout(folder, small, layout, Facts())
        shutil.rmtree(folder)
