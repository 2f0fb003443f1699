"""What all pages share: the settings the dashboard was started with, the runs on disk, the models in memory."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import streamlit as st

from diffing.core.settings import RunConfig
from diffing.dashboard.catalog import Catalog
from diffing.dashboard.pairs import PairStore

_composing = threading.Lock()


@dataclass(frozen=True)
class Launch:
    """How the dashboard was started.

    Args:
        overrides: Options of the command line, as `python main.py` takes them.
        compose: From such options to settings; raises `UserError`.
        main: `main.py`, which runs are started with.
    """

    overrides: tuple[str, ...]
    compose: Callable[[Sequence[str]], RunConfig]
    main: Path


@dataclass(frozen=True)
class Site:
    """The dashboard as every page sees it.

    Args:
        launch: How it was started.
        settings: What that composes to.
        catalog: The runs below the output folder.
        pairs: The models in memory.
    """

    launch: Launch
    settings: RunConfig
    catalog: Catalog
    pairs: PairStore

    @cached_property
    def base_dir(self) -> Path:
        """The output folder."""
        return Path(self.settings.infrastructure.storage.base_dir).expanduser()

    def settings_with(self, *more: str) -> RunConfig:
        """Settings with further options, which win over those of the command line.

        Raises:
            UserError: One does not exist or fit.
        """
        return compose(self.launch, (*without(self.launch.overrides, more), *more))


def open_site(launch: Launch) -> Site:
    """The site; its parts are made once per server.

    Raises:
        UserError: An option of the command line does not exist or fit.
    """
    settings = compose(launch, launch.overrides)
    base_dir = Path(settings.infrastructure.storage.base_dir).expanduser()
    return Site(launch, settings, _catalog(base_dir.resolve()), _pairs())


def compose(launch: Launch, overrides: Sequence[str]) -> RunConfig:
    """Settings of some options; remembered, since Hydra takes a while and serves one caller at a time."""
    known = _composed()
    key = tuple(overrides)
    with _composing:
        if key not in known:
            known[key] = launch.compose(key)
        return known[key]


def without(overrides: Sequence[str], more: Sequence[str]) -> list[str]:
    """`overrides` without those whose option `more` sets."""
    keys = {o.partition("=")[0] for o in more}
    return [o for o in overrides if o.partition("=")[0] not in keys]


@st.cache_resource(show_spinner=False)
def _composed() -> dict[tuple[str, ...], RunConfig]:
    return {}


@st.cache_resource(show_spinner=False)
def _catalog(base_dir: Path) -> Catalog:
    return Catalog(base_dir)


@st.cache_resource(show_spinner=False)
def _pairs() -> PairStore:
    return PairStore()
