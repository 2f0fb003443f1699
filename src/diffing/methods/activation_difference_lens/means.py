"""One pass over both models: sums at every place and layer, in float64; no activations are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffing.activations.reading import comparable_sequences
from diffing.analysis.context import RunContext
from diffing.analysis.units import cut_into_units
from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.core.progress import bar
from diffing.core.seeds import generator
from diffing.data.batches import Batch, make_batch, pad_id, plan_batches
from diffing.methods.activation_difference_lens.places import Place, Visits, find_visits
from diffing.methods.activation_difference_lens.stored import stored_arrays
from diffing.models.capture import capture
from diffing.models.pair import ModelHandle, ModelPair

_MOST_UNITS = 32
_OTHERS = "kl, diff_mining, logit_amplification and perplexity_diff"
Sums = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Means:
    """What is known of every place P at every layer L; float64.

    Args:
        places: The places.
        layers: The layers.
        n_P: Documents that were counted.
        delta_PLD: Mean of δ = f − b.
        base_PLD: Mean of b.
        finetuned_PLD: Mean of f.
        null_RPLD: Difference of the base's means over two random halves of the documents, halved; R draws.
        squares_PL: Mean of ‖δ‖².
        norms: Means of ‖δ‖, ‖b‖ and ‖f‖ under `delta`, `base` and `finetuned`, (P, L) each.
        n_bad_P: Documents left out since an activation is not finite.
        n_prefixes_P: Different beginnings up to a place: what stands in a fixed template is one.
        token_ids: Ids of the tokens that stand at each place.
        n_tokens: Tokens that both models read.
        notes: Sentences on what was left out.
    """

    places: tuple[Place, ...]
    layers: tuple[int, ...]
    n_P: np.ndarray
    delta_PLD: np.ndarray
    base_PLD: np.ndarray
    finetuned_PLD: np.ndarray
    null_RPLD: np.ndarray
    squares_PL: np.ndarray
    norms: dict[str, np.ndarray]
    n_bad_P: np.ndarray
    n_prefixes_P: np.ndarray
    token_ids: tuple[np.ndarray, ...]
    n_tokens: int
    notes: tuple[str, ...]

    @property
    def norm_PL(self) -> np.ndarray:
        """‖δ̄‖."""
        return np.linalg.norm(self.delta_PLD, axis=-1)

    @property
    def relative_PL(self) -> np.ndarray:
        """‖δ̄‖ over the mean of ‖f‖; 0 where f is zero."""
        size_PL = self.norms["finetuned"]
        return np.divide(self.norm_PL, size_PL, out=np.zeros_like(size_PL), where=size_PL > 0)

    @property
    def chance_PL(self) -> np.ndarray:
        """What ‖δ̄‖ would be on average if each document's δ had a random sign."""
        return np.sqrt(self.squares_PL / self.n_P[:, None])

    @property
    def beyond_PL(self) -> np.ndarray:
        """Size by which places are compared: ‖δ̄‖ without what its error adds, over the mean of ‖f‖.

        ‖δ̄‖² is on average ‖μ‖² plus the squared standard error; a few loud documents would else come first. 0 where
        ‖δ̄‖ is at most twice what chance gives.
        """
        spare_P1 = np.maximum(self.n_P - 1, 1)[:, None]
        error_PL = np.where(self.n_P[:, None] > 1, (self.squares_PL - self.norm_PL**2) / spare_P1, 0.0)
        exact_PL = np.sqrt(np.maximum(self.norm_PL**2 - error_PL, 0.0))
        size_PL = self.norms["finetuned"]
        share_PL = np.divide(exact_PL, size_PL, out=np.zeros_like(size_PL), where=size_PL > 0)
        return np.where(self.norm_PL > 2 * self.chance_PL, share_PL, 0.0)

    def ranked(self, skip_first_tokens: int) -> list[int]:
        """Places that rankings are made of: no attention sinks, and not the fixed beginning of a template.

        Where over half of a place's documents begin alike its mean is that of a single state. All others, where no
        place is left.
        """
        varied_P = 2 * self.n_prefixes_P > self.n_P
        late = [
            p for p, place in enumerate(self.places) if place.kind == "reply" or place.position >= skip_first_tokens
        ]
        return [p for p in late if varied_P[p]] or late or list(range(len(self.places)))


def read_means(
    context: RunContext, layers: Sequence[int], n_positions: int, n_before_reply: int, n_draws: int
) -> Means:
    """Read what both models need to see of every document, and no more.

    Raises:
        UserError: The models differ in width, share no document's tokens, or give nothing finite.
    """
    pair, corpus = context.pair, context.corpus
    sequences, notes = comparable_sequences(corpus, pair)
    chosen = list(range(len(corpus.sequences))) if sequences is None else sequences
    cuts = not (pair.base.needs_mask or pair.finetuned.needs_mask)
    visits = find_visits(corpus, chosen, n_positions, n_before_reply, cuts)
    lengths = [len(visits.corpus.sequences[s].ids) for s in chosen]
    reader = _Reader(pair, visits, tuple(Slot(layer) for layer in layers), n_draws, context.seed)
    plan = plan_batches(lengths, context.batch_tokens)
    total: Sums = {}
    with bar("reading both models", sum(lengths), "tokens") as advance:
        for number, unit in enumerate(cut_into_units(plan, lengths, context.batch_tokens, _MOST_UNITS)):
            batches = [[chosen[i] for i in places] for places in unit]
            found = stored_arrays(_path(context.scratch, number), lambda batches=batches: reader.read(batches))
            total = {k: total[k] + v for k, v in found.items()} if total else found
            advance(sum(lengths[i] for places in unit for i in places))
    if not total["n_P"].any():
        raise UserError("All activations are NaN or infinite; check the weights, or try model.dtype=float32.")
    return _means(total, tuple(layers), visits, sum(lengths), (*notes, *visits.notes))


def _path(folder: Path, number: int) -> Path:
    return folder / f"means_{number:04d}.safetensors"


@dataclass(frozen=True)
class _Reader:
    """Sums of a pair over documents."""

    pair: ModelPair
    visits: Visits
    slots: tuple[Slot, ...]
    n_draws: int
    seed: int

    def read(self, batches: Sequence[Sequence[int]]) -> Sums:
        sums: Sums = {}
        for sequences in batches:
            batch = make_batch(self.visits.corpus, sequences, pad_id(self.pair.tokenizer))
            found = self._sums(batch)
            sums = {k: sums[k] + v for k, v in found.items()} if sums else found
        return sums

    def _sums(self, batch: Batch) -> Sums:
        where = [self.visits.of(s) for s in batch.sequences]
        row_M = torch.cat([torch.full((w.stop - w.start,), i) for i, w in enumerate(where)])
        position_M = torch.from_numpy(np.concatenate([self.visits.position_M[w] for w in where]))
        place_M = torch.from_numpy(np.concatenate([self.visits.place_M[w] for w in where]))
        sign_RM = torch.from_numpy(np.concatenate([self._signs(s) for s in batch.sequences], 1))[:, row_M]
        b_MLD, f_MLD = self._states(batch, row_M, position_M)
        d_MLD = f_MLD - b_MLD
        good_M = (torch.isfinite(d_MLD) & torch.isfinite(b_MLD)).flatten(1).all(1)
        bad_M = place_M[~good_M]
        b_MLD, f_MLD, d_MLD, place_M, sign_RM = (
            b_MLD[good_M], f_MLD[good_M], d_MLD[good_M], place_M[good_M], sign_RM[:, good_M],
        )  # fmt: skip

        def summed(values: Tensor, places: Tensor = place_M) -> np.ndarray:
            n_places = len(self.visits.places)
            empty = torch.zeros((n_places, *values.shape[1:]), dtype=torch.float64)
            return empty.index_add_(0, places, values.double()).numpy()

        return {
            "n_P": summed(torch.ones(len(place_M))),
            "n_bad_P": summed(torch.ones(len(bad_M)), bad_M),
            "delta_PLD": summed(d_MLD),
            "base_PLD": summed(b_MLD),
            "finetuned_PLD": summed(f_MLD),
            "squares_PL": summed(d_MLD.square().sum(-1)),
            "delta_norm_PL": summed(d_MLD.norm(dim=-1)),
            "base_norm_PL": summed(b_MLD.norm(dim=-1)),
            "finetuned_norm_PL": summed(f_MLD.norm(dim=-1)),
            "signs_RP": np.stack([summed(s) for s in sign_RM]),
            "signed_RPLD": np.stack([summed(s[:, None, None] * b_MLD) for s in sign_RM]),
        }

    def _states(self, batch: Batch, row_M: Tensor, position_M: Tensor) -> tuple[Tensor, Tensor]:
        """Both models' states at the visited tokens, (M, L, D), float64 on the CPU."""
        base, finetuned = self.pair.base, self.pair.finetuned
        b = self._picked(base, batch, row_M, position_M)
        f = b if finetuned is base else self._picked(finetuned, batch, row_M, position_M)
        if b.shape != f.shape:
            raise UserError(
                f"The two models differ in width ({b.shape[-1]} and {f.shape[-1]}), so that there is no difference of "
                f"activations to read; {_OTHERS} compare their outputs."
            )
        return b, f

    def _picked(self, handle: ModelHandle, batch: Batch, row_M: Tensor, position_M: Tensor) -> Tensor:
        found = capture(handle, batch.ids_BT, self.slots, batch.lengths)
        picked = [found[slot] for slot in self.slots]
        return torch.stack([x[row_M.to(x.device), position_M.to(x.device)].cpu().double() for x in picked], 1)

    def _signs(self, sequence: int) -> np.ndarray:
        """In which half the document falls in each draw, (R, 1)."""
        document = self.visits.corpus.sequences[sequence]
        rng = generator(self.seed, "halves", document.dataset, document.index)
        return rng.choice([-1.0, 1.0], size=(self.n_draws, 1))


def _means(total: Sums, layers: tuple[int, ...], visits: Visits, n_tokens: int, notes: tuple[str, ...]) -> Means:
    kept = np.flatnonzero(total["n_P"]).tolist()
    n_P = total["n_P"][kept]
    mean = {k: v[kept] / n_P.reshape(-1, *[1] * (v.ndim - 1)) for k, v in total.items() if k.split("_")[-1][0] == "P"}
    signs_RP, signed_RPLD = total["signs_RP"][:, kept], total["signed_RPLD"][:, kept]
    null_RPLD = (signed_RPLD - signs_RP[:, :, None, None] * mean["base_PLD"]) / n_P[:, None, None]
    n_bad = int(total["n_bad_P"].sum())
    said = (f"{n_bad} states at the places hold NaN or infinity in one of the models; left out.",) if n_bad else ()
    return Means(
        places=tuple(visits.places[i] for i in kept),
        layers=layers,
        n_P=n_P.astype(np.int64),
        delta_PLD=mean["delta_PLD"],
        base_PLD=mean["base_PLD"],
        finetuned_PLD=mean["finetuned_PLD"],
        null_RPLD=null_RPLD,
        squares_PL=mean["squares_PL"],
        norms={k: mean[f"{k}_norm_PL"] for k in ("delta", "base", "finetuned")},
        n_bad_P=total["n_bad_P"][kept].astype(np.int64),
        n_prefixes_P=np.array([visits.n_prefixes(i) for i in kept]),
        token_ids=tuple(visits.token_ids(i) for i in kept),
        n_tokens=n_tokens,
        notes=(*notes, *said),
    )
