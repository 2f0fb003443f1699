"""What a dictionary learns from: both models' activations side by side, or their difference."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from diffing.activations.source import ActivationSource
from diffing.activations.split import validation_sequences
from diffing.analysis.context import RunContext
from diffing.analysis.coverage import kept_tokens
from diffing.core.layers import Site, Slot

Input = Literal["pair", "difference"]
NAMES: dict[Input, tuple[str, ...]] = {"pair": ("base", "finetuned"), "difference": ("difference",)}


def as_input(rows_N2D: Tensor, kind: Input) -> Tensor:
    """Rows as the dictionary takes them: (N, 2, D), or δ = f − b as (N, 1, D), subtracted in float32."""
    if kind == "pair":
        return rows_N2D
    exact_N2D = rows_N2D.float()
    return (exact_N2D[:, 1] - exact_N2D[:, 0])[:, None]


@dataclass(frozen=True, eq=False)
class Split:
    """Which rows of the token table are learned from and which only measured; both hold kept tokens alone.

    Args:
        train_N: Learned from.
        held_N: Measured on; the same as `train_N` where there are too few documents to hold any out.
        is_held_out: Whether the two differ.
    """

    train_N: np.ndarray
    held_N: np.ndarray
    is_held_out: bool

    @property
    def kept_N(self) -> np.ndarray:
        """All kept tokens."""
        return self.train_N | self.held_N


def split(source: ActivationSource, context: RunContext, share: float) -> Split:
    """Kept tokens that were read, some documents of each dataset held out.

    Raises:
        UserError: No token is left.
    """
    tokens = source.tokens
    kept_N = kept_tokens(source, context, "learn from")
    held_N = validation_sequences(tokens, share, context.seed)[tokens.sequence_N] & kept_N
    if not held_N.any() or not (kept_N & ~held_N).any():
        return Split(kept_N, kept_N, False)
    return Split(kept_N & ~held_N, held_N, True)


def chosen_slot(source: ActivationSource, site: Site | None) -> tuple[Slot, str | None]:
    """The slot to train on, and a sentence where there were several: the middle one of the first site."""
    mine = [s for s in source.slots if site in (None, s.site)]
    mine = [s for s in mine if s.site == mine[0].site]
    chosen = mine[len(mine) // 2]
    if len(source.slots) == 1:
        return chosen, None
    names = ", ".join(s.name for s in source.slots)
    return chosen, f"Of {names} the dictionary is trained on {chosen.name}; choose with diffing.method.layer."
