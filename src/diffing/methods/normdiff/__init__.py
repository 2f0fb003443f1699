"""Per-token differences between the two models' activations."""

from diffing.core.method import MethodSpec, later
from diffing.methods.normdiff.config import NormDiffConfig, needs
from diffing.methods.normdiff.figures import figures
from diffing.methods.normdiff.section import headline, section

METHOD = MethodSpec(
    name="normdiff",
    title="Activation differences",
    summary="How far the finetuned model's activations moved from the base model's, at every token and layer.",
    size="mean relative difference",
    config=NormDiffConfig,
    run=later("diffing.methods.normdiff.run", "run"),
    figures=figures,
    section=section,
    headline=headline,
    needs=needs,
    view=later("diffing.methods.normdiff.view", "view"),
    probe=later("diffing.methods.normdiff.probe", "probe"),
    vectors=later("diffing.methods.normdiff.vectors", "named_vectors"),
)
