"""Opens a published dictionary in place of training one."""

from diffing.analysis.latents.config import DictionaryConfig
from diffing.analysis.latents.sites import NAMES, Input
from diffing.core.files import sha256
from diffing.core.layers import Slot
from diffing.dictionaries.layouts import Published, expect, read_layout
from diffing.models.dictionary_files import dictionary_folder


def opened(config: DictionaryConfig, kind: Input, slot: Slot, width: int) -> Published:
    """The dictionary that `diffing.method.path` names, which must fit the activations.

    Raises:
        UserError: It cannot be found or read, or is for other activations.
    """
    assert config.path is not None
    published = read_layout(dictionary_folder(config.path, config.revision))
    expect(published, len(NAMES[kind]), width)
    return published


def inputs_of(config: DictionaryConfig) -> dict[str, str]:
    """Digests of the published dictionary's files, by name; none where one is trained.

    Raises:
        UserError: It cannot be found.
    """
    if config.path is None:
        return {}
    folder = dictionary_folder(config.path, config.revision)
    return {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.is_file()} if folder.is_dir() else {}


def published_notes(published: Published, slot: Slot, path: str) -> list[str]:
    """Sentences on where it comes from and what does not fit."""
    facts = published.facts
    where = ", ".join(str(v) for v in (facts.model, facts.hook, facts.kind) if v)
    notes = [f"The dictionary was not trained here: {path} ({published.layout}{'; ' + where if where else ''})."]
    if facts.layer is not None and facts.layer != slot.layer:
        notes.append(
            f"It was trained on layer {facts.layer} and reads layer {slot.layer} here; set diffing.method.layer="
            f"{facts.layer}."
        )
    return [*notes, *published.notes]
