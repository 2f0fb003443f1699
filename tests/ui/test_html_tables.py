"""Tables of the dashboard: cells that are unknown say so, whatever their column holds."""

import pytest

pytest.importorskip("streamlit")

import diffing.ui.html_tables
from diffing.core.blocks import Table
from diffing.ui.html_tables import table


@pytest.fixture
def drawn(monkeypatch):
    pages = []
    monkeypatch.setattr(diffing.ui.html_tables.st, "html", pages.append)
    return pages


def test_an_unknown_token_is_a_dash_and_a_token_called_none_is_itself(drawn):
    table(Table(("token", "score"), (("None", 1.5), (None, None)), "", ("token",)))
    (page,) = drawn
    assert str(page).count("None") == 1
    assert str(page).count("–") == 2
