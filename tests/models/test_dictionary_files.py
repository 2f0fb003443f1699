"""Folders of published dictionaries, on this machine and of hub repositories."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import errors

from diffing.core.errors import UserError
from diffing.models import hub
from diffing.models.dictionary_files import dictionary_folder

COMMIT = "c0ffee" + 34 * "0"
NAMES = (
    "README.md", "cfg.json", "sae_weights.safetensors", "optimizer.pt", "layer_3/config.json", "layer_3/ae.pt",
    "old/model.bin",
)  # fmt: skip


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A hub of one repository; the patterns of what was fetched."""
    asked: list[str] = []

    def snapshot(repo, revision, allow_patterns, **kwargs):
        asked.extend(allow_patterns)
        for name in NAMES:
            if name in allow_patterns:
                (tmp_path / COMMIT / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / COMMIT / name).touch()

    def cached(repo, name, revision):
        path = tmp_path / COMMIT / name
        return str(path) if path.exists() else None

    siblings = [SimpleNamespace(rfilename=n, size=1000) for n in NAMES]
    info = SimpleNamespace(sha=COMMIT, siblings=siblings, card_data=None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.hub, "model_info", lambda *args, **kwargs: info)
    monkeypatch.setattr(hub.hub, "hf_hub_download", lambda *args, **kwargs: "")
    monkeypatch.setattr(hub.hub, "try_to_load_from_cache", cached)
    monkeypatch.setattr(hub.hub, "snapshot_download", snapshot)
    return asked


def test_a_local_folder_as_it_is(tmp_path):
    assert dictionary_folder(str(tmp_path)) == tmp_path
    assert dictionary_folder("./nowhere") == Path("nowhere")


def test_weights_and_json_of_one_folder_are_fetched(fetched, tmp_path):
    assert dictionary_folder("org/saes") == tmp_path / COMMIT
    assert sorted(fetched) == ["cfg.json", "sae_weights.safetensors"]
    fetched.clear()
    assert dictionary_folder("org/saes/layer_3", "v1") == tmp_path / COMMIT / "layer_3"
    assert sorted(fetched) == ["layer_3/ae.pt", "layer_3/config.json"]


@pytest.mark.parametrize(
    ("named", "match"),
    [
        (
            "org/saes/old",
            "Folder old of hub repository org/saes holds model.bin, a pickle, where safetensors is expected",
        ),
        ("org/saes/none", r"none of hub repository org/saes holds no dictionary .*such as org/saes/layer_3\."),
        ("not an id", "'not an id' is neither an existing folder nor a hub id"),
    ],
)
def test_nothing_to_fetch(fetched, named, match):
    with pytest.raises(UserError, match=match):
        dictionary_folder(named)
    assert not fetched


def test_a_hub_that_cannot_be_asked(monkeypatch, tmp_path, no_hub):
    def no_snapshot(*args, **kwargs):
        raise errors.LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(hub.hub, "snapshot_download", no_snapshot)
    with pytest.raises(UserError, match=r"files of hub repository org/saes: HF_HUB_OFFLINE is set .*named instead\."):
        dictionary_folder("org/saes")
    monkeypatch.setattr(hub.hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path))
    with pytest.raises(UserError, match="the files of org/saes are not in the cache"):
        dictionary_folder("org/saes")
    (tmp_path / "ae.pt").touch()
    assert dictionary_folder("org/saes") == tmp_path


def test_a_repository_that_is_not_there(fetched, monkeypatch):
    def missing(*args, **kwargs):
        raise errors.RepositoryNotFoundError("no", response=SimpleNamespace(status_code=404, headers={}, request=None))

    monkeypatch.setattr(hub.hub, "model_info", missing)
    with pytest.raises(UserError, match="neither the hub nor this folder has anything of that name"):
        dictionary_folder("org/saes")
