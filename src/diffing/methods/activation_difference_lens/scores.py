"""The ranking of tokens: what the mean differences say and the base's means and random directions do not.

At every ranked place a token's excess is max(0, log((p + ε)/(q + ε))). p is its probability in the patchscope of δ̄,
where it is among the likeliest of every prompt, else 0; q the larger of what b̄ and random directions give it. The score
is the mean over places and layers. Where the logit lens reads alone, p and q are its readings of δ̄ and b̄. For the null,
half the difference of the base's means over two random halves of the documents stands in δ̄'s place.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from diffing.analysis.lenses import has_lens, logit_lens
from diffing.core.tables import TokenScoreRow, table_of
from diffing.methods.activation_difference_lens.patchscopes import Said
from diffing.methods.activation_difference_lens.readouts import Vector, at_mean_square_one, reader_of
from diffing.models.pair import ModelPair

FLOOR = 1e-3
Key = tuple[int, int]


@dataclass
class TokenScores:
    """Sums of excesses over places.

    Args:
        size: Ids of the reading model's vocabulary.
        n_draws: Draws of the null.
    """

    size: int
    n_draws: int
    n_layers: int = 0
    total_V: np.ndarray = field(init=False)
    null_RV: np.ndarray = field(init=False)
    draws: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.total_V, self.null_RV = np.zeros(self.size), np.zeros((self.n_draws, self.size))

    def add(self, vector: Vector, p_V: np.ndarray, q_V: np.ndarray) -> None:
        """One place's readings."""
        excess_V = np.log((p_V + FLOOR) / (q_V + FLOOR)).clip(min=0)
        if vector.of == "delta":
            self.total_V += excess_V
        else:
            self.null_RV[vector.draw] += excess_V
            self.draws.add(vector.draw)

    def table(self, names: Mapping[int, str], n_places: int) -> pa.Table:
        """`token_scores.parquet`; the null's score is the largest of its draws."""
        n = max(n_places * self.n_layers, 1)
        score_V = self.total_V / n
        null_V = self.null_RV[sorted(self.draws)].max(0) / n if self.draws else None
        order = np.lexsort((np.arange(self.size), -score_V)).tolist()
        return table_of(
            TokenScoreRow,
            [
                TokenScoreRow(i, names[i], float(score_V[i]), None, None if null_V is None else float(null_V[i]))
                for i in order
            ],
        )


def add_patchscope(scores: TokenScores, said: Said, ranked: Sequence[int]) -> None:
    """Take the ranked places of one layer."""
    scores.n_layers += 1
    found = said.found
    base = {v.place: i for i, v in enumerate(said.vectors) if v.of == "base"}
    for i, vector in enumerate(said.vectors):
        if vector.place not in ranked or vector.of not in ("delta", "null"):
            continue
        s = int(found.chosen_N[i])
        p_V, q_V = np.zeros(scores.size), np.zeros(scores.size)
        shared_K = found.is_shared_NSK[i, s]
        p_V[found.ids_NSK[i, s][shared_K]] = found.probabilities_NSK[i, s][shared_K]
        q_V[found.ids_NSK[i, s]] = found.random_NSK[i, s]
        if (b := base.get(vector.place)) is not None:
            at = int(found.chosen_N[b])
            np.maximum.at(q_V, found.ids_NSK[b, at], found.probabilities_NSK[b, at].astype(np.float64))
        scores.add(vector, p_V, q_V)


def add_lens(scores: TokenScores, pair: ModelPair, vectors: Sequence[Vector], ranked: Sequence[int]) -> None:
    """Take the ranked places of one layer as the logit lens reads them."""
    if not (has_lens(pair.base) and has_lens(pair.finetuned)):
        return
    scores.n_layers += 1
    by_place: dict[int, np.ndarray] = {}
    for vector, read_V in _read(pair, [v for v in vectors if v.of == "base" and v.place in ranked], scores.size):
        by_place[vector.place] = read_V
    wanted = [v for v in vectors if v.of in ("delta", "null") and v.place in ranked]
    for vector, read_V in _read(pair, wanted, scores.size):
        scores.add(vector, read_V, by_place.get(vector.place, np.zeros(scores.size)))


def _read(pair: ModelPair, vectors: Iterable[Vector], size: int) -> Iterator[tuple[Vector, np.ndarray]]:
    """Each vector with its whole distribution."""
    for vector in vectors:
        handle = reader_of(pair, vector.of)
        found = logit_lens(handle, at_mean_square_one(vector.vector_D)[None], handle.vocab_size)
        read_V = np.zeros(max(size, handle.vocab_size))
        read_V[found.ids_NK[0]] = found.probabilities_NK[0]
        yield vector, read_V[:size]
