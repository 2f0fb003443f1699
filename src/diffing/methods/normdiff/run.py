"""Computes per-token activation differences: stream in units, gather, tabulate."""

import numpy as np
import torch

from diffing.activations.reading import sink_note
from diffing.activations.source import ActivationSource
from diffing.analysis.context import RunContext
from diffing.analysis.coverage import covered_tokens, kept_tokens, refuse_unread
from diffing.analysis.token_excess import token_excess_table
from diffing.analysis.token_text import token_strings
from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.core.method import MethodOutput
from diffing.methods.normdiff.config import NormDiffConfig
from diffing.methods.normdiff.examples import example_table
from diffing.methods.normdiff.findings import evidence, summary
from diffing.methods.normdiff.gather import Gathered, gather
from diffing.methods.normdiff.groups import Group, make_groups, template_tokens
from diffing.methods.normdiff.rankings import document_score_table, token_table, vectors
from diffing.methods.normdiff.statistics import (
    dataset_table,
    position_table,
    role_table,
    sequence_table,
    template_token_table,
)
from diffing.methods.normdiff.units import read_all


def run(config: NormDiffConfig, context: RunContext) -> MethodOutput:
    """Compare the pair's activations at every token and every slot of `context.activations`.

    Raises:
        UserError: `example_layer` was not read, or no token is left to compare.
    """
    source = context.activations
    assert source is not None
    refuse_unread(config.example_layer, source)
    covered_N, kept_N = covered_tokens(source), kept_tokens(source, context, "compare")
    written_N = covered_N & source.tokens.is_template_N & source.tokens.kept(None, context.skip_first_tokens)
    template_ids = template_tokens(source.tokens, written_N, config.max_template_tokens)
    names, groups = make_groups(source.tokens, covered_N, kept_N, written_N, config.n_vector_positions, template_ids)
    units = read_all(source, groups, context.scratch)
    data = gather(units, source.tokens, source.slots, covered_N, kept_N, written_N, groups.n_groups)
    return _tabulate(config, context, source, data, names, template_ids)


def _tabulate(
    config: NormDiffConfig, context: RunContext, source: ActivationSource, data: Gathered, groups: list[Group],
    template_ids: list[int],
) -> MethodOutput:  # fmt: skip
    lost = [
        f"{slot.name}: {n:,} tokens hold NaN or infinite activations in one of the models; they are left out."
        for slot in data.slots
        if (n := data.n_not_finite(slot))
    ]
    slot = _example_slot(config, data)
    names = token_strings(context.tokenizer, np.unique(data.tokens.ids_N).tolist())
    sequences = sequence_table(data)
    vector_table, tensors = vectors(data, groups, names)
    tables = {
        "tokens": token_table(data, names, config.max_token_rows),
        "sequences": sequences,
        "datasets": dataset_table(data, context.seed, source.noise),
        "positions": position_table(data, context.seed, config.max_positions),
        "roles": role_table(data, context.seed),
        "template_tokens": template_token_table(data, template_ids, names),
        "examples": example_table(data, slot, names, context.tokenizer, config),
        "vectors": vector_table,
        "token_scores": token_excess_table(
            data.tokens, np.where(data.kept_N, data.values(slot, "relative"), np.nan), names
        ),
        "document_scores": document_score_table(sequences, slot),
    }
    claimed = None if context.null_pair == "none" else False
    notes = [f"Examples, token ranking and headline are of {slot.name}.", *source.notes, *_sinks(context, data), *lost]
    return MethodOutput(
        tables=tables,
        evidence=evidence(tables["datasets"], tables["examples"], tables["token_scores"], slot, claimed),
        summary=summary(tables["datasets"], slot),
        tensors=tensors,
        notes=tuple(dict.fromkeys(notes)),
        facts={
            "example_slot": slot.name,
            "activations": dict(source.facts),
            "not_finite": {s.name: data.n_not_finite(s) for s in data.slots},
            "threads": torch.get_num_threads(),
        },
    )


def _example_slot(config: NormDiffConfig, data: Gathered) -> Slot:
    """The slot of examples: as chosen, else the residual one where the mean relative difference is largest.

    Raises:
        UserError: No slot has a finite token.
    """
    means = {s: data.mean(s, "relative", data.kept_N) for s in data.slots}
    usable = {s: m for s, m in means.items() if m is not None}
    if not usable:
        raise UserError(
            "All activations are NaN or infinite; check the weights, or use preprocessing.dtype=bfloat16 or float32."
        )
    chosen = [s for s in usable if config.example_layer in (None, s.layer)] or list(usable)
    return max(chosen, key=lambda s: (s.site == "residual", usable[s]))


def _sinks(context: RunContext, data: Gathered) -> list[str]:
    """A sentence when a kept leading position dwarfs the rest in most layers."""
    found = [
        sink_note(
            data.values(slot, "norm_base")[data.covered_N],
            data.tokens.position_N[data.covered_N],
            context.skip_first_tokens,
            slot,
        )
        for slot in data.slots
    ]
    said = [note for note in found if note]
    return said[:1] if 2 * len(said) > len(found) else []
