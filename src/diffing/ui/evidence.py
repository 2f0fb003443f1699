"""What any method found, in the shape all methods share: for results whose own method is not installed."""

import streamlit as st

from diffing.core.blocks import Table
from diffing.core.result import Result
from diffing.display.examples import example_heatmap
from diffing.ui.html_tables import table
from diffing.ui.parts import examples
from diffing.ui.text import paragraph, quote

_TOKENS = 50


def evidence(result: Result) -> None:
    """Ranked tokens, examples and texts of `evidence.json`."""
    found = result.evidence()
    if not (found.tokens or found.examples or found.texts):
        paragraph("This result claims and ranks nothing.")
    if found.tokens:
        st.subheader("Tokens")
        rows = tuple((t.token, t.score, t.stderr, t.null_score) for t in found.tokens[:_TOKENS])
        table(Table(("token", "score", "standard error", "under the null"), rows, "", ("token",)))
    if found.examples:
        st.subheader("Examples")
        items = [example_heatmap(e) for e in found.examples]
        examples(items, max(i.maximum for i in items), "each example on its own scale", "evidence")
    for text in found.texts:
        st.subheader("Text")
        quote(text.text)
