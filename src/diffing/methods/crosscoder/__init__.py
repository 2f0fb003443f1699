"""A sparse dictionary of both models' activations at once."""

from diffing.analysis.latents.config import needs
from diffing.core.method import MethodSpec, later
from diffing.display.latents.figures import figures
from diffing.methods.crosscoder.config import CrosscoderConfig
from diffing.methods.crosscoder.section import headline, section

METHOD = MethodSpec(
    name="crosscoder",
    title="Crosscoder",
    summary="A sparse dictionary of both models' activations; which of its latents live in the finetuned model alone.",
    work="training",
    config=CrosscoderConfig,
    run=later("diffing.methods.crosscoder.run", "run"),
    figures=figures,
    section=section,
    headline=headline,
    needs=needs,
    view=later("diffing.methods.crosscoder.view", "view"),
    vectors=later("diffing.display.latents.vectors", "named_vectors"),
    trial=later("diffing.analysis.latents.trial", "try_text"),
    inputs=later("diffing.analysis.latents.opening", "inputs_of"),
)
