"""A slice of the corpus under the base and under scaled changes: KL and ΔNLL of every sequence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.analysis.comparable import compared_tokens
from diffing.analysis.context import RunContext
from diffing.analysis.divergences import delta_nll, log_probs
from diffing.analysis.logit_rows import LogitRows
from diffing.data.batches import make_batch, pad_id, plan_batches
from diffing.data.token_table import TokenTable
from diffing.data.tokens import Corpus, TokenSequence

METRICS = ("kl", "delta_nll")
_ROWS = 64


def corpus_slice(corpus: Corpus, n_documents: int, n_tokens: int) -> Corpus:
    """The first tokens of some documents of each dataset, evenly spread.

    Args:
        corpus: All sequences that both models can read.
        n_documents: Per dataset.
        n_tokens: Of each.
    """
    taken: list[TokenSequence] = []
    for dataset in corpus.datasets:
        mine = [s for s in corpus.sequences if s.dataset == dataset]
        picks = np.unique(np.linspace(0, len(mine) - 1, min(n_documents, len(mine))).astype(int)) if mine else []
        taken += [_cut(mine[p], n_tokens) for p in picks]
    names = tuple(d for d in corpus.datasets if any(s.dataset == d for s in taken))
    return Corpus(names, tuple(taken), corpus.fingerprint, (), {d: corpus.n_documents[d] for d in names})


def _cut(s: TokenSequence, n: int) -> TokenSequence:
    return TokenSequence(s.dataset, s.index, s.ids[:n], s.roles[:n], s.is_template[:n], s.is_special[:n])


@dataclass(frozen=True, eq=False)
class Effect:
    """What one setting does to the slice.

    Args:
        sums: By metric, its sum over each sequence's kept tokens, shape (S,).
        counts: By metric, the number of those tokens.
        terms_V: Σ p·log(p/q) over kept tokens by shared id.
        squares_V: Of each sequence's terms, the squares, summed.
        n_bad: Kept tokens whose KL is not finite.
    """

    sums: Mapping[str, np.ndarray]
    counts: Mapping[str, np.ndarray]
    terms_V: np.ndarray
    squares_V: np.ndarray
    n_bad: int


class SliceReader:
    """Holds what the base's head is given on the slice, and compares settings with it.

    Args:
        context: Of the run.
        corpus: The slice.

    Raises:
        UserError: No token is left.
    """

    def __init__(self, context: RunContext, corpus: Corpus) -> None:
        tokens, pair = TokenTable.of(corpus), context.pair
        kept_N = compared_tokens(tokens, context)
        self.pair, self.corpus, self.n_tokens = pair, corpus, len(kept_N)
        self._kept = [torch.from_numpy(kept_N[tokens.rows_of(i)]) for i in range(len(corpus.sequences))]
        plan = plan_batches([len(s.ids) for s in corpus.sequences], context.batch_tokens)
        self._batches = [make_batch(corpus, indices, pad_id(context.tokenizer)) for indices in plan]
        with torch.no_grad():
            self._base = [LogitRows.of(pair.base, batch) for batch in self._batches]

    @torch.no_grad()
    def effect(self, done: Callable[[int], object] = lambda n: None) -> Effect:
        """The finetuned model as it is now beside the base; `done` is told the number of tokens read."""
        n = len(self.corpus.sequences)
        sums = {m: np.zeros(n) for m in METRICS}
        counts = {m: np.zeros(n) for m in METRICS}
        terms: np.ndarray | None = None
        squares: np.ndarray | None = None
        n_bad = 0
        for batch, base in zip(self._batches, self._base, strict=True):
            finetuned = LogitRows.of(self.pair.finetuned, batch)
            start = 0
            for sequence, length in zip(batch.sequences, batch.lengths, strict=True):
                found = self._sequence(base, finetuned, sequence, start, length)
                for metric, values in (("kl", found.kl), ("delta_nll", found.delta_nll)):
                    sums[metric][sequence], counts[metric][sequence] = values.sum(), len(values)
                n_bad += int((~np.isfinite(found.kl)).sum())
                terms = found.terms_V if terms is None else terms + found.terms_V
                squares = found.terms_V**2 if squares is None else squares + found.terms_V**2
                start += length
                done(length)
        assert terms is not None
        assert squares is not None
        return Effect(sums, counts, terms, squares, n_bad)

    def _sequence(self, base: LogitRows, finetuned: LogitRows, sequence: int, start: int, length: int) -> "_Sequence":
        ids = self.pair.vocabulary.shared_ids
        kept_T, ids_T = self._kept[sequence], torch.from_numpy(self.corpus.sequences[sequence].ids.astype(np.int64))
        kl, nll = [np.zeros(0)], [np.zeros(0)]
        terms: Tensor | None = None
        for first in range(0, length, _ROWS):
            last = min(first + _ROWS, length)
            logits_f = finetuned.logits(start + first, start + last)
            logits_b = base.logits(start + first, start + last).to(logits_f.device)
            on_device = None if ids is None else ids.to(logits_f.device)
            both = log_probs(logits_f, logits_b, 1.0, on_device)
            terms_NV = both.finetuned_NV.exp() * (both.finetuned_NV - both.base_NV)
            keep_N = kept_T[first:last].to(logits_f.device)
            kl.append(terms_NV.sum(-1)[keep_N].double().cpu().numpy())
            here = terms_NV[keep_N].double().sum(0).cpu()
            terms = here if terms is None else terms + here
            next_N = ids_T[first + 1 : last + 1].to(logits_f.device)
            m = len(next_N)
            targets_N = next_N if on_device is None else torch.searchsorted(on_device, next_N)
            moved_N = delta_nll(both.finetuned_NV[:m], both.base_NV[:m], targets_N)
            nll.append(moved_N[keep_N[:m]].double().cpu().numpy())
        assert terms is not None
        return _Sequence(np.concatenate(kl), np.concatenate(nll), terms.numpy())


@dataclass(frozen=True, eq=False)
class _Sequence:
    kl: np.ndarray
    delta_nll: np.ndarray
    terms_V: np.ndarray
