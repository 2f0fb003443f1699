"""The spectrum that chance gives: coordinates of the data made independent of each other.

For every coordinate the documents are put in an order of its own, end to end, so that each value is used once: the
coordinate keeps its values and their order within a document, and loses what it shares with other coordinates.
Documents may differ in length. For uncentred spectra each document's values of a coordinate also get a random sign:
else the mean, which no order of documents changes, would be part of the null. With one document nothing can be
permuted, the null is the data, and nothing exceeds it.

Sources: Horn, A rationale and test for the number of factors (1965); Buja and Eyuboglu, Remarks on parallel analysis
(1992).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.core.progress import Advance
from diffing.core.seeds import generator
from diffing.data.token_table import TokenTable
from diffing.methods.pca.config import Centring
from diffing.methods.pca.spectrum import eigenvalues

_BYTES = 2**29
_PERCENTILE = 95
_MARGIN = 1e-5
_LEAST_DOCUMENTS = 2


@dataclass(frozen=True, eq=False)
class NullSpectra:
    """95th percentiles of the ordered null eigenvalues, as shares of the total.

    Args:
        shares: By centring, shape (K,).
        n_tokens: Tokens they were drawn from.
        n_documents: Documents of these.
    """

    shares: dict[Centring, np.ndarray]
    n_tokens: int
    n_documents: int


def null_tokens(tokens: TokenTable, kept_N: np.ndarray, limit: int, width: int, seed: int) -> np.ndarray:
    """Kept tokens of documents in random order until `limit`, or what 512 MiB hold, is reached; ascending rows."""
    limit = max(1, min(limit, _BYTES // (8 * width)))
    counts_S = np.bincount(tokens.sequence_N[kept_N], minlength=tokens.n_sequences)
    order = generator(seed, "pca", "null documents").permutation(tokens.n_sequences)
    order = order[counts_S[order] > 0]
    n = max(1, int(np.searchsorted(np.cumsum(counts_S[order]), limit, side="right")))
    return np.flatnonzero(kept_N & np.isin(tokens.sequence_N, order[:n]))[:limit]


def null_spectra(
    rows_ND: np.ndarray, sequence_N: np.ndarray, n_draws: int, seed: int, name: str, advance: Advance
) -> NullSpectra:
    """Percentiles over draws of the null; of 20 draws the largest, so that chance exceeds it in 1 of 21 cases.

    Args:
        rows_ND: Rows of whole documents, one after the other; those that are not finite are left out.
        sequence_N: The document of each row.
        n_draws: Draws.
        seed: With `name` determines them.
        name: What the rows are.
        advance: Told each draw.
    """
    known_N = ~np.isnan(rows_ND).any(1)
    rows_DN = np.ascontiguousarray(rows_ND[known_N].T, dtype=np.float64)
    _, starts_S, lengths_S = np.unique(sequence_N[known_N], return_index=True, return_counts=True)
    drawn: dict[Centring, list[np.ndarray]] = {"centred": [], "uncentred": []}
    for draw in range(n_draws):
        rng = generator(seed, "pca", "null", name, draw)
        centred_DD, uncentred_DD = _draw(rows_DN, starts_S, lengths_S, rng)
        drawn["centred"].append(_shares(centred_DD))
        drawn["uncentred"].append(_shares(uncentred_DD))
        advance()
    shares: dict[Centring, np.ndarray] = {
        centring: np.percentile(np.stack(found), _PERCENTILE, axis=0, method="higher")
        for centring, found in drawn.items()
    }
    return NullSpectra(shares, rows_DN.shape[1], len(starts_S))


def above_null(values_K: np.ndarray, null_K: np.ndarray, n_documents: int) -> np.ndarray:
    """Which eigenvalues exceed the null's at their rank by more than rounding; none with fewer than two documents."""
    return (values_K > null_K * (1 + _MARGIN)) & (values_K > 0) & (n_documents >= _LEAST_DOCUMENTS)


def _draw(
    rows_DN: np.ndarray, starts_S: np.ndarray, lengths_S: np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """The null's covariance, and E[x xᵀ] under random signs."""
    width, n = rows_DN.shape
    drawn_DN, signs_DN = np.empty((width, n)), np.empty((width, n), dtype=np.int8)
    places_N = np.arange(n)
    for d in range(width):
        order = rng.permutation(len(starts_S))
        lengths = lengths_S[order]
        shift = starts_S[order] - (np.cumsum(lengths) - lengths)
        drawn_DN[d] = rows_DN[d, places_N + np.repeat(shift, lengths)]
        signs_DN[d] = np.repeat(2 * rng.integers(0, 2, len(order), dtype=np.int8) - 1, lengths)
    x_DN = torch.from_numpy(drawn_DN)
    mean_D1 = x_DN.mean(1, keepdim=True) if n else x_DN.new_zeros(width, 1)
    x_DN.sub_(mean_D1)
    centred_DD = x_DN @ x_DN.T / max(n, 1)
    x_DN.add_(mean_D1).mul_(torch.from_numpy(signs_DN))
    return centred_DD, x_DN @ x_DN.T / max(n, 1)


def _shares(matrix_DD: Tensor) -> np.ndarray:
    total = float(matrix_DD.trace())
    values = eigenvalues(matrix_DD)
    return (values / total if total > 0 else torch.zeros_like(values)).numpy()
