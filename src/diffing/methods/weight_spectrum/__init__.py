"""Where and how the weights changed: norms, ranks, singular values and vectors of ΔW, without text."""

from diffing.core.method import MethodSpec, later
from diffing.methods.weight_spectrum.config import WeightSpectrumConfig
from diffing.methods.weight_spectrum.figures import figures
from diffing.methods.weight_spectrum.section import headline, section

METHOD = MethodSpec(
    name="weight_spectrum",
    title="Spectra of the weight change",
    summary="Which weights changed, by how much and along how many directions; reads the pair's files, no text.",
    config=WeightSpectrumConfig,
    run=later("diffing.methods.weight_spectrum.run", "run"),
    figures=figures,
    section=section,
    headline=headline,
    needs_models=False,
    reads_corpus=False,
    view=later("diffing.methods.weight_spectrum.view", "view"),
    vectors=later("diffing.methods.weight_spectrum.vectors", "named_vectors"),
)
