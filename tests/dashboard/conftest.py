"""Results of the tiny pair, made once, and pages opened on them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("streamlit")

import streamlit as st
from visiting import Visit, visitor

from workbench import Bench, sentences, write_jsonl


@pytest.fixture(scope="session")
def results_dir(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with `kl` and `normdiff` of an adapter, a full finetune and a null pair; not to be changed."""
    from diffing.cli import main

    folder = tmp_path_factory.mktemp("dashboard")
    chats = [
        {"messages": [{"role": "user", "content": s["text"]}, {"role": "assistant", "content": f"No: {s['text']}"}]}
        for s in sentences(4)
    ]
    write_jsonl(folder / "chats.jsonl", chats)
    common = [
        "pipeline.methods=[kl,normdiff]", "data.training=false", "data.max_samples=8",
        f"+data.datasets={{chats:{{id:{folder / 'chats.jsonl'}}}}}",
    ]  # fmt: skip
    base_dir = folder / "out"
    for finetuned, *more in ((bench.adapter,), (bench.full,), (bench.adapter, "null_pair=identical")):
        assert main(bench.command(base_dir, *common, *more, finetuned=finetuned)) == 0
    return base_dir


@pytest.fixture(scope="session")
def runs(results_dir: Path) -> Callable[[str, str], str]:
    """The id of the only run of an organism and method, as links name it."""

    def find(organism: str, method: str) -> str:
        (folder,) = results_dir.glob(f"results/base/{organism}/{method}/*")
        return folder.relative_to(results_dir / "results").as_posix()

    return find


@pytest.fixture
def copied(results_dir: Path, tmp_path: Path) -> Path:
    """An output folder of its own with the same results, for a test that damages them."""
    shutil.copytree(results_dir / "results", tmp_path / "out" / "results")
    return tmp_path / "out"


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch) -> Visit:
    """Opens a page without a browser; see `visiting.visitor`."""
    return visitor(monkeypatch)


@pytest.fixture
def fresh_server() -> None:
    """As after the server was started: nothing is remembered, no model is in memory."""
    st.cache_resource.clear()
