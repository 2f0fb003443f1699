"""Token heat maps: examples coloured by value under one legend, read by pointer, touch or arrow keys."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from streamlit.components.v2 import component

from diffing.core.blocks import Heatmap, HeatToken
from diffing.display import colours
from diffing.display.numbers import number
from diffing.display.token_marks import pieces

_FOLDER = Path(__file__).parent


def heatmaps(items: Sequence[Heatmap], maximum: float, unit: str, key: str) -> None:
    """Examples under one legend; the line under each says what its chosen token holds."""
    if items:
        _component()(key=key, data=_data(items, maximum, unit, None, False))


def choosable_heatmap(
    tokens: Sequence[HeatToken], maximum: float, unit: str, key: str, at: int, is_signed: bool = False
) -> int:
    """One text whose tokens can be chosen by click, Enter or space; gives the chosen token's index.

    Args:
        tokens: The text.
        maximum: Upper end of the scale; of a signed scale the lower end is its negative.
        unit: Of the values.
        key: Of the element.
        at: The token chosen before.
        is_signed: Whether negative values have a colour of their own.
    """
    item = Heatmap("", tuple(tokens), maximum, unit)
    found = _component()(
        key=key, data=_data([item], maximum, unit, at, is_signed), on_selected_change=lambda: None,
    )  # fmt: skip
    chosen = found.get("selected")
    return chosen if isinstance(chosen, int) and 0 <= chosen < len(tokens) else at


def _data(items: Sequence[Heatmap], maximum: float, unit: str, at: int | None, is_signed: bool) -> dict[str, Any]:
    steps = range(colours.N_STEPS + 1)
    scale, ticks = [f"h{i}" for i in steps], colours.ticks(maximum)
    if is_signed:
        scale = [*(f"g{i}" for i in reversed(steps[1:])), *scale]
        ticks = [-maximum, 0.0, maximum]
    return {
        "items": [_item(item, at, is_signed) for item in items],
        "scale": scale,
        "ticks": [number(t) for t in ticks],
        "unit": unit,
        "selectable": at is not None,
    }


def _item(item: Heatmap, at: int | None, is_signed: bool) -> dict[str, Any]:
    values = [-1.0 if t.value is None else abs(t.value) for t in item.tokens]
    peak = max(range(len(values)), key=values.__getitem__, default=0)
    return {
        "title": item.title,
        "at": peak if at is None else at,
        "tokens": [
            {
                "parts": [list(p) for p in pieces(t.text)],
                "colour": _colour(t.value, item.maximum, is_signed),
                "lines": list(t.hover) or [repr(t.text), f"{number(t.value)} {item.unit}".strip()],
            }
            for t in item.tokens
        ],
    }


def _colour(value: float | None, maximum: float, is_signed: bool) -> str:
    is_negative = is_signed and value is not None and value < 0
    step = colours.step(abs(value) if is_negative and value is not None else value, maximum)
    return "" if not step else f"{'g' if is_negative else 'h'}{step}"


@cache
def _component() -> Any:
    return component(
        "diffing_heatmap", html='<div class="root"></div>', css=_css(),
        js=(_FOLDER / "heatmap.js").read_text(encoding="utf-8"),
    )  # fmt: skip


def _css() -> str:
    rules = [
        *colours.adaptive_css("h", colours.LIGHT, colours.DARK),
        *colours.adaptive_css("g", colours.LIGHT_FALL, colours.DARK_FALL),
    ]
    return "\n".join([(_FOLDER / "heatmap.css").read_text(encoding="utf-8"), *rules])
