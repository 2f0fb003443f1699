"""A result's figures: as the method drew them, to zoom, read by pointer, and download."""

import re
from typing import Any

import streamlit as st

from diffing.core.errors import UserError
from diffing.core.result import Result
from diffing.display.colours import DARK, readable
from diffing.ui.text import paragraph

_HEX = re.compile(r"#[0-9a-fA-F]{6}")


def figure(result: Result, name: str, caption: str, alt: str) -> None:
    """One figure with its caption; one that the result does not hold is said to be missing."""
    if name not in result.figure_names():
        paragraph(f"This result holds no figure {name!r}.", "d-muted")
        return
    try:
        data = result.figure_data(name)
    except UserError as error:
        st.error(str(error))
        return
    plotly(data, f"{result.method}-{name}", alt)
    paragraph(caption, "d-muted")


def plotly(data: dict[str, Any], name: str, alt: str) -> None:
    """A plotly figure in the page's theme; `name` is the file name of its download."""
    st.plotly_chart(
        _themed(data),
        key=f"figure-{name}",
        config={"displaylogo": False, "toImageButtonOptions": {"format": "svg", "filename": name}},
        alt=alt,
    )


def selectable(data: dict[str, Any], name: str, alt: str) -> list[Any]:
    """A plotly figure in which points can be selected; gives the `customdata` of those that are."""
    event = st.plotly_chart(
        _themed(data), key=f"figure-{name}", on_select="rerun", selection_mode=("points", "box", "lasso"),
        config={"displaylogo": False, "toImageButtonOptions": {"format": "svg", "filename": name}}, alt=alt,
    )  # fmt: skip
    points = event.selection.points  # type: ignore[union-attr]
    return [p["customdata"] for p in points if "customdata" in p]


def _themed(data: dict[str, Any]) -> dict[str, Any]:
    """The figure without a template of its own, so that Streamlit's theme colours it, and with room to read."""
    layout = {k: v for k, v in (data.get("layout") or {}).items() if k not in ("template", "width")}
    layout.setdefault("height", 380)
    layout.setdefault("legend", {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"})
    layout["margin"] = {"l": 8, "r": 8, "t": 36, "b": 8}
    for name in [k for k in layout if k.startswith(("xaxis", "yaxis"))]:
        layout[name] = {"exponentformat": "power", **layout[name]}
    return {"data": [_recoloured(trace) for trace in data.get("data") or []], "layout": layout}


def _recoloured(trace: dict[str, Any]) -> dict[str, Any]:
    """A trace whose lines and marks stand out from the page in a dark theme too."""
    if st.context.theme.type != "dark":
        return trace
    found = dict(trace)
    for part in ("line", "marker", "error_x", "error_y"):
        if isinstance(found.get(part), dict):
            found[part] = {k: _bright(v) if k == "color" else v for k, v in found[part].items()}
    if "fillcolor" in found:
        found["fillcolor"] = _bright(found["fillcolor"])
    return found


def _bright(colour: Any) -> Any:
    return readable(colour, DARK[0]) if isinstance(colour, str) and _HEX.fullmatch(colour) else colour
