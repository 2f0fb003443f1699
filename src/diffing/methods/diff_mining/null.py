"""Occurrence in other runs on the same base and text, and how far this run's is above it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load_file

from diffing.core.errors import UserError
from diffing.core.result import Result
from diffing.methods.diff_mining.config import DiffMiningConfig
from diffing.methods.diff_mining.gather import ALL, Gathered, Occurrence
from diffing.methods.diff_mining.inputs import TENSORS, null_results
from diffing.models.pair import ModelPair

_LEAST_PERCENTILE = 99
_SAME = ("top_k", "floor", "layer")


@dataclass(frozen=True, eq=False)
class NullCounts:
    """Occurrence in each null run, by dataset and kind; `datasets` are those whose text all of them read too."""

    runs: tuple[Mapping[tuple[str, bool], Occurrence], ...]
    datasets: tuple[str, ...]

    def of(self, dataset: str, is_merged: bool) -> list[Occurrence]:
        """Occurrence in each run, over a dataset or all common ones; empty where they did not read it."""
        wanted = self.common(dataset)
        return [_pooled([run[d, is_merged] for d in wanted]) for run in self.runs] if wanted else []

    def common(self, dataset: str) -> tuple[str, ...]:
        """The datasets that a comparison on `dataset` is made over."""
        return self.datasets if dataset == ALL else tuple(d for d in self.datasets if d == dataset)


@dataclass(frozen=True, eq=False)
class Excess:
    """`null_X`: mean share over the null runs; `z_X`: how far this run is above it; NaN where unknown."""

    null_X: np.ndarray
    z_X: np.ndarray


def _pooled(parts: Sequence[Occurrence]) -> Occurrence:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def excess(own: Occurrence, nulls: Sequence[Occurrence]) -> Excess:
    """z = (share − mean null share) / (s.e. + s₀), s.e. = √(var + mean null var + variance between null runs).

    The variances are squares of standard errors over documents; that between runs counts from two runs on. s₀ is the
    99th percentile of s.e. over the tokens that occur: without it, tokens lead that are counted once in every document,
    as at its first position, and hardly vary. A token that no run has among its K largest has z = 0.

    Source: Tusher, Tibshirani and Chu, Significance analysis of microarrays (2001), for s₀.
    """
    shares_RX = np.stack([n.share_X for n in nulls])
    within_X = np.mean([n.stderr_X**2 for n in nulls], axis=0)
    between_X = shares_RX.var(0, ddof=1) if len(nulls) > 1 else 0.0
    gap_X = own.share_X - shares_RX.mean(0)
    error_X = np.sqrt(own.stderr_X**2 + within_X + between_X)
    occurs_X = (own.count_X > 0) | (shares_RX > 0).any(0)
    least = np.percentile(error_X[occurs_X], _LEAST_PERCENTILE) if occurs_X.any() else 0.0
    scale_X = error_X + least
    z_X = np.divide(gap_X, scale_X, out=np.zeros_like(gap_X), where=occurs_X & (scale_X != 0))
    return Excess(shares_RX.mean(0), z_X)


def counts_of(data: Gathered) -> dict[str, np.ndarray]:
    """What other runs need of this one, as tensors by name."""
    found = {"token_ids": data.ids_V.astype(np.int64)}
    for dataset in data.datasets:
        for is_merged, kind in ((False, "single"), (True, "merged")):
            own = data.occurrence([dataset], is_merged)
            found[f"{dataset}/{kind}/largest"] = own.count_X
            found[f"{dataset}/{kind}/squares"] = own.squares_X
    return found


def text_facts(data: Gathered) -> dict[str, dict[str, object]]:
    """Of each dataset what `read_null_runs` needs to know."""
    return {
        name: {
            "text": data.text_digest(name),
            "n_positions": int(data.n_positions_S[data.rows_of(name)].sum()),
            "n_documents": int(data.n_documents_S[data.rows_of(name)].sum()),
        }
        for name in data.datasets
    }


def read_null_runs(config: DiffMiningConfig, data: Gathered, pair: ModelPair) -> NullCounts | None:
    """The runs that `null_runs` names; None where it names none.

    Args:
        config: The options.
        data: This run's counts.
        pair: This run's pair.

    Raises:
        UserError: One is of this very pair, was made with other options, on another base or vocabulary, or on other
            text altogether.
    """
    results = null_results(config)
    if not results:
        return None
    own = text_facts(data)
    for result in results:
        _refuse_other(config, result, pair)
    facts = [r.manifest["facts"]["datasets"] for r in results]
    common = tuple(d for d in own if all(d in f and f[d]["text"] == own[d]["text"] for f in facts))
    if not common:
        raise UserError(
            f"The null runs read none of the text of this one ({', '.join(own)}); give all of them the same data and "
            "seed."
        )
    return NullCounts(tuple(_counts(r, data, common) for r in results), common)


def _refuse_other(config: DiffMiningConfig, result: Result, pair: ModelPair) -> None:
    for name in _SAME:
        theirs, ours = result.manifest["config"]["diffing"]["method"][name], getattr(config, name)
        if theirs != ours:
            raise UserError(
                f"Null run {result.folder} has diffing.method.{name}={theirs}, this one {ours}; use the same for both."
            )
    about = result.manifest["pair"]
    if about["fingerprint"] == pair.fingerprint:
        raise UserError(f"Null run {result.folder} is of this very pair; name runs of other finetuned models.")
    if about["facts"]["base"]["content_hash"] != pair.facts["base"]["content_hash"]:
        raise UserError(
            f"Null run {result.folder} is of another base model ({about['base_id']}); name runs on "
            "the base of this pair."
        )


def _counts(result: Result, data: Gathered, common: Sequence[str]) -> dict[tuple[str, bool], Occurrence]:
    arrays = load_file(result.path(TENSORS))
    if not np.array_equal(arrays["token_ids"], data.ids_V):
        raise UserError(
            f"Null run {result.folder} compared other vocabulary tokens than this pair shares; name runs of models "
            "with the same tokenizer."
        )
    found = {}
    for dataset in common:
        facts = result.manifest["facts"]["datasets"][dataset]
        for is_merged, kind in ((False, "single"), (True, "merged")):
            count, squares = (arrays[f"{dataset}/{kind}/{part}"] for part in ("largest", "squares"))
            found[dataset, is_merged] = Occurrence(count, squares, facts["n_positions"], facts["n_documents"])
    return found
