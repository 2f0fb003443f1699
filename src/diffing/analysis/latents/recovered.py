"""Loss recovered: what the models lose when their activations are replaced by what the dictionary makes of them."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from diffing.analysis.context import RunContext
from diffing.analysis.latents.results import SplicedRow
from diffing.analysis.latents.sites import Input
from diffing.analysis.latents.splicing import PairBatch, pair_batches
from diffing.analysis.losses import LossReader
from diffing.core.layers import Slot
from diffing.data.token_table import TokenTable
from diffing.dictionaries.dictionary import Dictionary

_MODELS = ("base", "finetuned")


def spliced_rows(
    context: RunContext, dictionary: Dictionary, kind: Input, slot: Slot, tokens: TokenTable, kept_N: np.ndarray,
    mean_2D: Tensor, sequences: dict[str, list[int]], limit: float, done: Callable[[int], None],
) -> list[SplicedRow]:  # fmt: skip
    """Losses of each model and dataset: as it is, spliced, and with the mean in every place.

    A dictionary of a pair replaces each model's own states. One of the difference replaces the finetuned model's by the
    base's plus the reconstructed difference, and for the mean by the base's plus the mean difference.
    """
    rows: list[SplicedRow] = []
    for dataset, chosen in sequences.items():
        sums = {m: np.zeros(4) for m in _used(kind)}
        for batch in pair_batches(context, dictionary, kind, slot, tokens, kept_N, chosen, limit):
            for m in _used(kind):
                handle = (context.pair.base, context.pair.finetuned)[m]
                reader = LossReader(handle, batch.batch, slot.layer)
                own = reader.unchanged
                spliced = reader.changed(batch.replaced(m, _spliced(dictionary, kind, batch, m)))
                mean = reader.changed(batch.replaced(m, _mean(kind, batch, mean_2D, m)))
                nlls = (float(x.nll_B.sum()) for x in (own, spliced, mean))
                sums[m] += np.array([float(own.n_B.sum()), *nlls])
            done(sum(batch.batch.lengths))
        rows += [_row(dataset, _MODELS[m], total) for m, total in sums.items()]
    return rows


def _used(kind: Input) -> Sequence[int]:
    return (0, 1) if kind == "pair" else (1,)


def _spliced(dictionary: Dictionary, kind: Input, batch: PairBatch, model: int) -> Tensor:
    made_NMD = dictionary.raw(batch.made_NMD)
    return made_NMD[:, model] if kind == "pair" else batch.kept(0) + made_NMD[:, 0]


def _mean(kind: Input, batch: PairBatch, mean_2D: Tensor, model: int) -> Tensor:
    states_ND = batch.kept(model)
    if kind == "pair":
        return mean_2D[model].to(states_ND.device).expand_as(states_ND)
    return batch.kept(0) + (mean_2D[1] - mean_2D[0]).to(states_ND.device)


def _row(dataset: str, model: str, total: np.ndarray) -> SplicedRow:
    n, own, spliced, mean = total.tolist()
    gap = mean - own
    recovered = (mean - spliced) / gap if abs(gap) > 1e-6 * n else None
    return SplicedRow(dataset, model, int(n), own / n, spliced / n, mean / n, recovered)
