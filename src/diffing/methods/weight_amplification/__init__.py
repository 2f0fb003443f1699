"""What the models say and predict as the change of the weights is scaled."""

from diffing.core.method import MethodSpec, later
from diffing.methods.weight_amplification.config import WeightAmplificationConfig, inputs
from diffing.methods.weight_amplification.figures import figures
from diffing.methods.weight_amplification.section import headline, section

METHOD = MethodSpec(
    name="weight_amplification",
    title="Weight amplification",
    summary="How the effect grows, and what is written, as the change of the weights is scaled, whole and in parts.",
    work="generating",
    config=WeightAmplificationConfig,
    run=later("diffing.methods.weight_amplification.run", "run"),
    figures=figures,
    section=section,
    headline=headline,
    view=later("diffing.methods.weight_amplification.view", "view"),
    inputs=inputs,
)
