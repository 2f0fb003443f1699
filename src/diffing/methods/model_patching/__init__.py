"""Where in depth the choice is made at which the two models' texts first differ, by patching states."""

from diffing.core.method import MethodSpec, later
from diffing.methods.model_patching.config import ModelPatchingConfig
from diffing.methods.model_patching.figures import figures
from diffing.methods.model_patching.section import headline, section

METHOD = MethodSpec(
    name="model_patching",
    title="Patching at the first divergence",
    summary="Which layers make the finetuned model choose another token, where its text first leaves the base's.",
    work="generating",
    config=ModelPatchingConfig,
    run=later("diffing.methods.model_patching.run", "run"),
    figures=figures,
    section=section,
    headline=headline,
    view=later("diffing.methods.model_patching.view", "view"),
)
