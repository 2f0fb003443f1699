"""Reads the corpus through both models once and yields per-token quantities, batch by batch.

Hidden states of whole batches, then head and divergence over blocks of rows: [batch, time, vocab] never exists.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.analysis.divergences import delta_nll, divergences, log_probs
from diffing.data.batches import Batch
from diffing.data.tokens import TokenSequence
from diffing.models.pair import ModelHandle, ModelPair

_HEAD_ROWS = {"cpu": 256}
_ROWS = {"cpu": 16}
_GPU_ROWS = 512


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
        base, finetuned = Rows.of(self.pair.base, batch), Rows.of(self.pair.finetuned, batch)
        for row, (sequence, length) in enumerate(zip(batch.sequences, batch.lengths, strict=True)):
            ids_T = batch.ids_BT[row, :length]
            yield self._sequence(sequence, ids_T, base, finetuned, row)

    def _sequence(self, sequence: int, ids_T: Tensor, base: "Rows", finetuned: "Rows", row: int) -> SequenceResult:
        length = len(ids_T)
        columns: dict[str, list[np.ndarray]] = {}
        kept_T = torch.from_numpy(self.is_kept(sequence))
        sums: VocabularySums | None = None
        step = _HEAD_ROWS.get(finetuned.device.type, _GPU_ROWS)
        for start in range(0, length, step):
            stop = min(start + step, length)
            block_f, block_b = finetuned.logits(row, start, stop), base.logits(row, start, stop)
            block_b = block_b.to(block_f.device)
            inner = _ROWS.get(block_f.device.type, _GPU_ROWS)
            for i in range(0, stop - start, inner):
                j = min(i + inner, stop - start)
                part = slice(start + i, start + j)
                next_ids = ids_T[part.start + 1 : part.stop + 1].to(block_f.device)
                found, terms_V, change_V = self._rows(block_f[i:j], block_b[i:j], next_ids, kept_T[part])
                for name, value in found.items():
                    columns.setdefault(name, []).append(value)
                if sums is None:
                    sums = VocabularySums(terms_V, change_V)
                else:
                    sums.kl_terms_V += terms_V
                    sums.change_V += change_V
        assert sums is not None
        joined = {k: np.concatenate(v) for k, v in columns.items()}
        return SequenceResult(sequence, _columns(joined, length), sums)

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


@dataclass(frozen=True)
class Rows:
    """Logits of any stretch of a batch's rows, from hidden states where the head is known, else from a forward."""

    handle: ModelHandle
    hidden_BTD: Tensor | None
    logits_BTV: Tensor | None

    @classmethod
    def of(cls, handle: ModelHandle, batch: Batch) -> "Rows":
        """Run the model over the batch, up to the head where possible."""
        with handle.active():
            if handle.transform is None:
                return cls(handle, None, handle.forward_logits(batch.ids_BT, batch.lengths))
            return cls(handle, handle.final_hidden(batch.ids_BT, batch.lengths), None)

    @property
    def device(self) -> torch.device:
        """Where the rows lie."""
        held = self.hidden_BTD if self.hidden_BTD is not None else self.logits_BTV
        assert held is not None
        return held.device

    def logits(self, row: int, start: int, stop: int) -> Tensor:
        """Float32 logits of positions `start` to `stop` of one row, [N, V]."""
        if self.logits_BTV is not None:
            return self.logits_BTV[row, start:stop].float()
        assert self.hidden_BTD is not None
        with self.handle.active():
            return self.handle.logits(self.hidden_BTD[row, start:stop])


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


def kept_positions(sequence: TokenSequence, bos_id: int | None, skip_template: bool) -> np.ndarray:
    """Which positions of a sequence count: not a leading BOS, and not template tokens when these are left out."""
    kept = np.ones(len(sequence.ids), dtype=bool)
    if bos_id is not None and len(sequence.ids) and sequence.ids[0] == bos_id and sequence.is_special[0]:
        kept[0] = sequence.is_template[0]
    if skip_template:
        kept &= ~sequence.is_template
    return kept
