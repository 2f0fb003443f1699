"""Tiny pairs and texts."""

import pytest

from workbench import pair_loader

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
    return pair_loader(tmp_path_factory.mktemp, full=True)
