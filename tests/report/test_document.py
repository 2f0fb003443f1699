"""Pages about several results: HTML that holds together and runs nothing of a model's text, Markdown that reads so."""

import base64
import hashlib
import itertools
import json
import re
from dataclasses import replace
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report_fakes import BLOCKS, HOSTILE
from test_report_page import Page

from diffing.core.blocks import Block, Figure, Heading, Heatmap, HeatmapList, HeatToken, Paragraph, Section, Table
from diffing.report.document import Chapter, Document, Link, markdown, render_document

FIGURES = {
    "curve": {
        "data": [{"type": "scatter", "x": [1.0, float("nan")], "y": [2, 3], "name": HOSTILE}],
        "layout": {"title": {"text": HOSTILE}, "template": {"layout": {"font": {"color": "template-colour"}}}},
    }
}
LINKS = (Link(HOSTILE, "kl/ab12/report.html"), Link("odd", f"kl/{HOSTILE}/report.html"))
FULL = Document(
    title=f"Title {HOSTILE}",
    eyebrow=f"Kind {HOSTILE}",
    lead=(f"First {HOSTILE}", "Second."),
    chapters=(
        Chapter(Section(f"One {HOSTILE}", BLOCKS), LINKS),
        Chapter(Section("Two", BLOCKS)),
        Chapter(Section("Two", (Paragraph("a"), Heading("Deep", 3), Heading("Shallow"), Heading("Deep", 3)))),
        Chapter(Section("Nothing")),
    ),
    figures=FIGURES,
)
PIECES = ["|", "\\", "`", "``", "*", "_", "[", "]", "(", ")", "<", ">", "#", "&", "!", "~", "=", "-", "+", "1.", ":",
          "a", "b", " ", "  ", "\n", "\n\n", "\r", "\r\n", "\t", "\v", "\x85", "\u2028", "é", "<img>", "</p>", "---",
          "```", "http://x.y", "\x00", "\u202e", "\ud83d"]  # fmt: skip
NASTY = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


@pytest.fixture(scope="module")
def html() -> str:
    return render_document(FULL)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def one_chapter(*blocks: Block, title: str = "Chapter", links: tuple[Link, ...] = ()) -> Document:
    return Document("Title", "Kind", (), (Chapter(Section(title, blocks), links),))


def test_page_is_balanced_with_one_h1_and_headings_in_order(html: str, page: Page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert html.startswith("<!doctype html>")
    assert levels[:2] == [1, 2]
    assert levels.count(1) == 1
    assert levels.count(2) == len(FULL.chapters)
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_hostile_text_is_shown_and_makes_no_element(html: str, page: Page):
    made = {tag for tag, _ in page.tags}
    assert not made & {"img", "iframe", "object", "embed", "base", "form", "link", "x"}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert html.lower().count("<script") == html.lower().count("</script") == len(page.scripts)
    assert "<img" not in html.split("<script")[0]
    for begun in ("Title", "Kind", "First", "One", "Numbers"):
        assert f"{begun} {HOSTILE}" in page.text


def test_policy_names_exactly_the_scripts_of_the_page(page: Page):
    (policy,) = [a["content"] or "" for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    sources = [source for attributes, source in page.scripts if "type" not in attributes]
    assert len(sources) == 3
    hashes = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in sources}
    assert hashes == set(re.findall(r"'sha256-([^']+)'", policy))
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("style-src")[0]
    assert "http" not in policy


def test_ids_are_unique_over_chapters_and_references_point_at_them(page: Page):
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    named = [a[k] for _, a in page.tags for k in ("aria-labelledby", "aria-describedby") if k in a]
    named += [a["href"][1:] for _, a in page.tags if (a.get("href") or "").startswith("#")]
    assert len(named) > len(FULL.chapters)
    assert set(named) <= set(ids)


def test_contents_name_every_chapter_in_order_and_lead_to_its_heading(html: str, page: Page):
    contents = Page(html[html.index("<nav") : html.index("</nav>") + len("</nav>")])
    assert [line for line in contents.text.splitlines() if line] == [c.section.title for c in FULL.chapters]
    targets = [a["href"] for tag, a in contents.tags if tag == "a"]
    headings = [f"#{a['id']}" for tag, a in page.tags if tag == "h2"]
    assert targets == headings


def test_links_are_relative_and_whatever_they_name_stays_within_them(page: Page):
    links = [a["href"] or "" for tag, a in page.tags if tag == "a" and not (a["href"] or "").startswith("#")]
    assert links == [link.href for link in LINKS]
    assert all(set(a) <= {"href", "class"} for tag, a in page.tags if tag == "a")


def test_nothing_is_fetched(html: str, page: Page):
    keys = ("src", "href", "action", "data", "srcset", "poster", "formaction")
    named = [a[k] or "" for _, a in page.tags for k in keys if k in a]
    assert named
    assert not [n for n in named if re.match(r"\s*([a-z][a-z0-9+.-]*:|//)", n, re.IGNORECASE)]
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_a_figure_that_two_chapters_show_is_embedded_once_and_inert(page: Page):
    plots = [a["data-plot"] for _, a in page.tags if "data-plot" in a]
    assert plots == ["curve", "curve"]
    ((attributes, source),) = [s for s in page.scripts if s[0].get("type") == "application/json"]
    figure = json.loads(source)
    assert attributes["data-figure"] == "curve"
    assert not set("<>&") & set(source)
    assert figure["data"][0]["x"] == [1, None]
    assert figure["layout"] == {"title": {"text": HOSTILE}}
    assert page.text.count("figures/absent.json, is not there") == 2


def test_a_page_without_figures_carries_no_plotly():
    text = render_document(replace(FULL, chapters=FULL.chapters[2:], figures={}))
    assert len(Page(text).scripts) == 1
    assert "Plotly" not in text


def test_the_same_document_makes_the_same_page_and_markdown(html: str):
    assert render_document(FULL) == html
    assert markdown(FULL) == markdown(FULL)


def test_half_a_surrogate_is_replaced():
    document = one_chapter(Paragraph("half \ud83d"), Table(("a",), (("\ud83d",),), "", ("a",)))
    assert "half \ufffd" in render_document(document)
    assert "half \ufffd" in markdown(document)
    markdown(document).encode()


def parsed(text: str):
    return MarkdownIt("commonmark").enable("table").parse(text)


def structure(text: str) -> list[str]:
    """Blocks that a Markdown reader makes of a text, in order."""
    return [token.type for token in parsed(text)]


def read(text: str) -> list[str]:
    """What a Markdown reader shows of each paragraph, heading or cell."""
    return ["".join(c.content for c in t.children or []) for t in parsed(text) if t.type == "inline"]


def inline_kinds(text: str) -> set[str]:
    return {c.type for t in parsed(text) if t.type == "inline" for c in t.children or []}


def lines(text: str) -> list[str]:
    """Lines as CommonMark ends them."""
    return re.split(r"\r\n|\r|\n", text)


def everywhere(text: str) -> Document:
    """A document that holds a text wherever a model's text or a name can be."""
    blocks = (
        Heading(f"h {text}"),
        Paragraph(f"p {text}"),
        Table((f"word {text}", "score"), ((f"c {text}", 0.5), (text, None)), f"t {text}"),
        Table(("word", "score"), ((text, 0.5), (f"{text}x", -1)), "", ("word",)),
        Figure("curve", f"f {text}", f"a {text}"),
        HeatmapList((Heatmap(f"e {text}", (HeatToken(f"q {text}", 1.0), HeatToken(text, None)), 1.0, "nats"),), 1, ""),
    )
    return Document(
        f"T {text}", "Kind", (f"l {text}",), (Chapter(Section(f"s {text}", blocks), (Link(f"k {text}", "a/b.html"),)),)
    )


PLAIN = markdown(everywhere("x"))


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(NASTY)
@example(HOSTILE)
@example("\r\n| a | b |")
def test_markdown_of_any_text_has_the_lines_and_blocks_of_plain_text(text: str):
    made = markdown(everywhere(text))
    assert len(lines(made)) == len(lines(PLAIN))
    assert structure(made) == structure(PLAIN)
    assert inline_kinds(made) <= {"text", "text_special", "code_inline", "em_open", "em_close", "link_open",
                                  "link_close"}  # fmt: skip
    assert made.count("\n> ") == 1


@pytest.mark.parametrize(
    "text",
    ["|", "a | b", "\\", "\\|", "a\\", "`", "``", "``` a", " x", "x ", " ", "", "\n\n", "\t", "\r", "a\r\nb", "\x0b",
     "\u2028", "a\n| b | c |", HOSTILE],
    ids=ascii,
)  # fmt: skip
def test_rows_have_as_many_cells_as_their_header(text: str):
    rows = ((text, text, 1.5), (text, None, text))
    made = lines(markdown(one_chapter(Table(("a|b", "token", "n"), rows, "", ("token",)))))
    start = next(i for i, line in enumerate(made) if line.startswith("| a"))
    table = made[start:]
    table = table[: table.index("")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table] == [4] * (2 + len(rows))
    assert all(line.startswith("|") and line.endswith("|") for line in table)


def test_numbers_and_unknown_values_of_a_table_are_as_on_the_page():
    document = one_chapter(Table(("a", "b", "c", "d"), ((1234, 0.43219, None, " x"),), "", ("d",)))
    assert "| 1,234 | 0.432 | – | `␣x` |" in markdown(document)


@pytest.mark.parametrize(
    "text",
    ["*a* **b** __c__ _d_", "`a`", "[a](b) ![c](d)", "<b>bold</b> <!-- no -->", "# a", "> a", "a \\* b \\", "- a",
     "+ a", "1. a", "2) a", "~~~", "---", "- - -", "&lt;img&gt; &amp; &#42;", "===", "| a |", "a #"],
)  # fmt: skip
def test_a_paragraph_reads_as_it_was_written(text: str):
    made = markdown(one_chapter(Paragraph(text), Paragraph("after")))
    assert structure(made)[6:] == ["paragraph_open", "inline", "paragraph_close"] * 2
    assert read(made)[2:] == [text, "after"]


@pytest.mark.parametrize("text", ["- a", "1. a", "~~~", "---", "> a", "# a", "\n\nsecond paragraph"])
def test_an_example_reads_as_one_quoted_paragraph(text: str):
    made = markdown(one_chapter(HeatmapList((Heatmap("kl · chat 2", (HeatToken(text, 1.0),), 1.0, "nats"),), 1.0, "")))
    kinds = ["blockquote_open", "paragraph_open", "inline", "paragraph_close", "blockquote_close"]
    assert structure(made)[-5:] == kinds
    assert read(made)[-2:] == ["kl · chat 2:", " ".join(text.split())]


def test_underscores_within_words_stay_plain_and_others_make_no_emphasis():
    written = "mean_kl of weight_spectrum and _these_ and __init__ and a__b_c"
    made = markdown(one_chapter(Paragraph(written)))
    assert "mean_kl of weight_spectrum and " in made
    assert read(made)[2:] == [written]
    assert not inline_kinds(made) & {"em_open", "strong_open"}


def test_markdown_headings_are_in_order():
    levels = [int(t.tag[1]) for t in parsed(markdown(FULL)) if t.type == "heading_open"]
    assert levels[:2] == [1, 2]
    assert levels.count(1) == 1
    assert levels.count(2) == len(FULL.chapters)
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_markdown_says_what_the_page_says(page: Page):
    shown = " ".join(read(markdown(FULL)))
    for said in (FULL.title, *FULL.lead, "Second.", f"A curve {HOSTILE}", "The curve", f"risen {HOSTILE}", "0.25"):
        assert said in page.text
        assert said in shown


@pytest.mark.parametrize("href", ["kl/ab12/report.html", "kl (copy)/ab12/report.html", "a]b/<c>/report.html"])
def test_markdown_links_lead_where_the_pages_links_lead(href: str):
    document = one_chapter(Paragraph("p"), links=(Link("Full [report]", href), Link("again", href)))
    opened = [c for t in parsed(markdown(document)) for c in t.children or [] if c.type == "link_open"]
    assert [unquote(str(c.attrGet("href"))) for c in opened] == [href, href]
