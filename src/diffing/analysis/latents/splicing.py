"""Batches of the pair with their codes, for changing the residual stream by a dictionary."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.analysis.context import RunContext
from diffing.analysis.latents.sites import Input, Split, as_input
from diffing.core.layers import Slot
from diffing.core.seeds import generator
from diffing.data.batches import Batch, make_batch, pad_id, plan_batches
from diffing.data.token_table import TokenTable
from diffing.dictionaries.codes import Codes
from diffing.dictionaries.dictionary import Dictionary
from diffing.models.capture import capture
from diffing.models.pair import ModelPair

_LOGIT_BYTES = 2**27


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Some sequences with both models' streams and their codes.

    Args:
        batch: Token ids.
        is_kept_BT: Tokens whose state may be changed.
        streams: (base, finetuned), (B, T, D) each.
        codes: Of the kept tokens, row by row.
        made_NMD: What they make of them, in normalised units.
    """

    batch: Batch
    is_kept_BT: Tensor
    streams: tuple[Tensor, Tensor]
    codes: Codes
    made_NMD: Tensor

    def replaced(self, model: int, rows_ND: Tensor) -> Tensor:
        """A model's stream with other states at the kept tokens."""
        stream_BTD = self.streams[model].float().clone()
        stream_BTD[self.is_kept_BT] = rows_ND.to(stream_BTD.device, torch.float32)
        return stream_BTD

    def kept(self, model: int) -> Tensor:
        """A model's states at the kept tokens, (N, D), float32."""
        return self.streams[model].float()[self.is_kept_BT]


def some_sequences(tokens: TokenTable, split: Split, n_tokens: int, seed: int) -> dict[str, list[int]]:
    """Of each dataset some sequences of held-out documents, about `n_tokens` of them, in a fixed random order."""
    chosen: dict[str, list[int]] = {name: [] for name in tokens.datasets}
    counts = dict.fromkeys(tokens.datasets, 0)
    order = generator(seed, "spliced sequences").permutation(np.unique(tokens.sequence_N[split.held_N]))
    for sequence in order.tolist():
        name, length = tokens.dataset_of(sequence), tokens.length_of(sequence)
        if counts[name] < n_tokens and length > 1:
            chosen[name].append(sequence)
            counts[name] += length
    return {name: found for name, found in chosen.items() if found}


def pair_batches(
    context: RunContext, dictionary: Dictionary, kind: Input, slot: Slot, tokens: TokenTable, kept_N: np.ndarray,
    sequences: Sequence[int], limit: float,
) -> Iterator[PairBatch]:  # fmt: skip
    """The sequences in batches that leave room for logits; states above the norm `limit` are never changed."""
    pair = context.pair
    vocabulary = max(pair.base.vocab_size, pair.finetuned.vocab_size)
    lengths = [tokens.length_of(s) for s in sequences]
    for places in plan_batches(lengths, max(1, _LOGIT_BYTES // (4 * vocabulary))):
        batch = make_batch(context.corpus, [sequences[i] for i in places], pad_id(pair.tokenizer))
        is_kept_BT = torch.zeros(batch.ids_BT.shape, dtype=torch.bool)
        for row, sequence in enumerate(batch.sequences):
            mask_T = kept_N[tokens.rows_of(sequence)]
            is_kept_BT[row, : len(mask_T)] = torch.from_numpy(mask_T)
        yield _coded(pair, dictionary, kind, slot, batch, is_kept_BT, limit)


@torch.no_grad()
def _coded(
    pair: ModelPair, dictionary: Dictionary, kind: Input, slot: Slot, batch: Batch, is_kept_BT: Tensor, limit: float
) -> PairBatch:
    streams = tuple(capture(h, batch.ids_BT, [slot], batch.lengths)[slot] for h in (pair.base, pair.finetuned))
    base_BTD, finetuned_BTD = (s.to(streams[0].device) for s in streams)
    mask_BT = is_kept_BT.to(base_BTD.device)
    mask_BT &= torch.maximum(base_BTD.float().norm(dim=2), finetuned_BTD.float().norm(dim=2)) <= limit
    pair_N2D = torch.stack([base_BTD.float()[mask_BT], finetuned_BTD.float()[mask_BT]], 1)
    codes = dictionary.encode(dictionary.normalised(as_input(pair_N2D, kind)))
    return PairBatch(batch, mask_BT, (base_BTD, finetuned_BTD), codes, dictionary.decode(codes))
