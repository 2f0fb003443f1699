"""The page as a whole: whole HTML, nothing fetched, nothing of the models' text run, nothing left out."""

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_fakes import BLOCKS, HOSTILE, SCALARS, TOKENS, method

from diffing.core.blocks import Heading, Paragraph
from diffing.core.evidence import Evidence
from diffing.core.result import Result
from diffing.display.numbers import number
from diffing.report.render import render_report, write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}
MakeResult = Callable[..., Result]


class Page(HTMLParser):
    """Tags with attributes, visible text, script sources; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            attributes, source = self.scripts[-1]
            self.scripts[-1] = (attributes, source + data)
        elif "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def test_page_is_balanced_html_with_one_h1_and_headings_in_order(full_page: str):
    page = Page(full_page)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert full_page.startswith("<!doctype html>")
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_ids_are_unique_and_references_point_at_them(full_page: str):
    tags = Page(full_page).tags
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    named = [a[k] for _, a in tags for k in ("aria-labelledby", "aria-describedby") if k in a]
    named += [a["href"][1:] for _, a in tags if a.get("href")]
    assert set(named) <= set(ids)


def test_hostile_text_is_shown_and_never_becomes_markup(full_page: str):
    page = Page(full_page)
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "embed", "base", "form")]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert full_page.lower().count("<script") == full_page.lower().count("</script") == len(page.scripts)
    assert "<img" not in full_page.split("<script>")[0]
    assert HOSTILE in page.text


def test_nothing_is_fetched(full_page: str):
    tags = Page(full_page).tags
    links = [a[k] for _, a in tags for k in ("src", "href", "action", "data", "srcset", "poster") if k in a]
    assert all(link.startswith("#") for link in links if link is not None)
    style = full_page[full_page.index("<style>") : full_page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("style-src")[0]


def test_policy_names_exactly_our_scripts(full_page: str):
    page = Page(full_page)
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    sources = [source for attributes, source in page.scripts if "type" not in attributes]
    hashes = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in sources}
    assert hashes == set(re.findall(r"'sha256-([^']+)'", policy or ""))


def test_figure_json_is_whole_and_inert(full_page: str):
    ((attributes, source),) = [s for s in Page(full_page).scripts if s[0].get("type") == "application/json"]
    figure = json.loads(source)
    assert attributes["data-figure"] == "curve"
    assert not set("<>&") & set(source)
    assert figure["data"][0]["x"] == [1, None]
    assert figure["data"][0]["text"] == ["&lt;a href='//x'>t&lt;/a>"]
    assert figure["layout"]["title"]["text"] == HOSTILE
    assert "template" not in figure["layout"]


def test_every_number_of_the_summary_is_there_rounded_and_whole(full_page: str):
    page = Page(full_page)
    values = {a["value"] for tag, a in page.tags if tag == "data"}
    for scalar in SCALARS:
        known = [scalar[k] for k in ("value", "low", "high", "null") if scalar[k] is not None]
        assert {str(v) for v in known} <= values
        assert all(number(v) in page.text for v in known)
        assert scalar["name"] in page.text
    assert all(state in page.text for state in ("claimed", "not claimed", "not calibrated"))


def test_tokens_show_whitespace_and_invisible_characters(full_page: str):
    page = Page(full_page)
    assert "␣the" in page.text
    assert "↵↵" in page.text
    assert "U+202Eevil" in page.text
    assert "\u202e" not in page.text


def test_heat_maps_keep_text_and_give_values_to_pointer_and_keyboard(full_page: str):
    tokens = [a for tag, a in Page(full_page).tags if tag == "span" and (a.get("class") or "").split(" ")[0] == "t"]
    assert len(tokens) == 5 * 4
    assert [a["class"] for a in tokens[:4]] == ["t h16 at", "t h8", "t none", "t h0"]
    assert [a.get("tabindex") for a in tokens[:4]] == ["0", None, None, None]
    assert tokens[0]["title"] == f"{HOSTILE}\nKL 2 nats"
    assert "no value" in (tokens[2]["title"] or "")
    assert '> one<span class="nl"></span>\n</span>' in full_page


def test_tables_have_captions_and_scopes(full_page: str):
    tags = [tag for tag, _ in Page(full_page).tags]
    assert tags.count("caption") == tags.count("table")
    assert all("scope" in a for tag, a in Page(full_page).tags if tag == "th")


def test_manifest_facts_notes_and_command_are_there(full_page: str):
    text = Page(full_page).text
    for fact in (
        "r" * 40,
        "b" * 64,
        "da7a",
        "ab12",
        "c0ffee",
        "torch 2.13.0",
        "1 min 15 s",
        "3.00 GiB",
        "MIT",
        "12,345",
    ):
        assert fact in text
    assert "3 sequences were left out." in text
    assert f"python main.py organism={HOSTILE}" in text
    assert "null_pair: none" in text


def test_no_evidence_no_figures_no_scalars(make_result: MakeResult):
    bare = {
        "pair": {"model": "m", "organism": "o", "variant": "default", "base_id": "b", "finetuned_id": "f"},
        "data": {"n_tokens": 1, "spec": {}},
    }
    result = make_result(None, [], **bare)
    for key in ("notes", "command", "versions", "wall_seconds", "peak_memory_bytes", "git", "fingerprint"):
        del result.manifest[key]
    html = render_report(result, method(()))
    assert "o against m" in Page(html).text
    assert len(html) < 100_000


def test_sections_without_figures_carry_no_plotly(make_result: MakeResult):
    html = render_report(make_result(Evidence()), method((Heading("a"), Paragraph("b"))))
    assert len(Page(html).scripts) == 1
    assert "Plotly" not in html


def test_null_pair_is_said(make_result: MakeResult):
    html = render_report(make_result(config={"null_pair": "identical"}), method(()))
    assert "A null comparison: the base model with itself" in Page(html).text


def test_report_is_written_whole_and_survives_half_a_surrogate(make_result: MakeResult):
    result = make_result(Evidence(tokens=TOKENS))
    path = write_report(result, method((*BLOCKS, Paragraph("half \ud83d"))))
    assert path == result.folder / "report.html"
    assert "half \ufffd" in path.read_text(encoding="utf-8")
    assert not list(result.folder.glob(".*tmp"))


def test_page_is_the_same_every_time(make_result: MakeResult, full_page: str):
    assert render_report(make_result(Evidence(tokens=TOKENS)), method(BLOCKS)) == full_page


@pytest.mark.parametrize("name", ["page.html", "headline.html", "blocks.html", "made.html"])
def test_templates_hold_no_inline_handlers_or_fetches(name: str):
    import diffing.report.render as render

    text = (Path(render.__file__).parent / "templates" / name).read_text(encoding="utf-8")
    assert not re.search(r"\son\w+=|https?:|src=", text)
