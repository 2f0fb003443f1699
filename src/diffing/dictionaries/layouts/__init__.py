"""Dictionaries in the layouts of other libraries: opened to give what those give, and ours written in them.

Which layout a folder holds is told from the names of its files. What each holds: docs/dictionary-layouts.md.
"""

from pathlib import Path

from diffing.core.errors import UserError
from diffing.core.suggest import did_you_mean
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.layouts import crosscoder_learning, dictionary_learning, own, saelens, sparsify
from diffing.dictionaries.layouts.published import Facts, Published

__all__ = ["LAYOUTS", "Facts", "Published", "expect", "read_layout", "write_layout"]

LAYOUTS = {layout.NAME: layout for layout in (own, saelens, sparsify, crosscoder_learning, dictionary_learning)}
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def read_layout(folder: Path) -> Published:
    """Open the dictionary in a folder, whichever layout it has.

    Raises:
        UserError: There is no such folder, it holds no known layout, a file is damaged or lacks something, or the
            dictionary does what ours cannot.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; name the folder that holds it with its config.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; check the path of the dictionary.")
    for layout in LAYOUTS.values():
        if (folder / layout.WEIGHTS).is_file():
            return layout.read(folder)
    raise UserError(_nothing(folder))


def _nothing(folder: Path) -> str:
    """The sentence for a folder without a layout: what lies there instead, or where to look."""
    looked_for = ", ".join(" with ".join(filter(None, (each.WEIGHTS, each.CONFIG))) for each in LAYOUTS.values())
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles:
        return (
            f"{folder} holds {pickles[0]}, a pickle, where safetensors is expected ({looked_for}); of pickles only "
            f"{dictionary_learning.NAME}'s {dictionary_learning.WEIGHTS} is read, without executing code."
        )
    names = {layout.WEIGHTS for layout in LAYOUTS.values()}
    below = (p for name in names for depth in ("*", "*/*") for p in folder.glob(f"{depth}/{name}"))
    inside = sorted({str(p.parent.relative_to(folder)) for p in below})
    hint = f"name one of the folders in it, such as {', '.join(inside[:4])}" if inside else "check the path"
    return f"{folder} holds no dictionary in a known layout (looked for {looked_for}); {hint}."


def write_layout(folder: Path, dictionary: Dictionary, layout: str, facts: Facts) -> None:
    """Write a dictionary so that another library opens it and gives the same reconstructions of raw activations.

    Args:
        folder: Where; made if it is missing.
        dictionary: What.
        layout: One of `LAYOUTS`.
        facts: Kept where the layout has a place for them.

    Raises:
        UserError: The layout is unknown, read only, or cannot hold this dictionary.
    """
    if layout not in LAYOUTS:
        raise UserError(f"There is no layout {layout}; {did_you_mean(layout, LAYOUTS)}")
    LAYOUTS[layout].write(folder, dictionary, facts)


def expect(published: Published, n_sites: int, width: int) -> None:
    """Refuse a dictionary that is not for these activations.

    Args:
        published: What was opened.
        n_sites: Activations per token that it is to take.
        width: Numbers per activation.

    Raises:
        UserError: It takes others.
    """
    spec = published.dictionary.spec
    if (spec.n_sites, spec.width) != (n_sites, width):
        where = f" (trained on {published.facts.model})" if published.facts.model else ""
        raise UserError(
            f"The dictionary{where} takes {_activations(spec.n_sites, spec.width)} per token instead of "
            f"{_activations(n_sites, width)}; choose one that was trained on this model."
        )


def _activations(n_sites: int, width: int) -> str:
    return f"{n_sites} activation{'s' * (n_sites > 1)} of width {width}"
