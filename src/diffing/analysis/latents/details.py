"""The second pass: values around the examples, what telling latents do at each token, and which go together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffing.activations.rows import SlotRows
from diffing.analysis.latents.coding import CodedBlock, coded_blocks
from diffing.analysis.latents.sites import Input
from diffing.analysis.top_examples import Ranked
from diffing.analysis.windows import windows
from diffing.data.token_table import TokenTable
from diffing.dictionaries.dictionary import Dictionary


@dataclass(frozen=True, eq=False)
class Details:
    """What the second pass tells.

    Args:
        values: For each example an activation at every token of its window, NaN at tokens that are not kept.
        score_N: Σ_j weight_j · score of latent j at every token; NaN where it is not kept.
        n_both_CC: Tokens at which two of the chosen latents are both active.
    """

    values: Sequence[np.ndarray]
    score_N: np.ndarray
    n_both_CC: np.ndarray


def read_details(
    dictionary: Dictionary, rows: SlotRows, kind: Input, kept_N: np.ndarray, tokens: TokenTable, examples: Ranked,
    context: tuple[int, int], weight_F: np.ndarray, chosen_C: np.ndarray,
) -> Details:  # fmt: skip
    """One pass over all kept tokens.

    Args:
        dictionary: Trained.
        rows: The activations.
        kind: How the dictionary takes them.
        kept_N: Kept tokens.
        tokens: The corpus.
        examples: Where latents are strong.
        context: Tokens before and after.
        weight_F: By which the scores of latents enter `score_N`.
        chosen_C: Latents whose co-activation is counted.
    """
    start_M, stop_M = windows(tokens, examples.row, *context)
    values = [np.full(stop - start, np.nan) for start, stop in zip(start_M, stop_M, strict=True)]
    by_sequence = _by_sequence(examples.sequence)
    score_N = np.full(len(tokens), np.nan)
    n_both_CC = np.zeros((len(chosen_C), len(chosen_C)), dtype=np.int64)
    scale_F = dictionary.score_scale_F().double().cpu().numpy() * weight_F
    place_F = np.full(dictionary.spec.n_latents, -1)
    place_F[chosen_C] = np.arange(len(chosen_C))
    for block in coded_blocks(dictionary, rows, kind, kept_N, "reading examples"):
        codes = _Found.of(block)
        score_N[block.token_N] = np.bincount(
            codes.row_P, weights=codes.value_P * scale_F[codes.latent_P], minlength=len(block.token_N)
        )
        n_both_CC += _both(codes, place_F, len(chosen_C), len(block.token_N))
        wanted = np.concatenate(
            [by_sequence[s] for s in np.unique(tokens.sequence_N[block.token_N]).tolist() if s in by_sequence]
            or [np.empty(0, dtype=np.int64)]
        )
        _fill(values, wanted, examples.unit, start_M, stop_M, codes, block.token_N)
    return Details(values, score_N, n_both_CC)


@dataclass(frozen=True, eq=False)
class _Found:
    """Codes of a block as NumPy arrays; `key_P` is sorted: latent, then row."""

    row_P: np.ndarray
    latent_P: np.ndarray
    value_P: np.ndarray
    order_P: np.ndarray
    key_P: np.ndarray
    n_rows: int

    @classmethod
    def of(cls, block: CodedBlock) -> "_Found":
        row_P, latent_P = block.codes.row_P.cpu().numpy(), block.codes.latent_P.cpu().numpy()
        key_P = latent_P.astype(np.int64) * max(1, len(block.token_N)) + row_P
        order_P = np.argsort(key_P, kind="stable")
        value_P = block.codes.value_P.double().cpu().numpy()
        return cls(row_P, latent_P, value_P, order_P, key_P[order_P], len(block.token_N))


def _by_sequence(sequence_M: np.ndarray) -> dict[int, np.ndarray]:
    """Examples of each sequence."""
    if not len(sequence_M):
        return {}
    order = np.argsort(sequence_M, kind="stable")
    found, starts = np.unique(sequence_M[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, starts[1:]), strict=True))


def _fill(
    values: Sequence[np.ndarray], wanted: np.ndarray, unit_M: np.ndarray, start_M: np.ndarray, stop_M: np.ndarray,
    codes: _Found, token_N: np.ndarray,
) -> None:  # fmt: skip
    """Write the activations of the wanted examples' latents at their windows' tokens."""
    order = np.argsort(token_N, kind="stable")
    ascending = token_N[order]
    for i in wanted.tolist():
        here = slice(*np.searchsorted(ascending, (start_M[i], stop_M[i])).tolist())
        rows = order[here]
        key = int(unit_M[i]) * max(1, codes.n_rows) + rows
        at = np.searchsorted(codes.key_P, key)
        at_safe = np.minimum(at, max(0, len(codes.key_P) - 1))
        hit = (at < len(codes.key_P)) & (codes.key_P[at_safe] == key) if len(codes.key_P) else np.zeros(len(key), bool)
        found = np.zeros(len(key))
        found[hit] = codes.value_P[codes.order_P[at_safe[hit]]]
        values[i][token_N[rows] - start_M[i]] = found


def _both(codes: _Found, place_F: np.ndarray, n_chosen: int, n_rows: int) -> np.ndarray:
    """Tokens at which two chosen latents are both active, (C, C)."""
    is_chosen = place_F[codes.latent_P] >= 0
    active_NC = np.zeros((n_rows, n_chosen), dtype=np.float32)
    active_NC[codes.row_P[is_chosen], place_F[codes.latent_P[is_chosen]]] = 1
    return np.rint(active_NC.T @ active_NC).astype(np.int64)
