"""Settings for all tests: shape checks at run time, one thread per tiny model, a cache folder shared by the run."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from workbench import Bench, Outcome, sentences, write_jsonl

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
_all_slow: dict[Path, bool] = {}
install_import_hook(["diffing.analysis", "diffing.data"], "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note which modules hold slow tests alone."""
    for item in items:
        quick = item.get_closest_marker("slow") is None
        _all_slow[item.path] = _all_slow.get(item.path, True) and not quick


@pytest.fixture(scope="module", autouse=True)
def threads(request: pytest.FixtureRequest) -> None:
    """Tiny models have one thread, since more only wait for each other; a module of slow tests alone has its worker's
    share of the cores.

    Never a change within a module: results are equal to the bit for one number of threads.
    """
    is_slow = _all_slow.get(request.node.path, False)
    if is_slow or "torch" in sys.modules:
        import torch

        torch.set_num_threads(max((os.cpu_count() or 1) // _n_workers(), 1) if is_slow else 1)


def _n_workers() -> int:
    return int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


@pytest.fixture(autouse=True)
def main_module() -> Iterator[None]:
    """Streamlit's AppTest leaves its script as `__main__`, which processes started later would run."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is out of reach, at once."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A tiny pair on disk, made once; tests must not change it."""
    from diffing.models.tiny import perturbed, save_adapter, save_model, tiny_model, tiny_tokenizer

    made = Bench(tmp_path_factory.mktemp("bench"))
    base = tiny_model()
    save_model(made.base, base, tiny_tokenizer())
    save_adapter(made.adapter, base)
    save_model(made.full, perturbed(base, 1, 0.05), tiny_tokenizer())
    write_jsonl(made.texts, sentences(12))
    return made


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Outcome]:
    """Runs the command line in this process, from an empty working folder."""
    from diffing.cli import main

    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(sys, "argv", ["main.py"])

    def call(*args: str | list[str]) -> Outcome:
        capsys.readouterr()
        code = main([a for arg in args for a in ([arg] if isinstance(arg, str) else arg)])
        streams = capsys.readouterr()
        return Outcome(code, streams.out, streams.err)

    return call
