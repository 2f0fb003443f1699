"""What report and terminal show of a crosscoder."""

from diffing.core.blocks import Section
from diffing.core.result import Result
from diffing.display.latents import section as shared

_TITLE = "Crosscoder"
_INTRO = (
    "One set of sparse activations rebuilds both models' activations at the same token. A latent whose decoder row is "
    "long in the finetuned model and short in the base stands for something that only the finetuned model has; latent "
    "scaling (ν) tells those that merely lost their base row in training from the real ones."
)


def section(result: Result) -> Section:
    """The method's section of the report."""
    return shared.section(result, _TITLE, _INTRO)


def headline(result: Result) -> Section:
    """What the terminal prints."""
    return shared.headline(result, _TITLE)
