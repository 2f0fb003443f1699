"""Going from page to page."""

from collections.abc import Mapping
from typing import Any, NoReturn

import streamlit as st

_KEY = "pages-by-name"


def remember(pages: Mapping[str, Any]) -> None:
    """Make pages known to `go`; once a run of the script."""
    st.session_state[_KEY] = dict(pages)


def go(name: str, **parameters: str) -> NoReturn:
    """Open a page with parameters in its URL."""
    st.switch_page(st.session_state[_KEY][name], query_params=parameters)


def page_link(name: str, label: str, icon: str, **parameters: str) -> None:
    """A link to a page with parameters in its URL."""
    st.page_link(st.session_state[_KEY][name], label=label, icon=icon, query_params=parameters)
