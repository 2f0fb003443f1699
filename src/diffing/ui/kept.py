"""Choices that always stand in the URL, for options whose first one changes as results come in.

Streamlit's own binding leaves a value out of the URL while it is the default: a link would then open whatever is first
by then. Here the URL alone says what is chosen, and is always complete.
"""

from collections.abc import Callable, Sequence

import streamlit as st
from streamlit.delta_generator import DeltaGenerator


def kept_choice(
    place: DeltaGenerator, label: str, options: Sequence[str], key: str, *, default: str | None = None,
    format_func: Callable[[str], str] = str, then: Callable[[str], None] | None = None,
) -> str:  # fmt: skip
    """One of some options from a list.

    Args:
        place: Where the control is drawn.
        label: Its label.
        options: What can be chosen; at least one.
        key: Its name in the URL.
        default: Chosen where the URL names none of the options; None: the first.
        format_func: How an option is shown.
        then: Called with the new choice when the user makes one.
    """
    wanted = st.query_params.get(key)
    first = options[0] if default is None else default
    chosen = wanted if wanted is not None and wanted in options else first
    st.session_state[key] = chosen
    place.selectbox(label, options, key=key, format_func=format_func, on_change=_keep, args=(key, then))
    if wanted != chosen:
        st.query_params[key] = chosen
    return chosen


def kept_choices(
    place: DeltaGenerator,
    label: str,
    options: Sequence[str],
    key: str,
    *,
    default: Sequence[str],
    most: int,
    about: str,
) -> list[str]:
    """Several of some options, at most `most`; `default` where the URL names none of them. `about` is the help text."""
    wanted = st.query_params.get_all(key)
    chosen = [o for o in dict.fromkeys(wanted) if o in options][:most] or list(default)[:most]
    st.session_state[key] = chosen
    place.multiselect(label, options, max_selections=most, key=key, help=about, on_change=_keep, args=(key, None))
    if wanted != chosen:
        st.query_params[key] = chosen
    return chosen


def _keep(key: str, then: Callable[[str], None] | None) -> None:
    value = st.session_state[key]
    st.query_params[key] = value
    if then is not None:
        then(value)
