"""Computes the lens: means in one pass, then what they say, what they steer to, and what they cause."""

from collections.abc import Sequence
from functools import cache

import pyarrow as pa
import torch

from diffing.activations.reading import comparable_sequences
from diffing.analysis.context import RunContext
from diffing.analysis.steering import mean_activation_norm
from diffing.analysis.token_text import token_strings
from diffing.core.errors import UserError
from diffing.core.layers import layers as chosen_layers
from diffing.core.method import MethodOutput
from diffing.core.tables import table_of
from diffing.methods.activation_difference_lens.causal import causal_rows
from diffing.methods.activation_difference_lens.config import LensConfig
from diffing.methods.activation_difference_lens.directions import Direction, directions
from diffing.methods.activation_difference_lens.findings import evidence, summary
from diffing.methods.activation_difference_lens.means import Means, read_means
from diffing.methods.activation_difference_lens.patchscopes import (
    Said,
    patched_model,
    patchscope_rows,
    read_patchscope,
    scale_rows,
)
from diffing.methods.activation_difference_lens.readouts import Vector, lens_rows, unread, vectors_of
from diffing.methods.activation_difference_lens.results import (
    CausalRow,
    PatchscopeRow,
    PositionRow,
    ReadoutRow,
    ScaleRow,
    StrengthRow,
    TextRow,
)
from diffing.methods.activation_difference_lens.scores import TokenScores, add_lens, add_patchscope
from diffing.methods.activation_difference_lens.statistics import position_rows, tensors_of
from diffing.methods.activation_difference_lens.steering import some_prompts, steered_texts
from diffing.methods.activation_difference_lens.stored import stored_rows

_OTHERS = "kl, diff_mining, logit_amplification and perplexity_diff"


def run(config: LensConfig, context: RunContext) -> MethodOutput:
    """Read the mean differences of the pair.

    Raises:
        UserError: A layer is not in both models, their widths differ, or a prompt cannot be read.
    """
    pair = context.pair
    layers, lens_only = _layers(config, context)
    if config.strengths and config.n_directions:
        some_prompts(config, context)
    means = read_means(
        context, sorted([*layers, *lens_only]), config.n_positions, config.n_before_reply, config.n_null_draws
    )
    ranked = means.ranked(context.skip_first_tokens)
    found = [_Layer(config, context, means, ranked, i, layer in lens_only) for i, layer in enumerate(means.layers)]
    size = (patched_model(config, context) if config.n_patchscope_tokens else pair.finetuned).vocab_size
    scores = TokenScores(size, config.n_null_draws)
    for layer in found:
        layer.score(scores)
    names = token_strings(patched_model(config, context).tokenizer, range(size))
    tables = {
        "positions": table_of(PositionRow, position_rows(means, context.tokenizer, ranked)),
        "readouts": table_of(ReadoutRow, [r for layer in found for r in layer.readouts]),
        "patchscope": table_of(PatchscopeRow, [r for layer in found for r in layer.patchscope]),
        "scales": table_of(ScaleRow, [r for layer in found for r in layer.scales]),
        "strengths": table_of(StrengthRow, [r for layer in found for r in layer.strengths]),
        "texts": table_of(TextRow, [r for layer in found for r in layer.texts]),
        "causal": table_of(CausalRow, [r for layer in found for r in layer.causal]),
        "token_scores": scores.table(names, len(ranked)),
    }
    return _output(context, means, tables, [n for layer in found for n in layer.notes], found)


def _layers(config: LensConfig, context: RunContext) -> tuple[list[int], list[int]]:
    """Layers that are read in every way, and those that the lens alone reads."""
    n_base, n_finetuned = (len(h.sites.layers) for h in (context.pair.base, context.pair.finetuned))
    if n_base != n_finetuned:
        raise UserError(
            f"The two models differ in depth ({n_base} and {n_finetuned} layers), so that their layers do not "
            f"correspond; {_OTHERS} compare their outputs."
        )
    layers = chosen_layers(config.layers, n_base, "diffing.method.layers")
    besides = chosen_layers(config.lens_layers, n_base, "diffing.method.lens_layers") if config.n_lens_tokens else []
    return layers, [layer for layer in besides if layer not in layers]


class _Layer:
    """Everything that is read, steered and tested at one layer; `is_lens_only`: read through norm and head alone."""

    def __init__(
        self, config: LensConfig, context: RunContext, means: Means, ranked: Sequence[int], index: int,
        is_lens_only: bool,
    ) -> None:  # fmt: skip
        self._context, self.ranked, self.layer = context, ranked, means.layers[index]
        self._reads_lens = config.n_lens_tokens > 0
        self.vectors: list[Vector] = vectors_of(means, index, ranked)
        self.is_lens_only = is_lens_only
        self.directions: list[Direction] = []
        self.notes: list[str] = []
        self.readouts = lens_rows(context.pair, means, self.vectors, config.n_lens_tokens)
        self.said: Said | None = None
        self.patchscope, self.scales, self.strengths, self.texts, self.causal = [], [], [], [], []
        if not is_lens_only:
            self._read_further(config, means, index)

    def _read_further(self, config: LensConfig, means: Means, index: int) -> None:
        context = self._context
        self.directions = directions(means, index, self.ranked, config.n_directions)
        self.mean_norm = mean_activation_norm(
            context.pair.finetuned, context.corpus, self.layer, context.skip_first_tokens
        )
        if config.n_patchscope_tokens and self.vectors:
            self.said = read_patchscope(config, context, self.layer, self.vectors, self.mean_norm)
            self.patchscope = patchscope_rows(config, context, means, self.said)
            self.scales = scale_rows(means, self.said)
        self.strengths, self.texts = self._steered(config)
        sequences, _ = comparable_sequences(context.corpus, context.pair)
        chosen = list(range(len(context.corpus.sequences))) if sequences is None else sequences
        self.causal = causal_rows(config, context, self.layer, self.directions, chosen)

    def _steered(self, config: LensConfig) -> tuple[list[StrengthRow], list[TextRow]]:
        if not (self.directions and config.strengths):
            return [], []
        written = cache(lambda: steered_texts(config, self._context, self.layer, self.directions, self.mean_norm))
        folder = self._context.scratch
        texts = stored_rows(folder / f"texts_{self.layer:03d}.parquet", TextRow, lambda: written()[1])
        strengths = stored_rows(folder / f"strengths_{self.layer:03d}.parquet", StrengthRow, lambda: written()[0])
        bad = [d.name for d in self.directions if not any(r.is_chosen and _is_of(r, d) for r in strengths)]
        self.notes += [
            f"Steering along {name}: no strength leaves texts as coherent as unsteered ones." for name in bad
        ]
        return strengths, texts

    def score(self, scores: TokenScores) -> None:
        """Add this layer to the ranking of tokens."""
        if self.said:
            add_patchscope(scores, self.said, self.ranked)
        elif self._reads_lens:
            add_lens(scores, self._context.pair, self.vectors, self.ranked)


def _is_of(row: StrengthRow, direction: Direction) -> bool:
    return (row.layer, row.dataset, row.kind, row.position) == direction.where


def _output(
    context: RunContext, means: Means, tables: dict[str, pa.Table], notes: list[str], found: Sequence[_Layer]
) -> MethodOutput:
    claimed = None if context.null_pair == "none" else False
    scalars = summary(tables)
    zero = [] if means.norm_PL.any() else ["All mean differences are zero: there is nothing to read or steer with."]
    return MethodOutput(
        tables=tables,
        evidence=evidence(tables, scalars, claimed),
        summary=scalars,
        tensors=tensors_of(means),
        notes=tuple(dict.fromkeys([*zero, *means.notes, *unread(context.pair), *notes])),
        facts={
            "layers": [layer.layer for layer in found if not layer.is_lens_only],
            "lens_layers": list(means.layers),
            "main_layer": _main_layer(means, found),
            "tokens_read": means.n_tokens,
            "mean_norm": {str(layer.layer): layer.mean_norm for layer in found if not layer.is_lens_only},
            "directions": [d.name for layer in found for d in layer.directions],
            "threads": torch.get_num_threads(),
        },
    )


def _main_layer(means: Means, found: Sequence[_Layer]) -> int:
    """The layer that the report shows: where a ranked mean difference is largest relative to the stream."""
    sizes = {
        layer.layer: float(means.beyond_PL[list(layer.ranked), i].max())
        for i, layer in enumerate(found)
        if not layer.is_lens_only
    }
    return max(sizes, key=lambda layer: sizes[layer])
