"""Texts the finetuned model writes, ranked by how much likelier it finds them than the base does."""

from diffing.core.method import MethodSpec, later
from diffing.methods.perplexity_diff.config import PerplexityDiffConfig
from diffing.methods.perplexity_diff.figures import figures
from diffing.methods.perplexity_diff.section import headline, section

METHOD = MethodSpec(
    name="perplexity_diff",
    title="Perplexity difference on written texts",
    summary="Texts that the finetuned model writes after short beginnings, ranked by log p − log q per token.",
    work="generating",
    config=PerplexityDiffConfig,
    run=later("diffing.methods.perplexity_diff.run", "run"),
    figures=figures,
    section=section,
    headline=headline,
    view=later("diffing.methods.perplexity_diff.view", "view"),
    compares_texts=True,
)
