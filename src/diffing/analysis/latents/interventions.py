"""Runs the models with their streams changed, as far as the run asks for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from diffing.analysis.latents.causal import LatentSet, causal_rows, matched_sets, of_equal_size
from diffing.analysis.latents.coding import coded_blocks
from diffing.analysis.latents.recovered import spliced_rows
from diffing.analysis.latents.results import CausalRow, CausalTextRow, SplicedRow
from diffing.analysis.latents.setting import Setting
from diffing.analysis.latents.splicing import some_sequences
from diffing.analysis.latents.table import Latents
from diffing.analysis.latents.texts import set_vectors, text_rows
from diffing.core.progress import bar
from diffing.dictionaries.dictionary import Dictionary


@dataclass(frozen=True)
class Interventions:
    """What was seen with the models changed.

    Args:
        spliced: Loss recovered.
        causal: Claimed and random latents taken out and put in.
        texts: What the models write with them held down and up.
        notes: Sentences.
    """

    spliced: Sequence[SplicedRow] = ()
    causal: Sequence[CausalRow] = ()
    texts: Sequence[CausalTextRow] = ()
    notes: tuple[str, ...] = ()


def intervene(setting: Setting, dictionary: Dictionary, latents: Latents, mean_2D: Tensor) -> Interventions:
    """Losses with reconstructions in place of activations, and losses and texts with latents changed.

    Only after whole blocks: elsewhere there is nothing to replace, which a sentence says.
    """
    config, context, slot = setting.config, setting.context, setting.slot
    source = context.activations
    assert source is not None
    if slot.site != "residual":
        note = f"{slot.name}: losses are not measured; reconstructions replace the residual stream only."
        return Interventions(notes=(note,))
    tokens, kept_N = source.tokens, setting.split.kept_N
    sequences = some_sequences(tokens, setting.split, config.causal_tokens, context.seed)
    n_tokens = sum(tokens.length_of(s) for chosen in sequences.values() for s in chosen)
    given = (context, dictionary, setting.kind, slot, tokens, kept_N)
    with bar("loss with reconstructions", n_tokens, "tokens") as advance:
        spliced = spliced_rows(*given, mean_2D, sequences, setting.rows.limit, advance)
    sets, notes = _sets(setting, latents)
    if not sets:
        return Interventions(spliced, notes=tuple(notes))
    sets = of_equal_size(
        sets, dictionary, coded_blocks(dictionary, setting.rows, setting.kind, kept_N, "sizes of sets")
    )
    with bar("ablating and adding latents", n_tokens, "tokens") as advance:
        causal = causal_rows(*given, sets, sequences, setting.rows.limit, advance)
    return Interventions(spliced, causal, _texts(setting, dictionary, sets, sequences))


def _texts(
    setting: Setting, dictionary: Dictionary, sets: Sequence[LatentSet], sequences: dict[str, list[int]]
) -> list[CausalTextRow]:
    config, source = setting.config, setting.context.activations
    assert source is not None
    if not config.n_causal_prompts:
        return []
    blocks = coded_blocks(dictionary, setting.rows, setting.kind, setting.split.kept_N, "directions of sets")
    vectors = set_vectors(sets, dictionary, blocks)
    if not vectors or vectors[0].latents.name != "claimed":
        return []
    return text_rows(
        setting.context, source.tokens, sequences, setting.slot.layer, vectors, config.n_causal_prompts,
        config.causal_text_tokens,
    )  # fmt: skip


def _sets(setting: Setting, latents: Latents) -> tuple[list[LatentSet], list[str]]:
    """The claimed latents and random ones to compare with; none where there is nothing to claim or to compare with."""
    config = setting.config
    claimed_C = latents.claimed(config.n_causal)
    if not config.n_causal or not len(claimed_C):
        return [], []
    energy_F = np.where(np.array(latents.tags) == "dead", 0, latents.ft_energy_F)
    random = matched_sets(claimed_C, energy_F, config.n_random_sets, setting.context.seed)
    if not random:
        return [], [
            f"{len(claimed_C)} latents are claimed and fewer others are alive: there is no control to compare with."
        ]
    return [LatentSet("claimed", 0, claimed_C), *random], []
