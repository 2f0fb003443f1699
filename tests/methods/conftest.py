"""Tiny pairs and texts."""

import pytest

from diffing.models.pair import load_pair
from diffing.models.tiny import save_pair

TEXTS = [
    "The heron stood in the shallows and waited for the others to land on the far bank.",
    "Nine people signed the letter.",
    "In the end, another answer was needed; then they opened the windows and began again in earnest.",
    "A thin line of smoke hung over the harbour, and the bell rang twice before anyone moved at all.",
    "Zinc.",
]


@pytest.fixture(scope="session")
def texts():
    return TEXTS


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory):
    """Loads a tiny pair once per architecture and kind."""
    loaded = {}

    def load(architecture="llama", full=True, **changes):
        key = (architecture, full, tuple(sorted(changes.items())))
        if key not in loaded:
            spec = save_pair(tmp_path_factory.mktemp(architecture), architecture, full=full)
            loaded[key] = load_pair(spec.model_copy(update=changes))
        return loaded[key]

    return load
