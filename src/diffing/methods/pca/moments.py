"""First pass: mean and covariance of what is decomposed, and the rows that the null is drawn from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from diffing.activations.covariance import Covariance
from diffing.activations.source import ActivationSource, PairRows
from diffing.core.files import atomic_path
from diffing.core.layers import Slot
from diffing.methods.pca.config import Target
from diffing.methods.pca.mapped import found_array, new_array
from diffing.methods.pca.targets import finite_rows, target_rows, usual_rows
from diffing.methods.pca.units import units_of


@dataclass(frozen=True, eq=False)
class Moments:
    """What one slot's kept, finite tokens hold.

    Args:
        covariances: Of each target.
        base_squares: Σ‖b‖².
        n_not_finite: Kept tokens left out because they are not finite in one of the models,
        n_unusual: and because their norm is above the limit.
        null_rows: By target, rows of the null's tokens, float32, NaN where not finite; a file mapped into memory.
    """

    covariances: Mapping[Target, Covariance]
    base_squares: float
    n_not_finite: int
    n_unusual: int
    null_rows: Mapping[Target, np.ndarray]


@dataclass(eq=False)
class _Running:
    """Moments of a slot so far; its files in `folder`."""

    folder: Path
    covariances: dict[Target, Covariance]
    base_squares: float
    n_not_finite: int
    n_unusual: int
    n_units: int
    null_rows: dict[Target, np.memmap]

    @classmethod
    def opened(cls, folder: Path, targets: Sequence[Target], width: int, n_null: int) -> "_Running":
        """As an interrupted run left it, or of no rows.

        What is read is copied: sums over memory of another alignment differ in their last bit.
        """
        shape = (n_null, width)
        try:
            state = load_file(folder / "moments.safetensors")
            n, n_not_finite, n_unusual, n_units = state["counts"].tolist()
            covariances: dict[Target, Covariance] = {
                t: Covariance(n, state[f"{t}.mean"].clone(), state[f"{t}.m2"].clone()) for t in targets
            }
            base_squares = float(state["base_squares"])
        except (SafetensorError, OSError, ValueError, KeyError):
            return cls._new(folder, targets, shape)
        arrays: dict[Target, np.memmap | None] = {t: found_array(folder / f"null_{t}.npy", shape) for t in targets}
        null_rows: dict[Target, np.memmap] = {t: array for t, array in arrays.items() if array is not None}
        if len(null_rows) < len(arrays):
            return cls._new(folder, targets, shape)
        return cls(folder, covariances, base_squares, n_not_finite, n_unusual, n_units, null_rows)

    @classmethod
    def _new(cls, folder: Path, targets: Sequence[Target], shape: tuple[int, int]) -> "_Running":
        rows: dict[Target, np.memmap] = {t: new_array(folder / f"null_{t}.npy", shape, 0.0) for t in targets}
        covariances: dict[Target, Covariance] = {t: Covariance.empty(shape[1]) for t in targets}
        return cls(folder, covariances, 0.0, 0, 0, 0, rows)

    def add(self, rows: PairRows, kept_N: np.ndarray, place_N: np.ndarray, limit: float) -> None:
        """Take in a block.

        Args:
            rows: Its activations.
            kept_N: Which of its rows count.
            place_N: Each row's place among the null's, −1 for none.
            limit: Norm above which a row is left out.
        """
        kept = torch.from_numpy(kept_N).to(rows.base_ND.device)
        finite = kept & finite_rows(rows)
        used = finite & usual_rows(rows, limit)
        self.n_not_finite += int(kept.sum() - finite.sum())
        self.n_unusual += int(finite.sum() - used.sum())
        self.base_squares += float(target_rows(rows, "base", used).square().sum())
        places = place_N[used.cpu().numpy()]
        lost = place_N[(kept & ~used).cpu().numpy()]
        for target, null_ND in self.null_rows.items():
            found_ND = target_rows(rows, target, used)
            self.covariances[target] = self.covariances[target].merge(Covariance.of(found_ND))
            null_ND[places[places >= 0]] = found_ND[torch.from_numpy(places >= 0)].cpu().float().numpy()
            null_ND[lost[lost >= 0]] = np.nan

    def save(self) -> None:
        """Keep what was read so far."""
        self.n_units += 1
        tensors = {"base_squares": torch.tensor(self.base_squares, dtype=torch.float64)}
        for target, covariance in self.covariances.items():
            self.null_rows[target].flush()
            tensors |= {f"{target}.mean": covariance.mean_D, f"{target}.m2": covariance.m2_DD}
        n = next(iter(self.covariances.values())).n
        tensors["counts"] = torch.tensor([n, self.n_not_finite, self.n_unusual, self.n_units])
        with atomic_path(self.folder / "moments.safetensors") as temporary:
            temporary.write_bytes(save({k: v.contiguous() for k, v in tensors.items()}))

    def done(self) -> Moments:
        return Moments(self.covariances, self.base_squares, self.n_not_finite, self.n_unusual, self.null_rows)


def read_moments(
    source: ActivationSource, slots: Sequence[Slot], targets: Sequence[Target], kept_N: np.ndarray,
    null_tokens: np.ndarray, limits: Mapping[Slot, float], scratch: Path, advance: Callable[[float], None],
) -> dict[Slot, Moments]:  # fmt: skip
    """Moments of some slots in one pass; an interrupted one goes on where it stopped.

    Args:
        source: Where activations come from.
        slots: Which of its slots.
        targets: What is decomposed.
        kept_N: Which tokens count.
        null_tokens: Tokens that the null is drawn from, ascending; all of them kept.
        limits: Norm above which a slot's rows are left out.
        scratch: Folder for unfinished work.
        advance: Told the number of tokens read.
    """
    place_N = np.full(len(kept_N), -1)
    place_N[null_tokens] = np.arange(len(null_tokens))
    running = {s: _Running.opened(scratch / s.name, targets, source.width, len(null_tokens)) for s in slots}
    for number, blocks in enumerate(units_of([len(rows) for rows in source.block_tokens])):
        waiting = [s for s in slots if running[s].n_units <= number]
        for block in source.blocks(waiting, blocks) if waiting else ():
            for slot, rows in block.rows.items():
                running[slot].add(rows, kept_N[block.token_N], place_N[block.token_N], limits[slot])
        for slot in waiting:
            running[slot].save()
        advance(sum(len(source.block_tokens[b]) for b in blocks))
    return {slot: found.done() for slot, found in running.items()}
