"""All that was found, in the order in which tables number it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from diffing.core.layers import Slot
from diffing.data.token_table import TokenTable
from diffing.methods.pca.scores import Scores
from diffing.methods.pca.spaces import Space


@dataclass(frozen=True, eq=False)
class Listed:
    """A listed component.

    Args:
        unit: Its number in the tables.
        space: The space it belongs to.
        index: Its place in the space, from 0.
    """

    unit: int
    space: Space
    index: int

    @property
    def tensor(self) -> str:
        """Name of its vector."""
        return f"{self.space.key}/component_{self.index + 1}"

    @property
    def value(self) -> float:
        """Its eigenvalue."""
        return float(self.space.values_K[self.index])


@dataclass(frozen=True, eq=False)
class Gathered:
    """Spaces and scores of all slots.

    Args:
        tokens: What each token is.
        kept_N: Which count.
        spaces: All spaces; a space's unit is its place here.
        scores: By slot.
        main: The space of the token ranking, the examples by document and the headline.
    """

    tokens: TokenTable
    kept_N: np.ndarray
    spaces: tuple[Space, ...]
    scores: Mapping[Slot, Scores]
    main: Space

    @cached_property
    def listed(self) -> tuple[Listed, ...]:
        """All listed components; units count them in this order."""
        pairs = [(space, i) for space in self.spaces for i in range(space.n_listed)]
        return tuple(Listed(unit, *pair) for unit, pair in enumerate(pairs))

    def scores_of(self, component: Listed) -> np.ndarray:
        """Scores of all tokens, NaN where a token does not count or is not known."""
        values = self.scores[component.space.slot].component(component.space, component.index)
        return np.where(self.kept_N, values, np.nan)

    def n_tokens_carrying(self, component: Listed) -> float:
        """(Σs²)² / Σs⁴: how many tokens of equal score² would carry the component as unevenly."""
        squares_N = np.square(self.scores_of(component))
        fourth = float(np.nansum(np.square(squares_N)))
        return float(np.nansum(squares_N)) ** 2 / fourth if fourth > 0 else 0.0

    @cached_property
    def energy_N(self) -> np.ndarray:
        """Energy in the main space above its null over its mean; NaN as above, and 0 where there is none."""
        energy_N = np.where(self.kept_N, self.scores[self.main.slot].energy(self.main), np.nan)
        known = energy_N[~np.isnan(energy_N)]
        mean = float(known.mean()) if len(known) else 0.0
        return energy_N / mean if mean > 0 else np.where(np.isnan(energy_N), np.nan, 0.0)

    def units_of_space(self, space: Space) -> Iterator[Listed]:
        """The listed components of a space."""
        return (c for c in self.listed if c.space is space)
