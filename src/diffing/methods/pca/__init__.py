"""Principal components of the two models' activation differences."""

from diffing.core.method import MethodSpec, later
from diffing.methods.pca.config import PcaConfig, needs
from diffing.methods.pca.figures import figures
from diffing.methods.pca.section import headline, section

METHOD = MethodSpec(
    name="pca",
    title="Principal components of the difference",
    summary="The few directions in which the finetuned model's activations moved, beside what chance would give.",
    config=PcaConfig,
    run=later("diffing.methods.pca.run", "run"),
    figures=figures,
    section=section,
    headline=headline,
    needs=needs,
    size="root mean square",
    view=later("diffing.methods.pca.view", "view"),
    vectors=later("diffing.methods.pca.vectors", "named_vectors"),
)
