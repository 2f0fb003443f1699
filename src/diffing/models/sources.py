"""Where a model's, adapter's or tokenizer's files are: embedded, a local folder, a GGUF file, or a hub."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from diffing.core.errors import UserError
from diffing.core.files import read_json
from diffing.core.specs import EMBEDDED, is_embedded, is_local
from diffing.core.suggest import did_you_mean
from diffing.models import hub
from diffing.models.embedded import embedded_model, embedded_names, embedded_organism
from diffing.models.folders import ADAPTER_CONFIG, CONFIG, What, check_files, check_names, wanted_files
from diffing.models.gguf import convert_cached
from diffing.models.hashing import content_hash

_FETCH_AGAIN = "fetch or write it again"


@dataclass(frozen=True)
class ResolvedSource:
    """A source whose files are on this disk.

    Args:
        folder: Where they are, the subfolder included.
        id: As asked for.
        revision: The hub's commit; None elsewhere.
        subfolder: As asked for.
        content_hash: Hash of the files that are read; for a hub `id@commit`.
        origin: Where they come from.
        card: Facts for manifests, such as the licence.
    """

    folder: Path
    id: str
    revision: str | None
    subfolder: str | None
    content_hash: str
    origin: Literal["hub", "local", "embedded", "gguf", "merged"]
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """What fingerprints name it by: a hub's repository, commit and subfolder, else the content of its files."""
        if self.origin == "hub":
            return {"id": self.id, "revision": self.revision, "subfolder": self.subfolder}
        return {"content": self.content_hash}


def resolve(
    spec_id: str,
    revision: str | None = None,
    subfolder: str | None = None,
    what: What = "model",
    trust_remote_code: bool = False,
) -> ResolvedSource:
    """Find a source's files, fetching or converting them where needed, and check that they are whole.

    Args:
        spec_id: `embedded:NAME`, a directory, a GGUF file, or a hub id.
        revision: Branch, tag or commit of a hub repository.
        subfolder: Where inside the folder or repository the files lie.
        what: What they are to be; a folder asked for as "model" may turn out to hold an adapter, and the other
            way round.
        trust_remote_code: Whether Python files beside the weights may be used.

    Raises:
        UserError: They cannot be had, are not what was asked for, or are damaged.
    """
    if is_embedded(spec_id):
        return _embedded(spec_id, what)
    if spec_id and is_local(spec_id):
        path = Path(spec_id).expanduser()
        if path.is_file():
            return _gguf(spec_id, path)
        return _local(spec_id, path, subfolder, what, trust_remote_code)
    if not hub.is_hub_id(spec_id):
        raise UserError(
            f"{spec_id!r} is neither an existing path nor a hub id (org/name) nor {EMBEDDED}NAME; check its spelling."
        )
    if spec_id.endswith((".gguf", ".safetensors")):
        raise UserError(f"There is no file {spec_id}; check the path.")
    return _hub(spec_id, revision, subfolder, what, trust_remote_code)


def _embedded(spec_id: str, what: What) -> ResolvedSource:
    name = spec_id.removeprefix(EMBEDDED)
    models, organisms = embedded_names()
    if what != "adapter" and name in models:
        folder = embedded_model(name)
        check_files(folder, "model", f"The embedded model {name}", False, f"delete {folder} and run again")
        return ResolvedSource(folder, spec_id, None, None, _content(folder, "model"), "embedded", _card(folder))
    if what != "tokenizer" and name in organisms:
        folder = embedded_organism(name)
        check_files(folder, "adapter", f"The embedded organism {name}", False, "reinstall diffing")
        return ResolvedSource(folder, spec_id, None, None, _content(folder, "adapter"), "embedded", _card(folder))
    known = {"model": (*models, *organisms), "adapter": organisms, "tokenizer": models}[what]
    raise UserError(f"Nothing named {spec_id} is embedded: {did_you_mean(name, known)}")


def _gguf(spec_id: str, path: Path) -> ResolvedSource:
    if path.suffix.lower() != ".gguf":
        raise UserError(f"{spec_id} is a file; name the folder that holds the model, or a .gguf file.")
    card = {"model": f"{path.name}, dequantised to float32", "origin": "GGUF file"}
    folder = convert_cached(path, path.stem, card)
    check_files(folder, "model", f"The converted model of {spec_id}", False, f"delete {folder} and run again")
    return ResolvedSource(folder, spec_id, None, None, _content(folder, "model"), "gguf", _card(folder))


def _local(spec_id: str, path: Path, subfolder: str | None, what: What, with_code: bool) -> ResolvedSource:
    folder = path / subfolder if subfolder else path
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; check the path{' and subfolder' if subfolder else ''}.")
    label = f"The folder {folder}"
    names = [p.name for p in folder.iterdir() if p.is_file()]
    below = {p.parent.name for n in (CONFIG, ADAPTER_CONFIG) for p in folder.glob(f"*/{n}")}
    check_names(names, what, label, below)
    check_files(folder, what, label, with_code, _FETCH_AGAIN)
    return ResolvedSource(folder, spec_id, None, subfolder, _content(folder, what, with_code), "local")


def _hub(spec_id: str, revision: str | None, subfolder: str | None, what: What, with_code: bool) -> ResolvedSource:
    found = hub.fetch(spec_id, revision, subfolder, what, with_code)
    label = f"Hub repository {spec_id}"
    check_files(found.folder, what, label, with_code, f"run `hf cache rm model/{spec_id}` and try again")
    content = f"{spec_id}@{found.commit}"
    return ResolvedSource(found.folder, spec_id, found.commit, subfolder, content, "hub", found.card)


def _content(folder: Path, what: What, with_code: bool = False) -> str:
    """Hash of the files that are read, whatever else lies beside them."""
    names = wanted_files((p.name for p in folder.iterdir() if p.is_file()), what, with_code)
    return content_hash(folder, [folder / n for n in names])


def _card(folder: Path) -> dict[str, Any]:
    path = folder / "card.json"
    return read_json(path, f"delete {folder} and run again") if path.is_file() else {}
