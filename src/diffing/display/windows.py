"""A stretch of text with a value at every token, as a heat map."""

from collections.abc import Mapping
from typing import Any

from diffing.core.blocks import Heatmap, HeatToken
from diffing.display.numbers import number


def window_heatmap(row: Mapping[str, Any], maximum: float, unit: str, title: str) -> Heatmap:
    """A row of `examples.parquet`; hovering shows the token, its id and its value.

    Values above `maximum` have the colour of `maximum`; those below 0 have none.

    Args:
        row: With `tokens`, `token_ids` and `values`.
        maximum: Upper end of the scale.
        unit: Of the values.
        title: Above the text.
    """
    cells = (
        HeatToken(text, None if value is None else min(value, maximum), _hover(text, token_id, value, unit))
        for text, token_id, value in zip(row["tokens"], row["token_ids"], row["values"], strict=True)
    )
    return Heatmap(title, tuple(cells), maximum, unit)


def _hover(text: str, token_id: int, value: float | None, unit: str) -> tuple[str, ...]:
    shown = "no value" if value is None else f"{number(value)} {unit}".strip()
    return f"{text!r} (id {token_id})", shown
