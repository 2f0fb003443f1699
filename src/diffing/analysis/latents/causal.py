"""Causal control: what taking latents out, or putting them in, does to a model, beside random latents of equal size."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffing.analysis.bootstrap import ratio_interval
from diffing.analysis.context import RunContext
from diffing.analysis.latents.coding import CodedBlock
from diffing.analysis.latents.results import CausalRow
from diffing.analysis.latents.sites import Input
from diffing.analysis.latents.splicing import PairBatch, pair_batches
from diffing.analysis.losses import LossReader
from diffing.core.layers import Slot
from diffing.core.seeds import generator
from diffing.data.token_table import TokenTable
from diffing.dictionaries.codes import Codes
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.products import weighted_row_sums

_CHANGES = ("ablate", "add")
_NEAR = 8


@dataclass(frozen=True, eq=False)
class LatentSet:
    """Latents that are changed together.

    Args:
        name: claimed or random.
        number: Counts the random ones.
        latent_C: The latents.
        scale: By which what they contribute is multiplied: random sets are as large as the claimed one.
    """

    name: str
    number: int
    latent_C: np.ndarray
    scale: float = 1.0


def matched_sets(claimed_C: np.ndarray, energy_F: np.ndarray, n_sets: int, seed: int) -> list[LatentSet]:
    """Random sets of the same number of other live latents, each paired with a claimed one of similar energy.

    Args:
        claimed_C: The claimed latents.
        energy_F: Σ (a_j ‖d_j‖)² of each latent; 0 for dead ones.
        n_sets: Sets to draw.
        seed: Of the draw.
    """
    others = np.setdiff1d(np.flatnonzero(energy_F > 0), claimed_C)
    if len(others) < len(claimed_C):
        return []
    log_F = np.log(np.maximum(energy_F, 1e-300))
    sets = []
    for number in range(n_sets):
        rng, left, chosen = generator(seed, "random latents", number), others, []
        for latent in rng.permutation(claimed_C).tolist():
            nearest = np.argsort(np.abs(log_F[left] - log_F[latent]), kind="stable")[:_NEAR]
            pick = int(rng.choice(nearest))
            chosen.append(int(left[pick]))
            left = np.delete(left, pick)
        sets.append(LatentSet("random", number, np.sort(np.array(chosen))))
    return sets


def of_equal_size(sets: Sequence[LatentSet], dictionary: Dictionary, blocks: Iterable[CodedBlock]) -> list[LatentSet]:
    """The sets scaled so that all contribute vectors of the mean length of the first one's.

    Where the claimed latents are the largest of all, random ones are smaller; and latents that point the same way add
    up to more.

    Args:
        sets: The claimed set and random ones.
        dictionary: Whose latents they are.
        blocks: The tokens that the mean is over.
    """
    totals = np.zeros(len(sets))
    for block in blocks:
        totals += [float(contribution(dictionary, block.codes, s.latent_C).norm(dim=1).double().sum()) for s in sets]
    scales = np.divide(totals[0], totals, out=np.ones(len(sets)), where=totals > 0)
    return [replace(s, scale=float(scale)) for s, scale in zip(sets, scales, strict=True)]


def contribution(dictionary: Dictionary, codes: Codes, latent_C: np.ndarray) -> Tensor:
    """Σ_{j in the set} a_j d_j^ft at every token in raw units, (N, D)."""
    wanted_F = torch.zeros(codes.n_latents, dtype=torch.bool, device=codes.row_P.device)
    wanted_F[torch.from_numpy(latent_C).to(wanted_F.device)] = True
    hit_P = wanted_F[codes.latent_P]
    rows_FD = dictionary.decoder_FMD.detach()[:, -1].contiguous()
    made_ND = weighted_row_sums(rows_FD, codes.latent_P[hit_P], codes.row_P[hit_P], codes.value_P[hit_P], codes.n_rows)
    return made_ND / dictionary.scale_M[-1]


def causal_rows(
    context: RunContext, dictionary: Dictionary, kind: Input, slot: Slot, tokens: TokenTable, kept_N: np.ndarray,
    sets: Sequence[LatentSet], sequences: dict[str, list[int]], limit: float, done: Callable[[int], None],
) -> list[CausalRow]:  # fmt: skip
    """Every set taken out of the finetuned model (`ablate`) and put into the base (`add`), on every dataset."""
    rows: list[CausalRow] = []
    for dataset, chosen in sequences.items():
        found: dict[tuple[str, int], list[np.ndarray]] = {}
        sizes: dict[tuple[str, int], list[float]] = {}
        for batch in pair_batches(context, dictionary, kind, slot, tokens, kept_N, chosen, limit):
            for change in _CHANGES:
                _changed(context, dictionary, slot, batch, change, sets, found, sizes)
            done(sum(batch.batch.lengths))
        for (change, i), parts in found.items():
            rows.append(_row(dataset, change, sets[i], np.concatenate(parts, 1), sizes[change, i], context.seed))
    return rows


def _changed(
    context: RunContext, dictionary: Dictionary, slot: Slot, batch: PairBatch, change: str, sets: Sequence[LatentSet],
    found: dict[tuple[str, int], list[np.ndarray]], sizes: dict[tuple[str, int], list[float]],
) -> None:  # fmt: skip
    """Sums by sequence of one batch for every set: (effect, tokens, KL)."""
    model = 1 if change == "ablate" else 0
    reader = LossReader((context.pair.base, context.pair.finetuned)[model], batch.batch, slot.layer)
    own = reader.unchanged
    for i, latents in enumerate(sets):
        part_ND = latents.scale * contribution(dictionary, batch.codes, latents.latent_C)
        rows_ND = batch.kept(model) + (-part_ND if change == "ablate" else part_ND)
        new = reader.changed(batch.replaced(model, rows_ND))
        found.setdefault((change, i), []).append(np.stack([new.nll_B - own.nll_B, new.n_B, new.kl_B]))
        sizes.setdefault((change, i), []).extend(part_ND.norm(dim=1).double().cpu().tolist())


def _row(
    dataset: str, change: str, latents: LatentSet, sums_3B: np.ndarray, sizes: list[float], seed: int
) -> CausalRow:
    effect_B, n_B, kl_B = sums_3B
    interval = ratio_interval(effect_B, n_B, generator(seed, "causal", dataset, change))
    return CausalRow(
        dataset, change, latents.name, latents.number, len(latents.latent_C), int(n_B.sum()), interval.value,
        interval.low, interval.high, float(kl_B.sum() / n_B.sum()), float(np.mean(sizes)) if sizes else 0.0,
    )  # fmt: skip
