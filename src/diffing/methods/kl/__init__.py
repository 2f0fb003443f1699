"""Per-token divergence between the two models' next-token distributions."""

from diffing.core.method import MethodSpec, later
from diffing.methods.kl.config import KLConfig
from diffing.methods.kl.figures import figures
from diffing.methods.kl.section import headline, section

METHOD = MethodSpec(
    name="kl",
    title="Per-token KL divergence",
    summary="How far the finetuned model's next-token distribution moved from the base model's, at every token.",
    size="mean KL",
    config=KLConfig,
    run=later("diffing.methods.kl.run", "run"),
    figures=figures,
    section=section,
    headline=headline,
    view=later("diffing.methods.kl.view", "view"),
    probe=later("diffing.methods.kl.probe", "probe"),
)
