"""What a method reads activations from; it cannot tell a cache on disk from models that run as it reads."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffing.core.layers import Slot
from diffing.data.token_table import TokenTable


class PairRows(NamedTuple):
    """The two models' activations at the same tokens, [N, D] each, in the storage dtype."""

    base_ND: Tensor
    finetuned_ND: Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """Activations of some whole sequences of one dataset.

    Args:
        number: Place in the source's order.
        token_N: Row of the source's token table that each row of activations belongs to.
        rows: Activations by slot; every tensor has a row per entry of `token_N`.
    """

    number: int
    token_N: np.ndarray
    rows: Mapping[Slot, PairRows]


class ActivationSource(ABC):
    """Aligned activations of both models, block by block.

    Blocks, their order and their numbers are the same on disk and live: both follow from the corpus and
    `preprocessing.batch_tokens` alone.
    """

    @property
    @abstractmethod
    def tokens(self) -> TokenTable:
        """All tokens of the corpus."""

    @property
    @abstractmethod
    def slots(self) -> tuple[Slot, ...]:
        """Where activations can be read."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers per activation, D."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """In which activations are stored and handed out."""

    @property
    @abstractmethod
    def block_tokens(self) -> tuple[np.ndarray, ...]:
        """`Block.token_N` of every block, known before anything is read."""

    @property
    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """Sentences for the reader of a result: values that are not finite, attention sinks, halved batches."""

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """What goes into a result's manifest: dtype, slots, and for a cache where it is and how it was made."""

    @abstractmethod
    def blocks(self, slots: Sequence[Slot] | None = None, order: Sequence[int] | None = None) -> Iterator[Block]:
        """Blocks with the activations of `slots` (default: all), in the given order of numbers (default: ascending)."""

    @abstractmethod
    def noise(self, slot: Slot) -> Mapping[str, float]:
        """What the base differs from itself by at this slot, in two batch shapes and rounded once to the storage dtype.

        Means over tokens (leading positions left out): `norm` of the difference, `relative` to the mean norm, `cosine`
        distance.
        """
