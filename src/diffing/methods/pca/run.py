"""Decomposes the activation differences: moments in one pass, scores in another, tables from both."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from diffing.activations.outliers import norm_limit
from diffing.activations.source import ActivationSource
from diffing.analysis.context import RunContext
from diffing.analysis.coverage import kept_tokens, refuse_unread
from diffing.analysis.token_excess import document_mean_table, token_excess_table
from diffing.analysis.token_text import token_strings
from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.core.method import MethodOutput
from diffing.core.progress import bar
from diffing.methods.pca.config import PcaConfig, Target
from diffing.methods.pca.examples import example_table
from diffing.methods.pca.findings import evidence, summary
from diffing.methods.pca.gather import Gathered
from diffing.methods.pca.moments import Moments, read_moments
from diffing.methods.pca.null import NullSpectra, null_spectra, null_tokens
from diffing.methods.pca.readouts import read_directions, readout_table
from diffing.methods.pca.scores import Scores, read_scores
from diffing.methods.pca.spaces import Space, spaces_of
from diffing.methods.pca.statistics import component_table, dataset_table, space_table, spectrum_table, tensors_of

_GROUP_BYTES = 2**30
_MATRICES = 7
_MAIN_CENTRING = "uncentred"
_FEW_TOKENS = 20


def run(config: PcaConfig, context: RunContext) -> MethodOutput:
    """Decompose δ (and b, f where asked) at every slot of `context.activations`.

    Raises:
        UserError: `example_layer` was not read, or no token is left to compare.
    """
    source = context.activations
    assert source is not None
    refuse_unread(config.example_layer, source)
    kept_N = kept_tokens(source, context, "decompose")
    null_N = null_tokens(source.tokens, kept_N, config.max_null_tokens, source.width, context.seed)
    spaces: list[Space] = []
    scores: dict[Slot, Scores] = {}
    relative: dict[Slot, float] = {}
    limits = {s: norm_limit(source, s, kept_N, config.outlier_norm) for s in source.slots}
    for slots in _groups(source, len(config.of)):
        moments = _moments(config, context, source, slots, kept_N, null_N, limits)
        found = {
            s: spaces_of(s, moments[s], _nulls(config, context, source, s, moments[s], null_N), config.n_components)
            for s in slots
        }
        relative |= {s: _relative(found[s], moments[s]) for s in slots}
        del moments
        with bar("pca: reading activations for scores", _n_tokens(source), "tokens") as advance:
            scores |= read_scores(source, found, limits, context.scratch, advance)
        spaces += [space for s in slots for space in found[s]]
    main = _main(config, spaces, relative)
    return _tabulate(config, context, source, Gathered(source.tokens, kept_N, tuple(spaces), scores, main))


def _n_tokens(source: ActivationSource) -> int:
    return sum(len(rows) for rows in source.block_tokens)


def _groups(source: ActivationSource, n_targets: int) -> Iterator[list[Slot]]:
    """Slots that are read together: as many as memory for their matrices allows."""
    size = max(1, _GROUP_BYTES // (_MATRICES * n_targets * 8 * source.width**2))
    for start in range(0, len(source.slots), size):
        yield list(source.slots[start : start + size])


def _moments(
    config: PcaConfig, context: RunContext, source: ActivationSource, slots: Sequence[Slot], kept_N: np.ndarray,
    null_N: np.ndarray, limits: dict[Slot, float],
) -> dict[Slot, Moments]:  # fmt: skip
    with bar("pca: reading activations for covariances", _n_tokens(source), "tokens") as advance:
        return read_moments(source, slots, config.of, kept_N, null_N, limits, context.scratch, advance)


def _nulls(
    config: PcaConfig, context: RunContext, source: ActivationSource, slot: Slot, moments: Moments, null_N: np.ndarray
) -> dict[Target, NullSpectra]:
    sequence_N = source.tokens.sequence_N[null_N]
    with bar(f"pca: null spectra of {slot.name}", config.n_null_draws * len(config.of), "draws") as advance:
        return {
            target: null_spectra(
                moments.null_rows[target], sequence_N, config.n_null_draws, context.seed, f"{slot.name}/{target}",
                advance,
            )
            for target in config.of
        }  # fmt: skip


def _relative(spaces: Sequence[Space], moments: Moments) -> float:
    """E‖x‖² of the first target over E‖b‖²; NaN without a finite token."""
    whole = next(s.total for s in spaces if s.centring == "uncentred")
    n = spaces[0].n_tokens
    if not n:
        return float("nan")
    return whole * n / moments.base_squares if moments.base_squares > 0 else 0.0


def _main(config: PcaConfig, spaces: Sequence[Space], relative: dict[Slot, float]) -> Space:
    """The space of the headline: as chosen, else of the residual slot where the first target is largest.

    Raises:
        UserError: No slot has a finite token.
    """
    usable = [s for s in relative if not np.isnan(relative[s])]
    if not usable:
        raise UserError(
            "All activations are NaN or infinite; check the weights, or use preprocessing.dtype=bfloat16 or float32."
        )
    chosen = [s for s in usable if config.example_layer in (None, s.layer)] or usable
    slot = max(chosen, key=lambda s: (s.site == "residual", relative[s]))
    return next(s for s in spaces if (s.slot, s.target, s.centring) == (slot, config.of[0], _MAIN_CENTRING))


def _tabulate(config: PcaConfig, context: RunContext, source: ActivationSource, data: Gathered) -> MethodOutput:
    names = token_strings(context.tokenizer, np.unique(data.tokens.ids_N[data.kept_N]).tolist())
    readouts, unread = read_directions(data, context, config.n_lens_tokens)
    tables = {
        "spaces": space_table(data),
        "spectrum": spectrum_table(data),
        "components": component_table(data, readouts),
        "readouts": readout_table(readouts),
        "datasets": dataset_table(data, context.seed),
        "examples": example_table(data, context.tokenizer, config),
        "token_scores": token_excess_table(data.tokens, data.energy_N, names),
        "document_scores": document_mean_table(data.tokens, data.energy_N),
    }
    claimed = None if context.null_pair == "none" else False
    main = data.main
    first = f"Token ranking, examples by document and headline are of {main.key}."
    notes = [first, *source.notes, *_said(data), *unread]
    return MethodOutput(
        tables=tables,
        evidence=evidence(tables, main, claimed),
        summary=summary(tables, main, None),
        tensors=tensors_of(data),
        notes=tuple(dict.fromkeys(notes)),
        facts={
            "main": {**main.slot._asdict(), "target": main.target, "centring": main.centring},
            "activations": dict(source.facts),
            "null_tokens": main.n_null_tokens,
            "not_finite": {s.slot.name: s.n_not_finite for s in data.spaces},
            "threads": torch.get_num_threads(),
        },
    )


def _said(data: Gathered) -> Iterator[str]:
    """What a reader must know of what was left out."""
    for space in data.spaces:
        if space.n_not_finite:
            yield (
                f"{space.slot.name}: {space.n_not_finite:,} tokens hold NaN or infinite activations in one of the "
                "models; they are left out."
            )
    main = data.main
    if main.n_unusual:
        yield (
            f"Left out of {main.key} for a norm many times the median (attention sinks): {main.n_unusual:,} of the "
            "tokens."
        )
    few = [c for c in data.listed if c.space is main and data.n_tokens_carrying(c) < _FEW_TOKENS]
    if few:
        yield (
            f"Of {main.key}, component {', '.join(str(c.index + 1) for c in few)} is carried by fewer than "
            f"{_FEW_TOKENS} tokens: look at its examples; attention sinks past the first positions do this."
        )
    if main.n_null_tokens < main.n_tokens:
        yield (
            f"Null spectra are drawn from {main.n_null_tokens:,} of {main.n_tokens:,} tokens (whole documents at "
            "random); with fewer tokens a null spectrum is broader, so that fewer components exceed it."
        )
    if main.n_null_documents < 2:
        yield "With one document there is nothing to permute, so that no component can exceed its null."
    if not main.is_exact:
        yield f"At width {len(main.mean_D)} the {len(main.values_K)} leading components are computed, not all."
