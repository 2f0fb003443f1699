"""Generated texts side by side: places for those that are growing, and finished ones with what differs marked."""

from collections.abc import Sequence
from typing import Any

import streamlit as st

from diffing.analysis.text_diff import DiffSpan
from diffing.dashboard.writing import Writing
from diffing.ui.text import quote


def places(names: Sequence[str]) -> dict[str, Any]:
    """An empty place under each name, in a row."""
    found = {}
    for column, name in zip(st.columns(len(names)), names, strict=True):
        with column, st.container(border=True):
            st.markdown(f"**{name}**")
            found[name] = st.empty()
    return found


def finished(column: Any, name: str, writing: Writing, marks: Sequence[DiffSpan] = ()) -> None:
    """One text in a column, with its length."""
    with column, st.container(border=True):
        st.markdown(f"**{name}**")
        quote(writing.text, [(s.start, s.end) for s in marks])
        st.caption(f"{writing.n_tokens} tokens{'' if writing.has_ended else ', stopped'}")
