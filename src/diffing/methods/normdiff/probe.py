"""The activation differences at every token of one text and every layer, for trying a pair out."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from diffing.activations.reading import PairReader
from diffing.activations.source import PairRows
from diffing.analysis.one_text import corpus_of
from diffing.core.layers import Slot
from diffing.core.probing import TokenValues
from diffing.data.sequences import TokenSequence
from diffing.methods.normdiff.stream import metrics
from diffing.models.capture import capture
from diffing.models.pair import ModelHandle, ModelPair

MOST_BYTES = 512 * 2**20
_SHOWN = {"relative": "relative difference", "norm_diff": "‖δ‖", "cosine": "cosine distance"}


def probe(pair: ModelPair, sequence: TokenSequence) -> tuple[TokenValues, ...]:
    """What `tokens.parquet` of a run on this text alone would hold for the residual stream, layer by layer.

    Layers that only one of the models has, or that differ in width, are left out; none of them left gives no values.

    Raises:
        UserError: The text has tokens that the two vocabularies do not share, or does not fit into memory.
    """
    corpus = corpus_of(pair, sequence)
    sizes = _shared_slots(pair, sequence)
    reader = PairReader(pair, corpus, tuple(sizes), _storage_dtype(pair))
    return tuple(
        values
        for group in _groups(sizes, len(sequence.ids))
        for slot, rows in reader.read([0], group).items()
        for values in _values(slot, rows)
    )


def _storage_dtype(pair: ModelPair) -> torch.dtype:
    """As the models compute; of a pair that differs in dtype alone, the wider one: what runs store by default."""
    return torch.float32 if pair.spec.null_pair == "dtype" else getattr(torch, pair.spec.model.dtype)


def _shared_slots(pair: ModelPair, sequence: TokenSequence) -> dict[Slot, int]:
    """Slots that both models have in one width, with the bytes that a token takes there."""
    n_layers = min(len(handle.sites.layers) for handle in (pair.base, pair.finetuned))
    slots = [Slot(layer) for layer in range(n_layers)]
    base, finetuned = (_first_token(handle, slots, sequence) for handle in (pair.base, pair.finetuned))
    stored = torch.empty(0, dtype=_storage_dtype(pair)).element_size()
    return {
        slot: sum(_bytes(x[slot], stored) for x in (base, finetuned))
        for slot in slots
        if base[slot].shape == finetuned[slot].shape
    }


def _first_token(handle: ModelHandle, slots: Sequence[Slot], sequence: TokenSequence) -> Mapping[Slot, Tensor]:
    return capture(handle, torch.tensor([[int(sequence.ids[0])]]), slots, [1])


def _bytes(acts_BTD: Tensor, stored: int) -> int:
    """Of one token, as captured and, where the dtype differs, as handed out."""
    size = acts_BTD.element_size()
    return acts_BTD.shape[-1] * (size if size == stored else size + stored)


def _groups(sizes: Mapping[Slot, int], n_tokens: int) -> Iterator[list[Slot]]:
    """Consecutive slots whose activations together stay below `MOST_BYTES`, one at least."""
    group: list[Slot] = []
    total = 0
    for slot, size in sizes.items():
        if group and total + size * n_tokens > MOST_BYTES:
            yield group
            group, total = [], 0
        group.append(slot)
        total += size * n_tokens
    if group:
        yield group


def _values(slot: Slot, rows: PairRows) -> Iterator[TokenValues]:
    found = metrics(rows)
    for name, title in _SHOWN.items():
        values_T = tuple(v if np.isfinite(v) else None for v in found[name].tolist())
        yield TokenValues(title, "", values_T, slot.layer)
