"""What report and terminal show of a difference dictionary."""

from diffing.core.blocks import Section
from diffing.core.result import Result
from diffing.display.latents import section as shared

_TITLE = "SAE of the difference"
_INTRO = (
    "A sparse autoencoder of δ, the finetuned model's activation minus the base's at the same token. Every latent "
    "is a direction along which finetuning moved some tokens; its energy says how much of the whole difference it "
    "carries. ν of the activations is near 0 where the base has nothing along the direction at those tokens."
)


def section(result: Result) -> Section:
    """The method's section of the report."""
    return shared.section(result, _TITLE, _INTRO)


def headline(result: Result) -> Section:
    """What the terminal prints."""
    return shared.headline(result, _TITLE)
