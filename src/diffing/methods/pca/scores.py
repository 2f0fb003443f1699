"""Second pass: every token's score on every listed component, and its energy in the space above the null."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffing.activations.source import ActivationSource, PairRows
from diffing.core.errors import UserError
from diffing.core.files import read_json, write_json
from diffing.core.layers import Slot
from diffing.methods.pca.mapped import found_array, new_array
from diffing.methods.pca.spaces import Space
from diffing.methods.pca.targets import finite_rows, target_rows, usual_rows
from diffing.methods.pca.units import units_of


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one slot's tokens, in corpus order; NaN where unknown.

    Args:
        spaces: The slot's spaces.
        columns_XN: For each space its components' scores (x − offset)·v and then the energy ‖P(x − offset)‖², P being
            the projection on the components above the null; float32, a file mapped into memory.
    """

    spaces: tuple[Space, ...]
    columns_XN: np.ndarray

    def component(self, space: Space, component: int) -> np.ndarray:
        """Scores on a component, counted from 0, float64."""
        return self.columns_XN[self._first(space) + component].astype(np.float64)

    def energy(self, space: Space) -> np.ndarray:
        """Energy in the space above the null, float64."""
        return self.columns_XN[self._first(space) + space.n_listed].astype(np.float64)

    def _first(self, space: Space) -> int:
        before = self.spaces[: self.spaces.index(space)]
        return sum(s.n_listed + 1 for s in before)


@dataclass(eq=False)
class _Running:
    """Scores of a slot so far; its files in `folder`."""

    folder: Path
    scores: Scores
    n_units: int

    @classmethod
    def opened(cls, folder: Path, spaces: tuple[Space, ...], n_tokens: int) -> "_Running":
        shape = (sum(s.n_listed + 1 for s in spaces), n_tokens)
        path, done = folder / "scores.npy", folder / "scores.json"
        columns_XN, n_units = found_array(path, shape), _counted(done)
        if columns_XN is None or n_units is None:
            done.unlink(missing_ok=True)
            columns_XN, n_units = new_array(path, shape, np.nan), 0
        return cls(folder, Scores(spaces, columns_XN), n_units)

    def add(self, rows: PairRows, token_N: np.ndarray, limit: float) -> None:
        used = finite_rows(rows) & usual_rows(rows, limit)
        values_XN = torch.cat([_projected(s, target_rows(rows, s.target, used)) for s in self.scores.spaces])
        self.scores.columns_XN[:, token_N[used.cpu().numpy()]] = values_XN.numpy()

    def save(self) -> None:
        self.n_units += 1
        assert isinstance(self.scores.columns_XN, np.memmap)
        self.scores.columns_XN.flush()
        write_json(self.folder / "scores.json", self.n_units)


def read_scores(
    source: ActivationSource, spaces: Mapping[Slot, tuple[Space, ...]], limits: Mapping[Slot, float], scratch: Path,
    advance: Callable[[float], None],
) -> dict[Slot, Scores]:  # fmt: skip
    """Scores of all tokens that the source covers, in one pass; an interrupted one goes on where it stopped.

    Args:
        source: Where activations come from.
        spaces: By slot, what rows are projected on.
        limits: Norm above which a slot's rows have no score.
        scratch: Folder for unfinished work.
        advance: Told the number of tokens read.
    """
    running = {slot: _Running.opened(scratch / slot.name, s, len(source.tokens)) for slot, s in spaces.items()}
    for number, blocks in enumerate(units_of([len(rows) for rows in source.block_tokens])):
        waiting = [s for s, found in running.items() if found.n_units <= number]
        for block in source.blocks(waiting, blocks) if waiting else ():
            for slot, rows in block.rows.items():
                running[slot].add(rows, block.token_N, limits[slot])
        for slot in waiting:
            running[slot].save()
        advance(sum(len(source.block_tokens[b]) for b in blocks))
    return {slot: found.scores for slot, found in running.items()}


def _counted(path: Path) -> int | None:
    """The number of finished units; None where none was, or its file is damaged."""
    try:
        found = read_json(path, "it is made again")
    except UserError:
        return None
    return found if isinstance(found, int) else None


def _projected(space: Space, rows_ND: Tensor) -> Tensor:
    """Scores on the listed components and the energy, shape (C + 1, N), float32 on the CPU."""
    device = rows_ND.device
    moved_ND = (rows_ND - space.offset_D.to(device)).float()
    scores_NC = moved_ND @ space.vectors_CD.float().to(device).T
    energy_N = (moved_ND @ space.subspace_AD.to(device).T).square().sum(1)
    return torch.cat([scores_NC, energy_N[:, None]], 1).T.cpu()
