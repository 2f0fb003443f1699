"""Our own layout: `dictionary.safetensors`, with spec and facts in its header."""

from dataclasses import asdict, fields
from pathlib import Path

from diffing.dictionaries.checkpoints import dictionary_facts, load_dictionary, save_dictionary
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.layouts.published import Facts, Published

NAME = "diffing"
WEIGHTS, CONFIG = "dictionary.safetensors", None
_KNOWN = {f.name for f in fields(Facts)}


def read(folder: Path) -> Published:
    """Open a dictionary that diffing wrote; facts that were kept under other names stay in the file."""
    path = folder / WEIGHTS
    dictionary = load_dictionary(path)
    told = {k: v for k, v in dictionary_facts(path).items() if k in _KNOWN}
    known = {"kind": dictionary.spec.sparsity, "k": float(dictionary.spec.k) if dictionary.spec.is_top else None}
    return Published(dictionary, NAME, Facts(**{**known, **told}))


def write(folder: Path, dictionary: Dictionary, facts: Facts) -> None:
    """Write `dictionary.safetensors`."""
    save_dictionary(folder / WEIGHTS, dictionary, asdict(facts))
