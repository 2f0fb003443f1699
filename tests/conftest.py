"""Settings for all tests: shape checks at run time, one thread per tiny model, a cache folder shared by the run."""

import os

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
install_import_hook(["diffing.analysis", "diffing.data"], "beartype.beartype")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is out of reach, at once."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
