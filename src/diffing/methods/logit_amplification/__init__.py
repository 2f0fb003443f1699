"""Contrastive decoding between the two models: texts in which the change is amplified."""

from diffing.core.method import MethodSpec, later
from diffing.methods.logit_amplification.config import LogitAmplificationConfig
from diffing.methods.logit_amplification.figures import figures
from diffing.methods.logit_amplification.section import headline, section

METHOD = MethodSpec(
    name="logit_amplification",
    title="Logit amplification",
    summary="Texts written from log p + α (log p − log q), and what they say more often than the base's texts.",
    work="generating",
    config=LogitAmplificationConfig,
    run=later("diffing.methods.logit_amplification.run", "run"),
    figures=figures,
    section=section,
    headline=headline,
    reads_corpus=False,
    view=later("diffing.methods.logit_amplification.view", "view"),
    inputs=later("diffing.methods.logit_amplification.config", "inputs_of"),
)
