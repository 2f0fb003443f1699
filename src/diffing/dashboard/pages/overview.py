"""Overview: every run on disk as organisms by methods, what is running, and starting a run."""

import time
from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from diffing.core.method import method_names
from diffing.dashboard.catalog import STATUSES, Entry
from diffing.dashboard.links import hub_model, outside, result_url
from diffing.dashboard.moving import go
from diffing.dashboard.pages.runs import new_run, running
from diffing.dashboard.site import Site
from diffing.display.numbers import ago, number
from diffing.ui.kept import kept_choice
from diffing.ui.matrix import Cell, Row, glyph, matrix
from diffing.ui.text import code, link, plain

_ROWS = 30


def page(site: Site) -> None:
    """Draw the page."""
    st.title("What did finetuning change?")
    entries = site.catalog.entries()
    if not entries:
        _nothing_yet(site)
        return
    running(site)
    chosen = _chosen(entries)
    if _view() == "matrix":
        _matrix(chosen)
    else:
        _list(chosen)
    new_run(site)


def _nothing_yet(site: Site) -> None:
    st.markdown(
        f"There is no result below {code(str(site.base_dir))} yet. This command makes the first one, offline, in a few "
        "minutes: it compares the embedded SmolLM2-135M-Instruct with its organism `caps`, which answers in capitals."
    )
    st.code("python main.py", language="bash")
    running(site)
    new_run(site, is_first=True)


def _chosen(entries: Sequence[Entry]) -> list[Entry]:
    """The entries that the controls at the top let through."""
    models = list(dict.fromkeys(e.model for e in entries))
    first, second, third, fourth = st.columns([2, 2, 2, 2])
    model = kept_choice(first, "Base model", models, "model")
    search = second.text_input("Search organisms", key="q", bind="query-params", max_chars=100, type="search")
    states = third.multiselect("State", STATUSES, key="state", bind="query-params", placeholder="any")
    methods = fourth.multiselect(
        "Method", sorted({e.method for e in entries}), key="method", bind="query-params", placeholder="all"
    )
    mine = [e for e in entries if e.model == model]
    base = next(((e.base_id, e.origins[0]) for e in mine if e.base_id), (None, None))
    if url := hub_model(*base):
        st.html(link(url, f"{base[0]} on the hub"))
    kept = [e for e in mine if (search or "").lower() in f"{e.organism} {e.variant} {e.finetuned_id or ''}".lower()]
    kept = [e for e in kept if (not states or e.status in states) and (not methods or e.method in methods)]
    if not kept:
        st.info("No run fits these filters; clear one of them.")
    return kept


def _view() -> str:
    return st.segmented_control(
        "Shown as", ["matrix", "list"], default="matrix", required=True, key="view", bind="query-params",
        label_visibility="collapsed",
    ) or "matrix"  # fmt: skip


def _matrix(entries: Sequence[Entry]) -> None:
    by_row: dict[str, list[Entry]] = {}
    for entry in entries:
        by_row.setdefault(entry.label, []).append(entry)
    order = method_names()
    columns = sorted({e.method for e in entries}, key=lambda m: (order.index(m) if m in order else len(order), m))
    labels = _paged(list(by_row), "organisms")
    rows = [
        Row(label, _links(by_row[label]), tuple(_cell([e for e in by_row[label] if e.method == m]) for m in columns))
        for label in labels
    ]
    if rows and (chosen := matrix("Runs, organisms by methods", "organism", columns, rows, "matrix")):
        _open(chosen)


def _links(entries: Sequence[Entry]) -> tuple[tuple[str, str], ...]:
    return next((found for e in entries if (found := outside(e))), ())


def _cell(entries: Sequence[Entry]) -> Cell | None:
    """The newest run of an organism and method, readable ones first, and how many more there are."""
    if not entries:
        return None
    entry = max(entries, key=lambda e: (e.status == "running", e.is_readable, e.when))
    value = f"{number(entry.headline.value)} {entry.headline.unit}" if entry.headline else entry.status
    small = [*([entry.headline.name] if entry.headline else []), f"{_state(entry)}{ago(time.time() - entry.when)}"]
    if len(entries) > 1:
        small.append(f"and {len(entries) - 1} more")
    return Cell(entry.id, result_url(entry), entry.status, value, tuple(small), entry.reason)


def _state(entry: Entry) -> str:
    return f"{entry.status}, " if entry.status != "done" and entry.headline else ""


def _list(entries: Sequence[Entry]) -> None:
    shown = _paged(list(entries), "runs")
    rows = [
        {
            "state": f"{glyph(e.status)} {e.status}",
            "organism": e.label,
            "method": e.method,
            "headline": f"{e.headline.name}: {number(e.headline.value)} {e.headline.unit}" if e.headline else None,
            "made": ago(time.time() - e.when),
            "tokens": e.n_tokens,
            "seed": e.seed,
            "reason": e.reason,
            "folder": Path(e.id).name,
        }
        for e in shown
    ]
    if not rows:
        return
    st.caption("Choose a row to open it.")
    event = st.dataframe(
        rows, hide_index=True, on_select="rerun", selection_mode="single-row", key="runs", alt="Runs, newest first"
    )
    if chosen := event["selection"]["rows"]:
        _open(shown[chosen[0]].id)


def _paged(items: list, what: str) -> list:
    if len(items) <= _ROWS:
        return items
    n_pages = -(-len(items) // _ROWS)
    page = st.number_input(
        f"Page of {n_pages}: {len(items):,} {plain(what)}, newest first", 1, None, 1, key="page", bind="query-params",
        width=260,
    )  # fmt: skip
    start = (min(int(page), n_pages) - 1) * _ROWS
    return items[start : start + _ROWS]


def _open(run: str) -> None:
    go("result", run=run)
