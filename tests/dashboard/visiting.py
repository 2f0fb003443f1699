"""Pages drawn without a browser, and what they hand to one: Markdown, HTML, heat maps, figures."""

import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from streamlit.components.v2.component_manager import BidiComponentManager
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from workbench import ROOT

PAGES = ("overview", "result", "compare", "try_it", "chat", "steer", "amplify")
_MARKDOWN = ("body", "label", "help", "text")
_NO_MARKDOWN = ("html", "code", "text_area", "text_input", "bidi_component", "plotly_chart", "arrow_data_frame")

_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")

Visit = Callable[..., AppTest]


def visitor(monkeypatch: pytest.MonkeyPatch) -> Visit:
    """A function that opens a page on an output folder: `visit(base_dir, "result", "model.dtype=float32", run=…)`."""

    def visit(base_dir: Path, page: str = "overview", *overrides: str, **query: Any) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["dashboard.py", f"infrastructure.storage.base_dir={base_dir}", *overrides])
        app = AppTest.from_file(str(ROOT / "dashboard.py"), default_timeout=120)
        app._bidi_component_manager = _components()
        app._page_hash = calc_hash("" if page == "overview" else page)
        app.query_params.update(query)
        app.run()
        app._page_hash = ""
        return app

    return visit


@cache
def _components() -> BidiComponentManager:
    """Where components are registered: finding installed ones takes AppTest most of the time of a page."""
    found = BidiComponentManager()
    found.discover_and_register_components(start_file_watching=False)
    return found


def whole(app: AppTest) -> AppTest:
    """Asserts that the page shows no exception and no fault of ours."""
    assert not app.exception, [e.value for e in app.exception]
    assert not [e.value for e in app.error if "fault of ours" in e.value]
    return app


def fine(app: AppTest) -> AppTest:
    """Asserts that the page shows no error at all."""
    assert not whole(app).error, [e.value for e in app.error]
    return app


def sentence(app: AppTest, *parts: str) -> str:
    """The page's only error, without the backslashes that Markdown takes; asserts that it is one and holds `parts`."""
    (error,) = whole(app).error
    said = unescaped(error.value)
    assert said.rstrip().endswith((".", "?")), said
    assert "Traceback" not in said
    assert "\n" not in said.strip(), said
    for part in parts:
        assert part in said, f"{part!r} is not in {said!r}"
    return said


def unescaped(markdown: str) -> str:
    """Markdown without its backslashes."""
    return markdown.replace("\\", "")


def spoken(app: AppTest) -> str:
    """All text that the page hands to Markdown, without backslashes."""
    return "\n".join(unescaped(text) for text in markdown_of(app))


def markdown_of(app: AppTest) -> Iterator[str]:
    """Every string of the page that the browser reads as Markdown."""
    for node in app.main:
        proto = node.proto
        if proto is None or node.type in _NO_MARKDOWN:
            continue
        if hasattr(proto, "WhichOneof") and "type" in {o.name for o in proto.DESCRIPTOR.oneofs}:
            proto = getattr(proto, proto.WhichOneof("type") or "", proto)
        found = [getattr(proto, name, None) for name in _MARKDOWN]
        found += [getattr(option, "content", None) for option in getattr(proto, "options", ())]
        yield from (text for text in found if isinstance(text, str) and text)


def html_of(app: AppTest) -> list[str]:
    """What the page hands over as HTML, the style sheet left out."""
    return [h.value for h in app.get("html") if not h.value.startswith("<style>")]


def components(app: AppTest, name: str) -> list[dict[str, Any]]:
    """Data of the page's components of one kind (`diffing_heatmap`, `diffing_matrix`)."""
    return [json.loads(n.proto.json) for n in app.main if n.type == "bidi_component" and n.proto.component_name == name]


def figures(app: AppTest) -> list[dict[str, Any]]:
    """Plotly figures of the page."""
    return [json.loads(n.proto.spec) for n in app.main if n.type == "plotly_chart"]


def token_texts(item: dict[str, Any]) -> list[str]:
    """Characters of each token of a heat map's text, the marks for what has no glyph left out."""
    return ["".join(text for text, is_mark in token["parts"] if not is_mark) for token in item["tokens"]]


def shown_number(text: str) -> float:
    """A number as the page writes it, such as `1,234` or `−4.2×10⁻⁵`."""
    digits, _, power = text.replace(",", "").replace("−", "-").partition("×10")
    return float(f"{digits}e{power.translate(_SUPERSCRIPTS)}" if power else digits)


class Parsed(HTMLParser):
    """HTML as a browser reads it: its text, and its tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._is_in_cell = False
        self.feed(html)
        self.close()

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._is_in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._is_in_cell = self._is_in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._is_in_cell:
            self.rows[-1][-1] += data
