"""A method's section, block by block, as the report shows it."""

import streamlit as st

from diffing.core.blocks import Block, Figure, Heading, HeatmapList, Paragraph, Section, Table
from diffing.core.result import Result
from diffing.ui.figures import figure
from diffing.ui.heatmap import heatmaps
from diffing.ui.html_tables import table
from diffing.ui.text import paragraph, plain


def section(result: Result, shown: Section) -> None:
    """All blocks of a section in order."""
    for i, block in enumerate(shown.blocks):
        draw(result, block, f"block-{i}")


def draw(result: Result, block: Block, key: str) -> None:
    """One block; `key` tells it from others on the page."""
    match block:
        case Heading(text, level):
            (st.subheader if level < 3 else st.markdown)(plain(text) if level < 3 else f"**{plain(text)}**")
        case Paragraph(text):
            paragraph(text)
        case Table():
            table(block)
        case Figure(name, caption, alt):
            figure(result, name, caption, alt)
        case HeatmapList(items, maximum, unit):
            heatmaps(items, maximum, unit, key)
