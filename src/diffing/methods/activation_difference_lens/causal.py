"""Causal effect: the finetuned stream's component along a mean difference made the base's, and its controls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.analysis.bootstrap import ratio_interval
from diffing.analysis.context import RunContext
from diffing.analysis.losses import LossReader
from diffing.core.layers import Slot
from diffing.core.progress import bar
from diffing.core.seeds import generator
from diffing.data.batches import Batch, make_batch, pad_id, plan_batches
from diffing.data.token_table import TokenTable
from diffing.methods.activation_difference_lens.config import LensConfig
from diffing.methods.activation_difference_lens.directions import Direction
from diffing.methods.activation_difference_lens.patchscopes import random_directions
from diffing.methods.activation_difference_lens.results import CausalRow
from diffing.methods.activation_difference_lens.stored import stored_rows
from diffing.models.capture import capture

_LOGIT_BYTES = 2**27
TOWARD_BASE, RANDOM, MATCHED = "toward_base", "random", "random_matched"


@dataclass(frozen=True, eq=False)
class Change:
    """A change of the stream: what it is called, of which direction, and what is added at every token."""

    kind: str
    number: int
    direction: int
    added: Callable[[Tensor, Tensor], Tensor]


def causal_rows(
    config: LensConfig, context: RunContext, layer: int, chosen: Sequence[Direction], sequences: Sequence[int]
) -> list[CausalRow]:
    """Every change on some text of every dataset; `sequences` are those that both models can read."""
    if not (chosen and config.causal_tokens):
        return []
    tokens = TokenTable.of(context.corpus)
    picked = {
        name: some_sequences(tokens, sequences, name, config.causal_tokens, context.seed)
        for name in context.corpus.datasets
    }
    total = sum(tokens.length_of(s) for some in picked.values() for s in some)
    rows: list[CausalRow] = []
    with bar(f"causal effect at layer {layer}", total, "tokens") as advance:
        for number, (name, some) in enumerate(picked.items()):
            path = context.scratch / f"causal_{layer:03d}_{number:03d}.parquet"
            rows += stored_rows(path, CausalRow, lambda n=name, s=some: _measured(config, context, layer, chosen, n, s))
            advance(sum(tokens.length_of(s) for s in some))
    return rows


def some_sequences(tokens: TokenTable, sequences: Sequence[int], dataset: str, n_tokens: int, seed: int) -> list[int]:
    """Documents of a dataset in a fixed random order until so many tokens are reached; those of one token are not."""
    mine = [s for s in sequences if tokens.dataset_of(s) == dataset and tokens.length_of(s) > 1]
    found, count = [], 0
    for s in generator(seed, "causal", dataset).permutation(np.array(mine, dtype=np.int64)).tolist():
        if count < n_tokens:
            found.append(s)
            count += tokens.length_of(s)
    return found


def changes(chosen: Sequence[Direction], random_ND: Tensor) -> list[Change]:
    """Toward the base along each direction, along random ones, and random ones of the first change's length."""
    found = []
    for i, direction in enumerate(chosen):
        found.append(Change(TOWARD_BASE, 0, i, _replacement(direction.unit_D)))
        for n, random_D in enumerate(random_ND):
            found.append(Change(MATCHED, n, i, _matched(direction.unit_D, random_D)))
    return [*found, *(Change(RANDOM, n, -1, _replacement(random_D)) for n, random_D in enumerate(random_ND))]


def _replacement(unit_D: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """(b·v̂ − x·v̂) v̂."""
    return lambda base_BTD, own_BTD: ((base_BTD - own_BTD) @ unit_D.to(own_BTD))[..., None] * unit_D.to(own_BTD)


def _matched(unit_D: Tensor, random_D: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """|(b − x)·v̂| u."""
    return lambda base_BTD, own_BTD: ((base_BTD - own_BTD) @ unit_D.to(own_BTD)).abs()[..., None] * random_D.to(own_BTD)


def _measured(
    config: LensConfig, context: RunContext, layer: int, chosen: Sequence[Direction], text: str, sequences: list[int]
) -> list[CausalRow]:
    if not sequences:
        return []
    pair = context.pair
    n, width = config.n_causal_controls, len(chosen[0].unit_D)
    all_changes = changes(chosen, random_directions(n, width, context.seed, "causal", layer))
    sums: list[list[np.ndarray]] = [[] for _ in all_changes]
    sizes = np.zeros((len(all_changes), 2))
    vocabulary = max(pair.base.vocab_size, pair.finetuned.vocab_size)
    lengths = [len(context.corpus.sequences[s].ids) for s in sequences]
    for places in plan_batches(lengths, max(1, _LOGIT_BYTES // (4 * vocabulary))):
        batch = make_batch(context.corpus, [sequences[i] for i in places], pad_id(context.tokenizer))
        for i, (found, size) in enumerate(_on_batch(context, layer, batch, all_changes)):
            sums[i].append(found)
            sizes[i] += size
    rows = []
    for change, parts, (size, count) in zip(all_changes, sums, sizes, strict=True):
        effect_B, n_B, kl_B = np.concatenate(parts, 1)
        interval = ratio_interval(effect_B, n_B, generator(context.seed, "causal effect", layer, text))
        values = (int(n_B.sum()), interval.value, interval.low, interval.high, float(kl_B.sum() / n_B.sum()))
        values = (change.kind, change.number, *values, size / count if count else 0.0)
        of = chosen if change.direction < 0 else [chosen[change.direction]]
        rows += [CausalRow(*direction.where, text, *values) for direction in of]
    return rows


def _on_batch(
    context: RunContext, layer: int, batch: Batch, all_changes: Sequence[Change]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """By change: (effect, next tokens, KL) by sequence, and (Σ length of the change, tokens changed)."""
    pair, slot = context.pair, Slot(layer)
    own_BTD = capture(pair.finetuned, batch.ids_BT, [slot], batch.lengths)[slot].float()
    base_BTD = capture(pair.base, batch.ids_BT, [slot], batch.lengths)[slot].to(own_BTD.device).float()
    kept_BT = _kept(context, batch).to(own_BTD.device)
    kept_BT &= torch.isfinite(own_BTD).all(-1) & torch.isfinite(base_BTD).all(-1)
    reader = LossReader(pair.finetuned, batch, layer)
    own = reader.unchanged
    found = []
    for change in all_changes:
        added_BTD = change.added(base_BTD, own_BTD).masked_fill(~kept_BT[..., None], 0)
        new = reader.changed(own_BTD + added_BTD)
        size = added_BTD.norm(dim=-1).double().sum()
        counts = np.array([float(size), float(kept_BT.sum())])
        found.append((np.stack([new.nll_B - own.nll_B, new.n_B, new.kl_B]), counts))
    return found


def _kept(context: RunContext, batch: Batch) -> Tensor:
    """Tokens that may be changed: no padding, no BOS, no attention sinks at the start."""
    bos = context.tokenizer.bos_token_id
    position_BT = torch.arange(batch.ids_BT.shape[1])[None]
    kept_BT = (position_BT < torch.tensor(batch.lengths)[:, None]) & (position_BT >= context.skip_first_tokens)
    return kept_BT & ~((position_BT == 0) & (batch.ids_BT == bos)) if isinstance(bos, int) else kept_BT
