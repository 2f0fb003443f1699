"""Choosing the pair that a live page tries, and loading it when it is needed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st

from diffing.core.specs import PairSpec
from diffing.dashboard.catalog import Entry
from diffing.dashboard.site import Site
from diffing.dashboard.subjects import Subject, spec_of, subjects
from diffing.ui.kept import kept_choice
from diffing.ui.text import plain

if TYPE_CHECKING:
    from diffing.models.pair import ModelPair

SIDES = ("base", "finetuned")


def pick_subject(site: Site, entries: Sequence[Entry]) -> Subject:
    """The pair that the URL names, with controls that change it."""
    known = subjects(site, entries)
    left, right = st.columns(2)
    models = list(dict.fromkeys(s.model for s in known))
    model = kept_choice(left, "Base model", models, "base")
    fitting = {s.name: s for s in known if s.model == model}
    name = kept_choice(right, "Organism", list(fitting), "pair")
    return fitting[name]


def state_of(site: Site, subject: Subject, entries: Sequence[Entry]) -> PairSpec:
    """The pair's spec, with a line that says whether it is in memory."""
    spec = spec_of(site, subject, entries)
    if site.pairs.holds(spec):
        st.caption(":material/memory: Both models are in memory.")
    else:
        source = spec.model.id or spec.model.name
        where = "" if source.startswith("embedded:") else "; a hub id is fetched then"
        st.caption(f":material/hourglass_empty: The models are loaded on first use ({plain(source)}{where}).")
    return spec


def loaded(site: Site, spec: PairSpec) -> "ModelPair":
    """The pair, loaded with progress unless it is at hand.

    Raises:
        UserError: It cannot be loaded.
    """
    if site.pairs.holds(spec):
        return site.pairs.get(spec)
    with st.status(f"Loading {plain(spec.model.name)} and {plain(spec.organism)} …", expanded=True) as status:
        threads = site.settings.infrastructure.threads
        pair = site.pairs.get(spec, lambda line: status.write(plain(line)), threads)
        status.update(label="Both models are in memory.", state="complete", expanded=False)
    return pair
