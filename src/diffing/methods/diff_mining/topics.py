"""Topics: which tokens rise at the same positions, by a non-negative factorisation of sampled positions.

Source: Lee and Seung, Learning the parts of objects by non-negative matrix factorization (1999).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from diffing.analysis.token_text import Decoder
from diffing.analysis.top_examples import TopExamples
from diffing.analysis.windows import WindowRow, window_table, windows
from diffing.core.tables import table_of
from diffing.methods.diff_mining.config import DiffMiningConfig
from diffing.methods.diff_mining.gather import ALL, Gathered
from diffing.methods.diff_mining.measures import Labels
from diffing.methods.diff_mining.results import TopicRow
from diffing.methods.diff_mining.stream import NOT_COUNTED

_FEWEST_POSITIONS = 3
_MOST_ITERATIONS = 100
_TOLERANCE = 1e-3
_LISTED = 50
_EXAMPLES = 8


@dataclass(frozen=True, eq=False)
class Topics:
    """A factorisation, topics with the largest part first.

    Args:
        row_P: Rows of the token table that were factorised.
        weight_PK: How strongly each topic is present at each, in nats of D.
        token_KG: Each topic's part of each group of tokens; rows add up to 1.
    """

    row_P: np.ndarray
    weight_PK: np.ndarray
    token_KG: np.ndarray

    @property
    def share_K(self) -> np.ndarray:
        """Each topic's part of all weights."""
        total_K = self.weight_PK.sum(0, dtype=np.float64)
        return total_K / max(total_K.sum(), 1e-30)


def find_topics(data: Gathered, n_topics: int, seed: int) -> Topics | None:
    """Factorise the K largest D of the sampled positions, summed over merged tokens; None where nothing rises.

    Groups that rise at fewer than three of the positions are left out.
    """
    from scipy.sparse import csr_array

    ids_PK, values_PK = data.parts["sample_ids"], data.parts["sample_values"]
    counted_PK = ids_PK != NOT_COUNTED
    rows, columns = np.nonzero(counted_PK)[0], data.frame.group_V[ids_PK[counted_PK]]
    shape = (len(ids_PK), data.merged.n_groups)
    matrix_PG = csr_array((values_PK[counted_PK].astype(np.float64), (rows, columns)), shape=shape)
    used_G = np.flatnonzero(np.diff(matrix_PG.tocsc().indptr) >= _FEWEST_POSITIONS)
    n = min(n_topics, len(used_G), len(ids_PK))
    if n == 0:
        return None
    weight_PK, token_KU = _factors(matrix_PG[:, used_G], n, seed)
    scale_K = token_KU.sum(1)
    order = [k for k in np.argsort(-weight_PK.sum(0) * scale_K, kind="stable").tolist() if scale_K[k] > 0]
    token_KG = np.zeros((len(order), data.merged.n_groups))
    token_KG[:, used_G] = token_KU[order] / scale_K[order, None]
    return Topics(data.parts["sample_row"], weight_PK[:, order] * scale_K[order], token_KG)


def _factors(matrix_PU: object, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    import warnings

    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    options: dict[str, Any] = {"n_components": n, "random_state": seed}
    model = NMF(init="nndsvd", max_iter=_MOST_ITERATIONS, tol=_TOLERANCE, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        weight_PK = model.fit_transform(matrix_PU)
    return weight_PK, model.components_


def topic_table(data: Gathered, topics: Topics | None) -> pa.Table:
    """The leading tokens of each topic."""
    rows: list[TopicRow] = []
    labels = Labels.of(data, ALL, True)
    for k, share in enumerate([] if topics is None else topics.share_K.tolist()):
        assert topics is not None
        part_G = topics.token_KG[k]
        order = np.argsort(-part_G, kind="stable")[:_LISTED]
        rows += [
            TopicRow(k + 1, share, rank, labels.token(g), labels.ids(g), float(part_G[g]))
            for rank, g in enumerate(order[part_G[order] > 0].tolist())
        ]
    return table_of(TopicRow, rows)


def topic_example_table(
    data: Gathered, topics: Topics | None, tokenizer: Decoder, config: DiffMiningConfig
) -> pa.Table:
    """The documents in which each topic is strongest, with its weight at the sampled positions."""
    if topics is None:
        return table_of(WindowRow, [])
    tokens = data.frame.tokens
    n_topics = topics.weight_PK.shape[1]
    found = TopExamples(n_topics, _EXAMPLES)
    at, topic = np.nonzero((topics.weight_PK > 0) & tokens.is_new_N[topics.row_P][:, None])
    order = np.argsort(topics.row_P[at], kind="stable")
    at, topic = at[order], topic[order]
    row_M = topics.row_P[at]
    found.add(topic, row_M, topics.weight_PK[at, topic], tokens.sequence_N[row_M])
    ranked = found.top()
    start_M, stop_M = windows(tokens, ranked.row, config.context_before, config.context_after)
    place = {int(row): i for i, row in enumerate(topics.row_P)}

    def values(i: int) -> np.ndarray:
        places = [place.get(row) for row in range(int(start_M[i]), int(stop_M[i]))]
        k = int(ranked.unit[i])
        return np.array([np.nan if p is None else topics.weight_PK[p, k] for p in places])

    kinds = ["topic"] * len(ranked)
    return window_table(tokens, tokenizer, ranked, kinds, values, config.context_before, config.context_after)
