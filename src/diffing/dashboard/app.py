"""The dashboard's frame: navigation, what stands on every page, and errors as sentences."""

import sys
import traceback
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path

import streamlit as st

import diffing.ui
from diffing.core.errors import UserError, one_line
from diffing.dashboard.moving import remember
from diffing.dashboard.site import Launch, Site, open_site
from diffing.ui.text import plain

PAGES = (
    ("overview", "Overview", ":material/grid_view:"),
    ("result", "Result", ":material/query_stats:"),
    ("compare", "Compare", ":material/compare_arrows:"),
    ("try_it", "Try it", ":material/edit_note:"),
    ("chat", "Chat", ":material/forum:"),
    ("steer", "Steer", ":material/explore:"),
    ("amplify", "Amplify", ":material/equalizer:"),
)

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="6" fill="#0062a3"/>'
    '<path d="M16 7l9 18H7z" fill="none" stroke="#fff" stroke-width="3" stroke-linejoin="round"/></svg>'
)


def main(launch: Launch) -> None:
    """Draw the page that the URL names."""
    st.set_page_config(page_title="diffing", page_icon=_ICON, layout="wide")
    st.html(f"<style>{_style()}</style>")
    try:
        site = open_site(launch)
    except UserError as error:
        st.error(f"{plain(str(error))}  \nStart the dashboard again without that option.")
        return
    pages = {
        name: st.Page(_guarded(name, site), title=title, icon=icon, url_path=name, default=name == "overview")
        for name, title, icon in PAGES
    }
    remember(pages)
    chosen = st.navigation(list(pages.values()), position="top")
    st.set_page_config(page_title=f"{chosen.title} · diffing")
    chosen.run()
    _footer(site)


def _guarded(name: str, site: Site) -> Callable[[], None]:
    """A page that shows its errors: a sentence for what the user can mend, and for a fault of ours where to look."""

    def draw() -> None:
        try:
            import_module(f"diffing.dashboard.pages.{name}").page(site)
        except UserError as error:
            st.error(plain(str(error)))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            st.error(
                f"A fault of ours: {plain(one_line(error))} ({type(error).__name__}). The terminal in which the "
                "dashboard runs shows where; please report it. Other pages go on working."
            )

    draw.__name__ = name
    return draw


def _footer(site: Site) -> None:
    st.divider()
    left, right = st.columns([3, 1], vertical_alignment="center")
    address = st.get_option("server.address") or "all addresses of this machine"
    spec = site.pairs.spec
    held = f"In memory: {spec.organism} on {spec.model.name}." if spec else "No model in memory."
    left.caption(
        f"Results in {plain(str(site.base_dir))}. Served on {plain(str(address))}; nothing is sent anywhere else. "
        f"{plain(held)}"
    )
    if spec and right.button("Unload models", icon=":material/eject:", key="unload"):
        site.pairs.unload()
        st.rerun()


@cache
def _style() -> str:
    return (Path(diffing.ui.__file__).parent / "page.css").read_text(encoding="utf-8")
