"""Hub repositories: their files fetched into huggingface_hub's own cache, and its errors put into sentences."""

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from json import JSONDecodeError
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub as hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from diffing.core.errors import UserError, one_line
from diffing.core.files import disk_errors
from diffing.core.progress import say
from diffing.models.folders import ADAPTER_CONFIG, CONFIG, What, check_names, has_vocabulary, wanted_files, weight_names

TIMEOUT = 5.0
HINT = "model=smollm2_135M runs offline"
# The HTTP library's own base error: httpx in huggingface_hub 1, httpx2 in later versions.
_TransportError: type[BaseException] = HfHubHTTPError.__bases__[0]
# JSONDecodeError: a portal or proxy that answers in the hub's place; RuntimeError: hf_xet's own downloader.
_REFUSALS = (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, DisabledRepoError)
_HUB_ERRORS = (_TransportError, OSError, EntryNotFoundError, JSONDecodeError, RuntimeError)


@dataclass(frozen=True)
class HubFolder:
    """A repository's files on disk: the folder (of the subfolder), the commit, and facts about it."""

    folder: Path
    commit: str
    card: dict[str, Any] = field(default_factory=dict)


def is_hub_id(source_id: str) -> bool:
    """Whether a string can be a hub id: `org/name`, or a bare name such as `gpt2`."""
    try:
        validate_repo_id(source_id)
    except HFValidationError:
        return False
    return True


def fetch(repo: str, revision: str | None, subfolder: str | None, what: What, with_code: bool) -> HubFolder:
    """Have a repository's configuration, weights and tokenizer on disk; only what is missing is fetched.

    Without a network the cache alone serves.

    Args:
        repo: Its id.
        revision: Branch, tag or commit; None is the main branch.
        subfolder: Where in the repository the files lie.
        what: What it is to be.
        with_code: Whether Python files are wanted too.

    Raises:
        UserError: A file cannot be had: unreachable, not found, gated, or only as a pickle.
    """
    try:
        info = _info(repo, revision)
    except _HUB_ERRORS as error:
        return _cached(repo, revision, subfolder, what, error)
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    sizes = {f.rfilename: f.size or 0 for f in info.siblings or ()}
    inside = [n.removeprefix(prefix) for n in sizes if n.startswith(prefix) and "/" not in n.removeprefix(prefix)]
    if subfolder and not inside:
        raise UserError(f"Hub repository {repo} has no folder {subfolder}; check subfolder, or {HINT}.")
    check_names(inside, what, _label(repo, subfolder), _model_folders(sizes))
    wanted = [prefix + n for n in wanted_files(inside, what, with_code)]
    card = {"origin": f"https://huggingface.co/{repo}", **_licence(info)}
    return HubFolder(_fetch_files(repo, revision, info.sha, wanted, sizes) / prefix, info.sha, card)


def fetch_files(repo: str, revision: str | None, choose: Callable[[list[str]], list[str]], hint: str) -> HubFolder:
    """Have some files of a repository on disk, none of them a model's; without a network, as far as they are cached.

    Args:
        repo: Its id.
        revision: Branch, tag or commit; None is the main branch.
        choose: Given all names (with folders), those that are wanted, at least one.
        hint: What else helps where the hub does not.

    Raises:
        UserError: They cannot be had, or what `choose` raises.
    """
    try:
        info = _info(repo, revision)
    except _HUB_ERRORS as error:
        snapshot = None if isinstance(error, _REFUSALS) else _snapshot(repo, revision)
        if snapshot is None:
            raise hub_error(error, "the files", repo, revision, hint) from error
        return HubFolder(snapshot, snapshot.name)
    sizes = {f.rfilename: f.size or 0 for f in info.siblings or ()}
    return HubFolder(_fetch_files(repo, revision, info.sha, choose(sorted(sizes)), sizes, hint), info.sha)


def hub_error(error: BaseException, file: str, repo: str, revision: str | None, hint: str = HINT) -> UserError:
    """The sentence for an error of huggingface_hub: which file of which repository, why, and what helps."""
    at = f" at revision {revision}" if revision else ""
    return UserError(f"Cannot get {file} of hub repository {repo}{at}: {_reason(error, repo, revision)}; {hint}.")


def _reason(error: BaseException, repo: str, revision: str | None) -> str:
    if isinstance(error, GatedRepoError):
        return (
            f"it is gated; ask for access at https://huggingface.co/{repo}, then log in with `hf auth login` "
            "(or set HF_TOKEN)"
        )
    if isinstance(error, DisabledRepoError):
        return "the hub has disabled it"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "neither the hub nor this folder has anything of that name; check its spelling, or `hf auth login` "
            "if it is private"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"there is no such revision; check revision={revision}"
    if _is_offline():
        return "HF_HUB_OFFLINE is set and it is not in the cache; unset it to fetch it"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return "there is no such file"
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered with HTTP status {error.response.status_code}; try again later"
    if isinstance(error, (_TransportError, LocalEntryNotFoundError)):
        return "the hub cannot be reached and it is not in the cache; check the network (or HF_ENDPOINT)"
    return f"{one_line(error, 120)}; try again later"


def _is_offline() -> bool:
    """Whether the user forbids the network; the variable counts even when set after huggingface_hub was imported."""
    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _info(repo: str, revision: str | None) -> Any:
    if _is_offline():
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    return hub.model_info(repo, revision=revision, timeout=TIMEOUT, files_metadata=True)


def _label(repo: str, subfolder: str | None) -> str:
    return f"Hub repository {repo}" + (f" (folder {subfolder})" if subfolder else "")


def _model_folders(names: dict[str, int]) -> set[str]:
    paths = [PurePosixPath(n) for n in names]
    return {str(p.parent) for p in paths if p.name in (CONFIG, ADAPTER_CONFIG) and str(p.parent) != "."}


def _licence(info: Any) -> dict[str, str]:
    licence = (info.card_data or {}).get("license")
    return {"licence": str(licence)} if licence else {}


def _fetch_files(
    repo: str, revision: str | None, commit: str, wanted: list[str], sizes: dict[str, int], hint: str = HINT
) -> Path:
    """The snapshot's folder; the configuration comes first, so that a closed gate shows before gigabytes move.

    The configuration is asked for by branch, which makes the cache remember where the branch stands.
    """
    first = min(wanted, key=lambda n: PurePosixPath(n).name not in (CONFIG, ADAPTER_CONFIG))
    standing = _in_cache(repo, first, revision or "main")
    if standing is None or standing.name != commit:
        with _mapped(first, repo, revision, hint):
            hub.hf_hub_download(repo, first, revision=revision, etag_timeout=TIMEOUT)
    missing = [n for n in wanted if _in_cache(repo, n, commit) is None]
    if missing:
        say(f"Fetching {len(missing)} files ({sum(sizes[n] for n in missing) / 1e6:,.1f} MB) of {repo} …")
        with _mapped(max(missing, key=lambda n: sizes[n]), repo, revision, hint):
            patterns = [glob.escape(n) for n in missing]
            hub.snapshot_download(repo, revision=commit, allow_patterns=patterns, etag_timeout=TIMEOUT)
    snapshot = _in_cache(repo, first, commit)
    assert snapshot is not None, f"{first} of {repo} is not in the cache after it was fetched"
    return snapshot


def _in_cache(repo: str, name: str, revision: str) -> Path | None:
    """The snapshot's folder, if `name` is in it."""
    found = hub.try_to_load_from_cache(repo, name, revision=revision)
    return Path(found).parents[name.count("/")] if isinstance(found, str) else None


@contextmanager
def _mapped(file: str, repo: str, revision: str | None, hint: str = HINT) -> Iterator[None]:
    try:
        with disk_errors(Path(constants.HF_HUB_CACHE), "free some space or set HF_HOME=DIR"):
            yield
    except _HUB_ERRORS as error:
        raise hub_error(error, file, repo, revision, hint) from error


def _cached(repo: str, revision: str | None, subfolder: str | None, what: What, error: BaseException) -> HubFolder:
    """What an earlier run left in the cache, when `error` says that the hub cannot be asked."""
    first = {"model": CONFIG, "adapter": ADAPTER_CONFIG, "tokenizer": "tokenizer.json"}[what]
    snapshot = None if isinstance(error, _REFUSALS) else _snapshot(repo, revision)
    lacking = first if snapshot is None else _lacking(snapshot / (subfolder or ""), what, first)
    if snapshot is None or lacking:
        raise hub_error(error, str(PurePosixPath(subfolder or "", lacking or first)), repo, revision) from error
    return HubFolder(snapshot / (subfolder or ""), snapshot.name, {"origin": f"https://huggingface.co/{repo}"})


def _snapshot(repo: str, revision: str | None) -> Path | None:
    try:
        return Path(hub.snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[CONFIG]))
    except (LocalEntryNotFoundError, ValueError) as error:
        found = getattr(error, "snapshot_path", None)
        return Path(found) if found else None


def _lacking(folder: Path, what: What, first: str) -> str | None:
    """The first file that is wanted and not in the cached `folder`."""
    names = {p.name for p in folder.glob("*")}
    if what == "tokenizer":
        return None if has_vocabulary(names) else first
    if not names & {CONFIG, ADAPTER_CONFIG}:
        return first
    weights = weight_names(folder, "run again with a network")
    return next((n for n in weights if n not in names), None)
