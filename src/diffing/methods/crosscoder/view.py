"""What the dashboard shows of a crosscoder."""

from diffing.core.result import Result
from diffing.ui.latents import draw_latents


def view(result: Result) -> None:
    """Draw the result."""
    draw_latents(result)
