"""Choosing which part of a page is drawn: kept in the URL, and only the chosen part is computed."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import streamlit as st

from diffing.core.blocks import Heatmap
from diffing.core.errors import UserError
from diffing.ui.heatmap import heatmaps
from diffing.ui.text import label as escaped
from diffing.ui.text import plain

T = TypeVar("T")
EXAMPLES_ON_A_PAGE = 5


def part(key: str, parts: Mapping[str, Callable[[], None]], label: str = "Show") -> None:
    """Draw the part that is chosen; `key` is its name in the URL."""
    chosen = one_of(label, list(parts), key, is_labelled=False)
    guarded(parts[chosen])


def guarded(draw: Callable[[], None]) -> None:
    """Draw something; where it cannot be, its sentence stands there and the rest of the page goes on."""
    try:
        draw()
    except UserError as error:
        st.error(plain(str(error)))


def one_of(label: str, options: Sequence[str], key: str, is_labelled: bool = True, default: str | None = None) -> str:
    """One of a few options, side by side; the first unless chosen otherwise."""
    first = default if default is not None and default in options else options[0]
    if st.session_state.get(key) not in (None, *options):
        del st.session_state[key]
    chosen = st.segmented_control(
        label, options, default=first, required=True, key=key, bind="query-params", format_func=escaped,
        label_visibility="visible" if is_labelled else "collapsed",
    )  # fmt: skip
    return chosen if chosen is not None and chosen in options else first


def one_of_many(label: str, options: Sequence[str], key: str) -> str:
    """One of many options, from a list; the first unless chosen otherwise."""
    if st.session_state.get(key) not in (None, *options):
        del st.session_state[key]
    chosen = st.selectbox(label, options, key=key, bind="query-params")
    return chosen if chosen in options else options[0]


def examples(items: Sequence[Heatmap], maximum: float, unit: str, key: str) -> None:
    """Heat maps, a few on a page."""
    n_pages = max(1, -(-len(items) // EXAMPLES_ON_A_PAGE))
    page = 1
    if n_pages > 1:
        number = st.number_input(
            f"Page of {n_pages} ({len(items)} examples)", 1, None, 1, key=f"{key}_page", bind="query-params", width=220
        )
        page = min(int(number), n_pages)
    shown = items[(page - 1) * EXAMPLES_ON_A_PAGE : page * EXAMPLES_ON_A_PAGE]
    st.caption("Point at a token, or choose one and use the arrow keys, to read its values.")
    heatmaps(shown, maximum, unit, f"{key}_maps")
