"""Writes both models' greedy texts, patches states where they part, tabulates."""

from collections.abc import Iterator

import numpy as np
import torch

from diffing.analysis.context import RunContext
from diffing.analysis.token_text import token_strings
from diffing.core.layers import layers
from diffing.core.method import MethodOutput
from diffing.methods.model_patching.config import ModelPatchingConfig
from diffing.methods.model_patching.factorial import chosen_points, measure
from diffing.methods.model_patching.findings import evidence, summary
from diffing.methods.model_patching.prompts import choose_openings
from diffing.methods.model_patching.rankings import (
    divergence_token_table,
    document_score_table,
    prompt_table,
    token_score_table,
)
from diffing.methods.model_patching.statistics import (
    NEAR_TIE,
    Measured,
    dataset_table,
    factorial_table,
    layer_table,
)
from diffing.methods.model_patching.texts import write_pairs
from diffing.models.patching import refuse_unlike, refuse_unpatchable


def run(config: ModelPatchingConfig, context: RunContext) -> MethodOutput:
    """Patch the states of either model into the other where their greedy texts first differ.

    Raises:
        UserError: The models' shapes differ, their blocks take more than the residual stream, `layer` is outside the
            model, or no document gives a prompt.
    """
    pair = context.pair
    refuse_unlike(pair.base, pair.finetuned)
    n_layers = len(pair.base.sites.layers)
    (layer,) = layers([config.layer], n_layers, "diffing.method.layer")
    for handle in dict.fromkeys([pair.base, pair.finetuned]):
        refuse_unpatchable(handle)
    known = None if pair.vocabulary.shared_ids is None else frozenset(pair.vocabulary.shared_ids.tolist())
    openings, notes = choose_openings(config, context.corpus, known, _most_tokens(context), context.seed)
    texts = write_pairs(context, openings, known, config.max_new_tokens)
    compared = tuple(i for i, t in enumerate(texts) if t.position is not None and t.is_comparable)
    at = chosen_points(n_layers, config.n_layers, layer)
    found = measure(context, [texts[i] for i in compared], at)
    data = Measured(
        tuple(texts), compared, found, tuple(at), n_layers, context.corpus.datasets, known is not None, context.seed
    )
    return _tabulate(context, data, layer, notes)


def _most_tokens(context: RunContext) -> int | None:
    """Tokens of a prompt after which both models can still write one."""
    limits = [h.max_positions for h in (context.pair.base, context.pair.finetuned) if h.max_positions is not None]
    return min(limits) - 1 if limits else None


def _tabulate(context: RunContext, data: Measured, layer: int, notes: list[str]) -> MethodOutput:
    seen = {i for t in data.texts for i in (t.base_token, t.ft_token) if i is not None}
    names = token_strings(context.tokenizer, seen)
    prompts = prompt_table(data, names, context.tokenizer)
    scores = token_score_table(data, names)
    tables = {
        "prompts": prompts,
        "datasets": dataset_table(data),
        "layers": layer_table(data),
        "factorial": factorial_table(data),
        "divergence_tokens": divergence_token_table(data, scores),
        "token_scores": scores,
        "document_scores": document_score_table(prompts),
    }
    claimed = None if context.null_pair == "none" else False
    return MethodOutput(
        tables=tables,
        evidence=evidence(tables, layer, claimed),
        summary=summary(tables, layer),
        notes=(*notes, *_said(data)),
        facts={"layer": layer, "n_layers": data.n_layers, "threads": torch.get_num_threads()},
    )


def _said(data: Measured) -> Iterator[str]:
    """What a reader must know of the prompts."""
    if data.is_cut:
        yield "vocabularies differ: texts are compared on the ids whose strings agree"
    n_parted = sum(t.position is not None for t in data.texts)
    if not n_parted:
        yield f"Both models wrote the same text after all {len(data.texts):,} prompts: there is nothing to patch."
    if lost := n_parted - len(data.compared):
        yield f"At {lost:,} divergences a model chose a token that the other does not know; they are not patched."
    if n_ties := int(np.sum(data.is_near_tie_S)):
        yield (
            f"At {n_ties:,} of {len(data.compared):,} divergences one of the models had two choices within "
            f"{NEAR_TIE} logits, so that rounding may have decided."
        )
