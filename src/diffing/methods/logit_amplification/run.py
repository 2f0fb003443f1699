"""Writes amplified texts beside the base's, and finds what they say more often."""

from collections.abc import Mapping, Sequence

import torch

from diffing.analysis.context import RunContext
from diffing.analysis.token_text import token_strings
from diffing.core.method import MethodOutput
from diffing.data.prefills import EncodedPrefill
from diffing.methods.logit_amplification.comparing import Comparisons, phrase_table, token_table
from diffing.methods.logit_amplification.config import LogitAmplificationConfig
from diffing.methods.logit_amplification.findings import evidence, summary
from diffing.methods.logit_amplification.measuring import source_table, text_table
from diffing.methods.logit_amplification.prompting import usable_prompts
from diffing.methods.logit_amplification.writing import NULL, Slot, Written, write_all


def run(config: LogitAmplificationConfig, context: RunContext) -> MethodOutput:
    """Write texts from both models in lock-step and compare them with the base's own.

    Raises:
        UserError: No prompt can be used, one is too long or in another vocabulary, or an α gives no finite numbers.
    """
    prompts, notes = usable_prompts(config.prompts, context)
    written = write_all(config, context, prompts)
    return _tabulate(config, context, prompts, written, notes)


def _tabulate(
    config: LogitAmplificationConfig, context: RunContext, prompts: Sequence[EncodedPrefill],
    written: Mapping[Slot, Written], notes: list[str],
) -> MethodOutput:  # fmt: skip
    names = token_strings(context.tokenizer, {i for w in written.values() for i in w.ids})
    found = Comparisons(config, written, names)
    assert found.main.alpha is not None
    claimed = None if context.null_pair == "none" else False
    tables = {
        "texts": text_table(prompts, written, found),
        "sources": source_table(prompts, written, found, context.seed),
        "phrases": phrase_table(found),
        "tokens": token_table(found),
        "token_scores": found.token_scores(),
    }
    scalars = summary(tables["sources"], claimed)
    texts, phrases, scores = tables["texts"], tables["phrases"], tables["token_scores"]
    return MethodOutput(
        tables=tables,
        evidence=evidence(texts, phrases, scores, found.over_ids(), found.main.alpha, scalars, claimed),
        summary=scalars,
        notes=(*notes, *_notes(found)),
        facts={"main_alpha": found.main.alpha, "n_prompts": len(prompts), "threads": torch.get_num_threads()},
    )


def _notes(found: Comparisons) -> list[str]:
    """What could not be compared."""
    alike = [a for a in found.config.alphas if not any(c.of.alpha == a and c.name == "base" for c in found.made)]
    notes = []
    if alike:
        listed = ", ".join(f"{a:g}" for a in alike)
        notes.append(f"At α={listed} every text is the base's own: no phrase can be over-represented.")
    if not any(c.of == NULL for c in found.made):
        notes.append(
            "The base writes the same texts whatever the random numbers, so that there is no null; use a temperature "
            "above 0."
        )
    return notes
