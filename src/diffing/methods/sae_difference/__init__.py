"""A sparse dictionary of the activation differences."""

from diffing.analysis.latents.config import needs
from diffing.core.method import MethodSpec, later
from diffing.display.latents.figures import figures
from diffing.methods.sae_difference.config import SaeDifferenceConfig
from diffing.methods.sae_difference.section import headline, section

METHOD = MethodSpec(
    name="sae_difference",
    title="SAE of the difference",
    summary="A sparse dictionary of the activation differences: the directions that finetuning added, one by one.",
    work="training",
    config=SaeDifferenceConfig,
    run=later("diffing.methods.sae_difference.run", "run"),
    figures=figures,
    section=section,
    headline=headline,
    needs=needs,
    view=later("diffing.methods.sae_difference.view", "view"),
    vectors=later("diffing.display.latents.vectors", "named_vectors"),
    trial=later("diffing.analysis.latents.trial", "try_text"),
    inputs=later("diffing.analysis.latents.opening", "inputs_of"),
)
