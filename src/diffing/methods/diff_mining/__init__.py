"""Which tokens the finetuned model prefers, counted over the positions of generic text."""

from diffing.core.method import MethodSpec, later
from diffing.methods.diff_mining.config import DiffMiningConfig
from diffing.methods.diff_mining.figures import figures
from diffing.methods.diff_mining.section import headline, section

METHOD = MethodSpec(
    name="diff_mining",
    title="Diff mining",
    summary="Which tokens the finetuned model prefers to the base model, counted over all positions of a text.",
    size="mean of the K largest D",
    config=DiffMiningConfig,
    run=later("diffing.methods.diff_mining.run", "run"),
    figures=figures,
    section=section,
    headline=headline,
    view=later("diffing.methods.diff_mining.view", "view"),
    probe=later("diffing.methods.diff_mining.probe", "probe"),
    inputs=later("diffing.methods.diff_mining.inputs", "inputs_of"),
)
