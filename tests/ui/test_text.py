"""Text of models and users never becomes markup: Markdown read by CommonMark, HTML by a parser."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

pytest.importorskip("streamlit")

from diffing.ui.text import code, label, link, plain, quoted

HOSTILE = [
    "<b>bold</b>", "</script><img src=x onerror=alert(1)>", "**bold** _i_ ~~s~~", "[a](http://b) ![c](//d)", "`code`",
    "$x^2$ and $$y$$", ":red[x] :material/delete: :smile:", "# title", "- item", "1. item", "> quote", "a\\*b",
    "| a | b |", "&amp; &#65;", "line\nbreak", "\u202eevil", "www.example.org http://example.org",
]  # fmt: skip


class Read(HTMLParser):
    """Tags and text of HTML."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def rendered(markdown):
    """What a reader of CommonMark sees."""
    return Read(MarkdownIt("commonmark").render(markdown))


def as_written(text):
    """On one line, with the control that turns the direction of writing spelled out."""
    return " ".join(text.split()).replace("\u202e", "U+202E")


@pytest.mark.parametrize("text", HOSTILE)
def test_plain_text_is_read_as_it_was_written(text):
    found = rendered(plain(text))
    assert set(found.tags) <= {"p", "code"}
    assert found.text.strip() == as_written(text)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc", "Cf", "Cn", "Co"]), min_size=1))
def test_plain_text_of_any_kind(text):
    found = rendered(plain(text))
    assert set(found.tags) <= {"p", "code"}
    assert found.text.strip() == as_written(text)


@pytest.mark.parametrize("word", ["--multirun", "a->b", "<-", ":streamlit:", "www.x.org", "https://x.org", "me@x.org"])
def test_words_that_Streamlit_rewrites_are_code(word):
    found = rendered(plain(f"see {word} here"))
    assert found.tags == ["p", "code"]
    assert found.text.strip() == f"see {word} here"


@given(st.text(alphabet="`a \\*$", min_size=1, max_size=12))
def test_code_is_one_span_of_code(text):
    if not text.split():
        return
    found = rendered(code(text))
    assert found.tags == ["p", "code"]
    assert found.text.strip() == " ".join(text.split())


@pytest.mark.parametrize("text", ["chat", "Every token", "token_scores", "largest ‖δ‖ at one token", "ΔNLL", "2", ""])
def test_a_label_that_Markdown_leaves_alone_stays_as_it_is(text):
    assert label(text) == text


@pytest.mark.parametrize("text", [*HOSTILE, "_a_", "a _b_ c", "__a__", "1. a", "a*b*", "-", "+ a"])
def test_any_other_label_is_read_as_it_was_written(text):
    found = rendered(label(text))
    assert set(found.tags) <= {"p", "code"}
    assert found.text.strip() == as_written(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_quote_is_text_with_its_line_breaks(text):
    found = Read(str(quoted(text)))
    assert set(found.tags) <= {"div", "span"}
    assert found.text == text.replace("\u202e", "U+202E")


def test_marks_stand_out():
    html = str(quoted("one <b>two</b> three", [(4, 14)]))
    assert html.count("<mark>") == 1
    start, end = html.index("<mark>"), html.index("</mark>")
    assert html[start + 6 : end] == "&lt;b&gt;two&lt;/b&gt;"
    assert Read(html).text == "one <b>two</b> three"


@pytest.mark.parametrize(
    ("marks", "marked"),
    [
        ([(0, 2), (1, 3)], ["ab", "c"]),
        ([(4, 5), (0, 1)], ["a", "e"]),
        ([(2, 2), (3, 1)], []),
        ([(0, 6), (2, 4)], ["abcdef"]),
    ],
)
def test_marks_that_overlap_repeat_no_character(marks, marked):
    html = str(quoted("abcdef", marks))
    assert [part.partition("</mark>")[0] for part in html.split("<mark>")[1:]] == marked
    assert Read(html).text == "abcdef"


def test_a_link_keeps_to_its_address():
    html = str(link('https://huggingface.co/a"onmouseover="x', "<b>"))
    assert Read(html).tags == ["a"]
    assert Read(html).text == "<b> ↗"
    assert 'rel="noopener noreferrer"' in html
    assert '"onmouseover' not in html
