"""Where the files of a published dictionary lie: a folder, or a hub repository's files fetched.

Which files make a dictionary is known to dictionaries/; here only those that can be are fetched: safetensors, JSON, and
the one pickle that is read without executing code.
"""

from pathlib import Path, PurePosixPath

from diffing.core.errors import UserError
from diffing.core.specs import is_local
from diffing.models import hub

_WEIGHTS = (".safetensors", "ae.pt")
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_HINT = "a folder on this machine can be named instead"


def dictionary_folder(id_or_path: str, revision: str | None = None) -> Path:
    """The folder of a dictionary's files.

    Args:
        id_or_path: A local folder, returned as it is; a hub id (org/name); or one with a folder in the repository
            (org/name/folder).
        revision: Branch, tag or commit of a repository; None: the main branch.

    Raises:
        UserError: There is no such repository, it holds no such files, or it cannot be fetched.
    """
    if is_local(id_or_path):
        return Path(id_or_path).expanduser()
    parts = id_or_path.strip("/").split("/")
    repo, inside = "/".join(parts[:2]), "/".join(parts[2:])
    if not hub.is_hub_id(repo):
        raise UserError(f"{id_or_path!r} is neither an existing folder nor a hub id (org/name or org/name/folder).")
    found = hub.fetch_files(repo, revision, lambda names: _wanted(names, inside, repo), _HINT)
    folder = found.folder / inside
    if not any(p.name.endswith(_WEIGHTS) for p in folder.glob("*")):
        raise UserError(f"The hub cannot be asked, and the files of {id_or_path} are not in the cache; {_HINT}.")
    return folder


def _wanted(names: list[str], inside: str, repo: str) -> list[str]:
    """JSON and weights that lie in one folder of a repository."""
    here = [n for n in names if _folder(n) == (inside or ".")]
    weights = [n for n in here if PurePosixPath(n).name.endswith(_WEIGHTS)]
    if weights:
        return [n for n in here if n.endswith(".json")] + weights
    place = f"Folder {inside} of hub repository {repo}" if inside else f"Hub repository {repo}"
    pickles = [n for n in here if n.endswith(_PICKLES)]
    if pickles:
        raise UserError(
            f"{place} holds {PurePosixPath(pickles[0]).name}, a pickle, where safetensors is expected; of pickles only "
            "dictionary_learning's ae.pt is read, without executing code."
        )
    folders = sorted({_folder(n) for n in names if n.endswith(_WEIGHTS)} - {"."})
    more = f"; name one of its {len(folders)} folders, such as {repo}/{folders[0]}" if folders else ""
    raise UserError(f"{place} holds no dictionary (no safetensors, no ae.pt){more}.")


def _folder(name: str) -> str:
    return str(PurePosixPath(name).parent)
