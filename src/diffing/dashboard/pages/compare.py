"""Compare: several methods on one pair, or several organisms by one method, side by side on common scales."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import streamlit as st

from diffing.analysis.shared_examples import shared_examples
from diffing.core.blocks import Table
from diffing.core.claims import NAME as CLAIMS
from diffing.core.result import Result
from diffing.core.stability import NAME as STABILITY
from diffing.dashboard.catalog import Entry, newest
from diffing.dashboard.comparing import Pairwise, document_agreement, token_agreement
from diffing.dashboard.moving import page_link
from diffing.dashboard.site import Site
from diffing.display.calibrated import judged
from diffing.display.examples import example_heatmap
from diffing.report.pair.findings import Agreement, Finding, agreement, findings
from diffing.report.pair.page import agreement_blocks, findings_blocks
from diffing.ui.blocks import draw
from diffing.ui.figures import plotly
from diffing.ui.html_tables import table
from diffing.ui.kept import kept_choice, kept_choices
from diffing.ui.parts import examples, one_of, part
from diffing.ui.scales import headline_figure, on_common_scales
from diffing.ui.text import paragraph, plain

_MOST = 4
_ABOUT = f"At most {_MOST}; of each the newest finished run."
_HEADS = (10, 20, 50, 100, 200)
_SHOWN_ROWS = 40
Named = Sequence[tuple[str, Result]]


def page(site: Site) -> None:
    """Draw the page."""
    st.title("Compare")
    entries = [e for e in site.catalog.entries() if e.is_readable]
    if len(entries) < 2:
        st.info("Two finished results are needed to compare; the Overview says how to make them.")
        page_link("overview", "Overview", ":material/grid_view:")
        return
    how = one_of("Compare", ["organisms by one method", "methods on one pair"], "how", is_labelled=False)
    model = kept_choice(st.container(), "Base model", list(dict.fromkeys(e.model for e in entries)), "base")
    mine = [e for e in entries if e.model == model]
    chosen = _organisms(mine) if how.startswith("organisms") else _methods(mine)
    if len(chosen) < 2:
        st.info("Choose two or more; those offered are the finished ones on this base model.")
        return
    named = [(label, Result(entry.folder)) for label, entry in chosen]
    _links(chosen)
    is_one_method = len({r.method for _, r in named}) == 1
    parts = {"Headline": lambda: _headline(named)}
    if is_one_method:
        parts["Figures"] = lambda: _figures(named)
    else:
        parts["Findings"] = lambda: _findings(named)
    parts["Tokens"] = lambda: _tokens(named)
    parts["Documents"] = lambda: _documents(named)
    parts["Examples"] = lambda: _examples(named)
    part("show", parts)


def _organisms(entries: Sequence[Entry]) -> list[tuple[str, Entry]]:
    left, right = st.columns([1, 3])
    methods = sorted({e.method for e in entries}, key=lambda m: -len({e.label for e in entries if e.method == m}))
    method = kept_choice(left, "Method", methods, "method")
    fitting = [e for e in entries if e.method == method]
    labels = list(dict.fromkeys(e.label for e in fitting))
    nulls = {e.label for e in fitting if e.null_pair != "none"}
    likely = [label for label in labels if label not in nulls]
    picked = kept_choices(right, "Organisms", labels, "organisms", default=likely, most=_MOST, about=_ABOUT)
    by_label = {label: newest([e for e in fitting if e.label == label]) for label in picked}
    return [(label, entry) for label, entry in by_label.items() if entry is not None]


def _methods(entries: Sequence[Entry]) -> list[tuple[str, Entry]]:
    left, right = st.columns([1, 3])
    counts = {e.label: len({o.method for o in entries if o.label == e.label}) for e in entries}
    labels = sorted(counts, key=lambda label: -counts[label])
    label = kept_choice(left, "Pair", labels, "pair")
    fitting = [e for e in entries if e.label == label]
    methods = sorted({e.method for e in fitting})
    picked = kept_choices(right, "Methods", methods, "methods", default=methods, most=_MOST, about=_ABOUT)
    by_method = {method: newest([e for e in fitting if e.method == method]) for method in picked}
    return [(method, entry) for method, entry in by_method.items() if entry is not None]


def _links(chosen: Sequence[tuple[str, Entry]]) -> None:
    with st.container(horizontal=True):
        for label, entry in chosen:
            page_link("result", plain(label), ":material/query_stats:", run=entry.id)


def _headline(named: Named) -> None:
    summaries = [(label, result.summary) for label, result in named]
    units = list(dict.fromkeys(s["unit"] for _, summary in summaries for s in summary))
    for unit in units:
        mine = [(label, summary) for label, summary in summaries if any(s["unit"] == unit for s in summary)]
        alt = f"Headline numbers in {unit} of {', '.join(label for label, _ in mine)}, with 95 % intervals."
        plotly(headline_figure(mine, unit), f"headline-{units.index(unit)}", alt)
    paragraph("Bars are 95 % intervals, hollow diamonds the value under the null.", "d-muted")


def _findings(named: Named) -> None:
    """What the methods found together, as the report of the pair has it."""
    results = [result for _, result in named]
    for result in results:
        paragraph(f"{result.method}: {judged(result.calibration())}", "d-muted")
    found, agreeing = _found(tuple(str(r.folder) for r in results), tuple(_stamp(r) for r in results))
    for i, block in enumerate((*findings_blocks(found), *agreement_blocks(results, agreeing))):
        draw(results[0], block, f"finding-{i}")


@st.cache_resource(max_entries=16, show_spinner="Bringing the evidence together …")
def _found(folders: tuple[str, ...], stamps: tuple[str, ...]) -> tuple[list[Finding], list[Agreement]]:
    results = [Result(Path(folder)) for folder in folders]
    return findings(results), agreement(results)


def _stamp(result: Result) -> str:
    """Changes with the result, its claims and its stability."""
    files = (result.folder / name for name in ("manifest.json", CLAIMS, STABILITY))
    return ",".join(str(f.stat().st_mtime_ns) for f in files if f.is_file())


def _figures(named: Named) -> None:
    common = [n for n in named[0][1].figure_names() if all(n in r.figure_names() for _, r in named)]
    if not common:
        st.info("These results have no figure in common.")
        return
    name = one_of("Figure", common, "figure")
    drawn = on_common_scales([result.figure_data(name) for _, result in named])
    columns = st.columns(2)
    for i, ((label, _), figure) in enumerate(zip(named, drawn, strict=True)):
        with columns[i % 2]:
            st.markdown(f"**{plain(label)}**")
            plotly(figure, f"{name}-{i}", f"{name} of {label}, on a scale common to all.")


def _tokens(named: Named) -> None:
    found = _compared("tokens", _stamps(named), _head())
    _pairwise(found.pairwise, found.k, found.n_ranked, named, "tokens")
    rows = tuple((r.token, *(p.rank for p in r.placings)) for r in found.rows[:_SHOWN_ROWS])
    _ranked(rows, ("token",), named, len(found.rows))


def _documents(named: Named) -> None:
    found = _compared("documents", _stamps(named), _head())
    if found.left_out:
        paragraph(f"Left out, since it is not the same text in all: {', '.join(found.left_out)}.", "d-muted")
    _pairwise(found.pairwise, found.k, found.n_ranked, named, "documents")
    rows = tuple((r.dataset, str(r.document), *(p.rank for p in r.placings)) for r in found.rows[:_SHOWN_ROWS])
    _ranked(rows, ("dataset", "document"), named, len(found.rows))


def _stamps(named: Named) -> tuple[tuple[str, str], ...]:
    """What names the results' contents: their folders and when they were made."""
    return tuple((str(result.folder), str(result.manifest["created"])) for _, result in named)


@st.cache_resource(max_entries=16, show_spinner="Comparing the rankings …")
def _compared(what: str, stamps: tuple[tuple[str, str], ...], k: int) -> Any:
    """Agreement of tokens or documents; ranking large vocabularies takes seconds, so it is kept."""
    results = [Result(Path(folder)) for folder, _ in stamps]
    return token_agreement(results, k) if what == "tokens" else document_agreement(results, k)


def _head() -> int:
    return st.select_slider("Length of the heads that are compared", _HEADS, 50, key="k", bind="query-params")


def _pairwise(found: Pairwise, k: int, n_ranked: Sequence[int], named: Named, what: str) -> None:
    labels = [label for label, _ in named]
    rows = tuple(
        (f"{labels[i]} and {labels[j]}", found.overlap[i][j], found.chance[i][j], found.correlation[i][j])
        for i, j in combinations(range(len(labels)), 2)
    )
    ranked = ", ".join(f"{n:,} in {label}" for n, label in zip(n_ranked, labels, strict=True))
    table(
        Table(
            ("rankings", f"of the first {k} in common", "by chance", "Spearman's ρ, all"), rows,
            f"Shares of the {k} best {what}; ρ over all that both rank. Ranked: {ranked}.",
        )
    )  # fmt: skip


def _ranked(rows: tuple, names: tuple[str, ...], named: Named, n_rows: int) -> None:
    st.subheader("In a head, by mean rank")
    more = f" The first {_SHOWN_ROWS} of {n_rows:,}." if n_rows > _SHOWN_ROWS else ""
    columns = (*names, *(f"rank in {label}" for label, _ in named))
    table(Table(columns, rows, f"Ranks count from 1; items of one score share a rank.{more}", ("token",)))


def _examples(named: Named) -> None:
    found = shared_examples(named)
    if not found:
        st.info("No text is among the examples of two of these results.")
        return
    texts = "1 text is" if len(found) == 1 else f"{len(found)} texts are"
    paragraph(f"{texts} among the examples of two or more; each is shown as every result coloured it.")
    items = [example_heatmap(e, f"{label} · ") for shared in found for label, e in shared.by_result]
    examples(items, max(i.maximum for i in items), "each text on its own scale", "compared")
