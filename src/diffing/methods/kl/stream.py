"""Reads the corpus through both models once and yields per-token quantities, batch by batch.

Hidden states of whole batches, then head and divergence over blocks of rows: [batch, time, vocab] never exists.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from diffing.analysis.divergences import delta_nll, divergences, log_probs
from diffing.analysis.logit_rows import LogitRows, paired_blocks
from diffing.data.batches import Batch
from diffing.models.pair import ModelPair


@dataclass(frozen=True)
class TokenColumns:
    """Per-token results of one sequence, in order of position; every array has T rows."""

    values: dict[str, np.ndarray]
    risen_ids_TK: np.ndarray
    risen_change_TK: np.ndarray
    fallen_ids_TK: np.ndarray
    fallen_change_TK: np.ndarray


@dataclass
class VocabularySums:
    """Sums over the kept tokens of one sequence, per vocabulary id: p·log(p/q) and p − q."""

    kl_terms_V: Tensor
    change_V: Tensor


@dataclass(frozen=True)
class SequenceResult:
    """One sequence read through both models."""

    sequence: int
    tokens: TokenColumns
    sums: VocabularySums


FLOATS = ("kl", "reverse_kl", "js", "delta_nll", "entropy_ft", "entropy_base", "mass_cut_ft", "mass_cut_base")


@dataclass(frozen=True)
class Reader:
    """Computes the per-token columns of sequences for one pair.

    Args:
        pair: Both models.
        temperature: Divides the logits.
        top_k: Tokens kept per position among those that rose and fell most.
        is_kept: Given a sequence index, which positions count in the vocabulary sums.
    """

    pair: ModelPair
    temperature: float
    top_k: int
    is_kept: Callable[[int], np.ndarray]

    @torch.no_grad()
    def read(self, batch: Batch) -> Iterator[SequenceResult]:
        """Results of the batch's sequences, in the batch's order."""
        finetuned, base = LogitRows.of(self.pair.finetuned, batch), LogitRows.of(self.pair.base, batch)
        ids_N = torch.cat([row[:length] for row, length in zip(batch.ids_BT, batch.lengths, strict=True)])
        kept_N = torch.cat([torch.from_numpy(self.is_kept(s)) for s in batch.sequences])
        ends = list(accumulate(batch.lengths))
        parts: list[tuple[dict[str, np.ndarray], Tensor, Tensor]] = []
        for row, start, stop, logits_f, logits_b in paired_blocks(finetuned, base, batch.lengths):
            end = ends[row]
            next_ids = ids_N[start + 1 : min(stop + 1, end)].to(logits_f.device)
            parts.append(self._rows(logits_f, logits_b, next_ids, kept_N[start:stop]))
            if stop == end:
                yield _sequence_result(batch.sequences[row], parts, batch.lengths[row])
                parts = []

    def _rows(
        self, logits_f: Tensor, logits_b: Tensor, next_ids: Tensor, kept: Tensor
    ) -> tuple[dict[str, np.ndarray], Tensor, Tensor]:
        """Columns of a few rows, and their kept rows' sums per shared id (float32 over few rows, then float64)."""
        ids = self.pair.vocabulary.shared_ids
        ids = None if ids is None else ids.to(logits_f.device)
        both = log_probs(logits_f, logits_b, self.temperature, ids)
        lp, lq = both.finetuned_NV, both.base_NV
        found, terms, change = divergences(lp, lq)
        n_next = len(next_ids)
        targets = next_ids if ids is None else torch.searchsorted(ids, next_ids)
        nll = torch.full((len(lp),), float("nan"), device=lp.device)
        nll[:n_next] = delta_nll(lp[:n_next], lq[:n_next], targets)
        zeros = torch.zeros(len(lp), device=lp.device)
        columns = {
            "kl": found.kl_N,
            "reverse_kl": found.reverse_kl_N,
            "js": found.js_N,
            "delta_nll": nll,
            "entropy_ft": found.entropy_finetuned_N,
            "entropy_base": found.entropy_base_N,
            "mass_cut_ft": zeros if both.mass_cut_finetuned_N is None else both.mass_cut_finetuned_N,
            "mass_cut_base": zeros if both.mass_cut_base_N is None else both.mass_cut_base_N,
            "top_ft": _original(found.top_finetuned_N, ids),
            "top_base": _original(found.top_base_N, ids),
        }
        columns |= _extremes(change, ids, self.top_k)
        keep = kept.to(lp.device)
        if not bool(keep.all()):
            terms, change = terms[keep], change[keep]
        sums = terms.sum(0).double().cpu(), change.sum(0).double().cpu()
        return {k: v.cpu().numpy() for k, v in columns.items()}, *sums


def _sequence_result(
    sequence: int, parts: list[tuple[dict[str, np.ndarray], Tensor, Tensor]], length: int
) -> SequenceResult:
    joined = {name: np.concatenate([columns[name] for columns, _, _ in parts]) for name in parts[0][0]}
    terms_V, change_V = parts[0][1].clone(), parts[0][2].clone()
    for _, terms, change in parts[1:]:
        terms_V += terms
        change_V += change
    return SequenceResult(sequence, _columns(joined, length), VocabularySums(terms_V, change_V))


def _original(index_N: Tensor, ids: Tensor | None) -> Tensor:
    return index_N if ids is None else ids[index_N]


def _extremes(change_NV: Tensor, ids: Tensor | None, k: int) -> dict[str, Tensor]:
    k = min(k, change_NV.shape[-1])
    risen, fallen = change_NV.topk(k, -1), change_NV.topk(k, -1, largest=False)
    return {
        "risen_ids": _original(risen.indices, ids),
        "risen_change": risen.values,
        "fallen_ids": _original(fallen.indices, ids),
        "fallen_change": fallen.values,
    }


def _columns(joined: dict[str, np.ndarray], length: int) -> TokenColumns:
    values = {k: joined[k] for k in (*FLOATS, "top_ft", "top_base")}
    assert all(len(v) == length for v in values.values())
    return TokenColumns(
        values, joined["risen_ids"], joined["risen_change"], joined["fallen_ids"], joined["fallen_change"]
    )
