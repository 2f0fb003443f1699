"""Result: one run, from base model to run folder; its numbers, figures, tables, examples, and how it was made."""

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from diffing.core.errors import UserError
from diffing.core.method import MethodSpec, load_method
from diffing.core.result import Result
from diffing.dashboard.catalog import Entry
from diffing.dashboard.links import hub_model, outside
from diffing.dashboard.moving import page_link
from diffing.dashboard.site import Site
from diffing.dashboard.subjects import Subject
from diffing.display.calibrated import judged, stable
from diffing.report.making import facts, records
from diffing.ui.blocks import section
from diffing.ui.evidence import evidence
from diffing.ui.html_tables import facts_list, headline_table
from diffing.ui.paged_table import paged_table
from diffing.ui.parts import guarded, one_of, part
from diffing.ui.text import link, paragraph, plain

_LEVELS = (
    ("model", "Base model"),
    ("organism", "Organism"),
    ("variant", "Variant"),
    ("method", "Method"),
    ("id", "Run"),
)


def page(site: Site) -> None:
    """Draw the page."""
    entries = site.catalog.entries()
    if not entries:
        st.title("Result")
        st.info("There is no result yet; the Overview says how to make the first one.")
        page_link("overview", "Overview", ":material/grid_view:")
        return
    entry = _choose(entries)
    if not entry.is_readable:
        _head(entry)
        _unfinished(entry)
        return
    result = Result(entry.folder)
    method = _method(entry.method)
    _head(entry, result, method)
    part(
        "show",
        {
            "Findings": lambda: _findings(result, method),
            "Tables": lambda: _tables(result),
            "How it was made": lambda: _made(result),
        },
    )


def _choose(entries: Sequence[Entry]) -> Entry:
    """The run that the URL names, and controls that change it; the URL alone says which it is."""
    by_id = {e.id: e for e in entries}
    wanted = st.query_params.get("run")
    entry = by_id.get(wanted or "")
    if entry is None:
        readable = [e for e in entries if e.is_readable]
        entry = next((e for e in readable if e.null_pair == "none"), (readable or entries)[0])
        if wanted:
            st.warning(f"There is no run {plain(wanted)} here; this is the newest one.")
    candidates = list(entries)
    for column, (field, label) in zip(st.columns([2, 2, 1.5, 1.5, 2]), _LEVELS, strict=True):
        options = list(dict.fromkeys(getattr(e, field) for e in candidates))
        key = f"choose_{field}"
        st.session_state[key] = getattr(entry, field)
        column.selectbox(
            label, options, key=key, on_change=_move, args=(field, entry, candidates),
            format_func=(lambda i: _run_label(by_id[i])) if field == "id" else str,
        )  # fmt: skip
        candidates = [e for e in candidates if getattr(e, field) == getattr(entry, field)]
    if st.query_params.get("run") != entry.id:
        st.query_params["run"] = entry.id
    return entry


def _move(field: str, before: Entry, candidates: Sequence[Entry]) -> None:
    """Go to the run nearest to the one before: same method, variant and organism where there is one."""
    chosen = st.session_state[f"choose_{field}"]
    fitting = [e for e in candidates if getattr(e, field) == chosen]
    if fitting:
        alike = ("organism", "variant", "method")
        best = max(
            fitting, key=lambda e: (*(getattr(e, a) == getattr(before, a) for a in alike), e.is_readable, e.when)
        )
        st.query_params["run"] = best.id


def _run_label(entry: Entry) -> str:
    seed = "" if entry.seed is None else f" · seed {entry.seed}"
    tokens = "" if not entry.n_tokens else f" · {entry.n_tokens:,} tokens"
    state = "" if entry.status == "done" else f" · {entry.status}"
    return f"{Path(entry.id).name[:8]}{seed}{tokens}{state}"


def _method(name: str) -> MethodSpec | None:
    try:
        return load_method(name)
    except UserError:
        return None


def _head(entry: Entry, result: Result | None = None, method: MethodSpec | None = None) -> None:
    st.title(f"{plain(entry.label)} against {plain(entry.model)}")
    about = f"{method.title}. {method.summary}" if method else entry.method
    organism = result.manifest["config"].get("organism", {}) if result else {}
    described = organism.get("description") if isinstance(organism, dict) and entry.null_pair == "none" else None
    paragraph(about)
    if described:
        paragraph(f"{entry.organism}: {described.replace('`', '')}", "d-muted")
    if result and entry.null_pair == "none":
        paragraph(judged(result.calibration()), "d-muted")
        if said := stable(result.stability()):
            paragraph(said, "d-muted")
    links = [link(url, text) for url, text in outside(entry)]
    if base := hub_model(entry.base_id, entry.origins[0]):
        links.insert(0, link(base, "base model"))
    if links:
        st.html(" &nbsp; ".join(links))
    if entry.status == "stale":
        st.warning(f"Stale: {plain(entry.reason or '')} Run it again with `overwrite=true`.")
    if entry.null_pair != "none":
        st.info("A null pair: nothing was finetuned here; this is what the method says about nothing.")
    if result is None:
        return
    for note in result.manifest.get("notes", []):
        st.caption(f":material/info: {plain(note)}")
    subject = Subject(entry.model, entry.organism, entry.variant)
    if entry.null_pair == "none":
        with st.container(horizontal=True):
            for name, label, icon in _ELSEWHERE:
                page_link(name, label, icon, base=subject.model, pair=subject.name)
    guarded(lambda: headline_table(result.summary))


_ELSEWHERE = (
    ("try_it", "Try text on this pair", ":material/edit_note:"),
    ("chat", "Chat with both", ":material/forum:"),
    ("steer", "Steer", ":material/explore:"),
)


def _unfinished(entry: Entry) -> None:
    said = {
        "running": "It is being computed; the Overview shows how far it is.",
        "failed": f"It failed: {entry.reason}. The same command tries again.",
        "interrupted": f"It was interrupted ({entry.reason}); the same command goes on from what is whole.",
        "damaged": f"It cannot be read: {entry.reason}",
    }
    show = st.info if entry.status == "running" else st.error
    show(plain(said[entry.status]))
    paragraph(f"Folder: {entry.folder}", "d-muted")


def _findings(result: Result, method: MethodSpec | None) -> None:
    if method is None:
        st.warning(f"The method {plain(result.method)} is not installed; this is what it wrote in the shared shape.")
        evidence(result)
    elif method.view is not None:
        method.view(result)
    else:
        section(result, method.section(result))


def _tables(result: Result) -> None:
    if not result.tables():
        st.info("This result has no tables.")
        return
    name = one_of("Table", result.tables(), "table")
    paged_table(result, name, f"table_{name}")


def _made(result: Result) -> None:
    left, right = st.columns([3, 2])
    with left:
        for group in facts(result.manifest):
            st.markdown(f"**{plain(group.title)}**")
            facts_list(group.rows)
    with right:
        st.markdown("**The command**")
        st.code(result.manifest.get("command") or "made from Python", language="bash", wrap_lines=True)
        _downloads(result)
    for record in records(result.manifest):
        with st.expander(plain(record.title)):
            st.code(record.text, language="yaml")


def _downloads(result: Result) -> None:
    st.markdown("**Files**")
    paragraph(str(result.folder), "d-muted")
    kinds = {"report.html": "text/html", "evidence.json": "application/json", "manifest.json": "application/json"}
    for name, kind in kinds.items():
        path = result.folder / name
        if path.is_file():
            st.download_button(
                name, path.read_bytes, f"{result.manifest['pair']['organism']}-{result.method}-{name}", kind,
                key=f"file-{name}", on_click="ignore", icon=":material/download:",
            )  # fmt: skip
