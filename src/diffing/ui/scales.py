"""Several figures on common scales, and headline numbers of several results on one axis."""

import base64
import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from diffing.display.colours import SERIES

_MARGIN = 0.05


def on_common_scales(figures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of figures of one kind whose axes and colours span the values of all of them."""
    copies = [copy.deepcopy(f) for f in figures]
    for axis in sorted({name for f in copies for name in _axes(f)}):
        spans = [span for f in copies if (span := _span(f, axis)) is not None]
        if len(spans) == len(copies):
            low, high = min(s[0] for s in spans), max(s[1] for s in spans)
            for f in copies:
                f["layout"].setdefault(_layout_name(axis), {})["range"] = [low, high]
    tops = [f["layout"]["coloraxis"].get("cmax") for f in copies if "coloraxis" in f["layout"]]
    known = [t for t in tops if isinstance(t, (int, float))]
    for f in copies if known else ():
        f["layout"].get("coloraxis", {})["cmax"] = max(known)
    return copies


def headline_figure(results: Sequence[tuple[str, Sequence[dict[str, Any]]]], unit: str) -> dict[str, Any]:
    """Headline numbers of one unit, a colour for each result; bars are 95 % intervals, diamonds the null.

    Args:
        results: Label and summary of each.
        unit: The unit.
    """
    names = list(dict.fromkeys(s["name"] for _, summary in results for s in summary if s["unit"] == unit))
    traces: list[dict[str, Any]] = []
    for i, (label, summary) in enumerate(results):
        rows = [s for s in summary if s["unit"] == unit and s["value"] is not None]
        colour = SERIES[i % len(SERIES)]
        traces.append(_dots(rows, label, colour))
        nulls = [s for s in rows if s["null"] is not None]
        if nulls:
            traces.append(_diamonds(nulls, label, colour))
    layout = {
        "xaxis": {"title": unit, "rangemode": "tozero"}, "height": 130 + 44 * len(names),
        "yaxis": {"categoryorder": "array", "categoryarray": [_two_lines(n) for n in names[::-1]], "automargin": True},
        "scattermode": "group",
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def _dots(rows: Sequence[dict[str, Any]], label: str, colour: str) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "orientation": "h", "name": label, "legendgroup": label,
        "offsetgroup": label,
        "x": [s["value"] for s in rows], "y": [_two_lines(s["name"]) for s in rows],
        "marker": {"size": 9, "color": colour}, "cliponaxis": False,
        "error_x": {
            "type": "data", "color": colour,
            "array": [0 if s["high"] is None else s["high"] - s["value"] for s in rows],
            "arrayminus": [0 if s["low"] is None else s["value"] - s["low"] for s in rows],
        },
    }  # fmt: skip


def _diamonds(rows: Sequence[dict[str, Any]], label: str, colour: str) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "orientation": "h", "name": f"{label}, null", "legendgroup": label,
        "offsetgroup": label,
        "showlegend": False, "x": [s["null"] for s in rows], "y": [_two_lines(s["name"]) for s in rows],
        "marker": {"symbol": "diamond-open", "size": 8, "color": colour}, "cliponaxis": False,
    }  # fmt: skip


def _two_lines(name: str) -> str:
    """`mean KL · chat` with what is measured above where, so that a narrow screen has room for the axis."""
    return name.replace(" · ", "<br>", 1)


def _axes(figure: dict[str, Any]) -> Iterator[str]:
    for trace in figure["data"]:
        if trace.get("type", "scatter") == "scatter":
            yield trace.get("xaxis", "x")
            yield trace.get("yaxis", "y")


def _span(figure: dict[str, Any], axis: str) -> tuple[float, float] | None:
    """Least and largest value on an axis, in its own units (powers of ten on a logarithmic one), with a margin."""
    settings = figure["layout"].get(_layout_name(axis), {})
    values = [v for trace in figure["data"] for v in _values(trace, axis)]
    if settings.get("type") == "log":
        values = [math.log10(v) for v in values if v > 0]
    if not values or settings.get("type") == "category":
        return None
    low, high = min(values), max(values)
    if settings.get("rangemode") == "tozero" and settings.get("type") != "log":
        low, high = min(low, 0.0), max(high, 0.0)
    margin = _MARGIN * (high - low or 1.0)
    return (low if low == 0 else low - margin), high + margin


def _values(trace: dict[str, Any], axis: str) -> list[float]:
    if trace.get(f"{axis[0]}axis", axis[0]) != axis or trace.get("type", "scatter") != "scatter":
        return []
    return list(_numbers(trace.get(axis[0]) or []))


def _numbers(values: Any) -> Iterable[float]:
    """Numbers of a trace: a list, or the packed form in which plotly writes arrays."""
    if isinstance(values, dict):
        values = np.frombuffer(base64.b64decode(values["bdata"]), dtype=np.dtype(values["dtype"])).tolist()
    return (float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v))


def _layout_name(axis: str) -> str:
    """`x2` → `xaxis2`."""
    return f"{axis[0]}axis{axis[1:]}"
