"""What the mean activation differences at a few positions say, steer to and cause."""

from diffing.core.method import MethodSpec, later
from diffing.methods.activation_difference_lens.config import LensConfig
from diffing.methods.activation_difference_lens.figures import figures
from diffing.methods.activation_difference_lens.section import headline, section

METHOD = MethodSpec(
    name="activation_difference_lens",
    title="Activation difference lens",
    summary="What the mean differences of activations at the first tokens and before a reply say, steer to and cause.",
    work="generating",
    config=LensConfig,
    run=later("diffing.methods.activation_difference_lens.run", "run"),
    figures=figures,
    section=section,
    headline=headline,
    inputs=later("diffing.methods.activation_difference_lens.config", "inputs"),
    view=later("diffing.methods.activation_difference_lens.view", "view"),
    vectors=later("diffing.methods.activation_difference_lens.vectors", "named_vectors"),
)
