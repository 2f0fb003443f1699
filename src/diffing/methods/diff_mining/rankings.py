"""Tables of tokens: by order and dataset, merged, by position; and the rankings that all methods share."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from diffing.analysis.bootstrap import ratio_interval
from diffing.analysis.token_excess import document_table
from diffing.core.seeds import generator
from diffing.core.tables import TokenScoreRow, table_of
from diffing.methods.diff_mining.buckets import bucket_name
from diffing.methods.diff_mining.gather import ALL, Gathered
from diffing.methods.diff_mining.measures import Labels, Measures, all_datasets, measures
from diffing.methods.diff_mining.null import NullCounts
from diffing.methods.diff_mining.results import DatasetRow, MergedTokenRow, OrderingRow, PositionRow

_BY_POSITION = 30


def _known(values_X: np.ndarray, x: int) -> float | None:
    """None for NaN."""
    return None if np.isnan(values_X[x]) else float(values_X[x])


def dataset_table(data: Gathered, seed: int) -> pa.Table:
    """Per dataset how much the K largest D are on average."""
    return table_of(DatasetRow, [_dataset_row(data, name, seed) for name in data.datasets])


def _dataset_row(data: Gathered, name: str, seed: int) -> DatasetRow:
    (row,) = data.rows_of(name)
    sums_S, counts_S = _document_sums(data)
    tokens = data.frame.tokens
    mine_S = tokens.dataset_N[tokens.starts[:-1]] == row
    found = ratio_interval(sums_S[mine_S], counts_S[mine_S], generator(seed, "diff_mining", name))
    n_documents, n_positions = int(data.n_documents_S[row]), int(data.n_positions_S[row])
    return DatasetRow(name, n_documents, n_positions, found.value, found.low, found.high)


def _document_sums(data: Gathered) -> tuple[np.ndarray, np.ndarray]:
    """By sequence the sum of strength over kept positions, and how many these are."""
    tokens = data.frame.tokens
    sums_S = np.zeros(tokens.n_sequences)
    sums_S[data.parts["sequence"]] = data.parts["strength"]
    return sums_S, np.bincount(tokens.sequence_N[data.frame.kept_N], minlength=tokens.n_sequences)


def document_score_table(data: Gathered) -> pa.Table:
    """All documents by the mean over positions of the mean of the K largest D."""
    return document_table(data.frame.tokens, *_document_sums(data))


def token_score_table(data: Gathered, nulls: NullCounts | None) -> pa.Table:
    """All compared tokens by the share of positions at which they are among the K largest, over all datasets."""
    found = measures(data, nulls, ALL, is_merged=False)
    null_V = None if found.excess is None else found.excess.null_X
    rows = [
        TokenScoreRow(
            int(data.ids_V[i]), data.names[int(data.ids_V[i])], float(found.largest_X[i]),
            _known(found.largest_stderr_X, i), None if null_V is None else float(null_V[i]),
        )
        for i in np.lexsort((data.ids_V, -found.largest_X)).tolist()
    ]  # fmt: skip
    return table_of(TokenScoreRow, rows)


def ordering_table(data: Gathered, nulls: NullCounts | None, n_listed: int) -> pa.Table:
    """The first tokens of every order, on all datasets together and on each."""
    rows = [
        row
        for dataset in all_datasets(data)
        for is_merged in (True, False)
        for row in _ordering_rows(data, nulls, dataset, is_merged, n_listed)
    ]
    order = {name: i for i, name in enumerate(("occurrence", "z", "mean", "asymmetry"))}
    return table_of(OrderingRow, sorted(rows, key=lambda r: order[r.ordering]))


def _ordering_rows(
    data: Gathered, nulls: NullCounts | None, dataset: str, is_merged: bool, n_listed: int
) -> Iterator[OrderingRow]:
    found, labels = measures(data, nulls, dataset, is_merged), Labels.of(data, dataset, is_merged)
    for ordering, keys_X in found.orders.items():
        known_X = np.where(np.isnan(keys_X), -np.inf, keys_X)
        order = np.argsort(-known_X, kind="stable")
        listed = order[known_X[order] > 0][:n_listed].tolist()
        for rank, x in enumerate(listed):
            yield _ordering_row(found, labels, ordering, dataset, rank, x)


def _ordering_row(found: Measures, labels: Labels, ordering: str, dataset: str, rank: int, x: int) -> OrderingRow:
    largest, smallest = float(found.largest_X[x]), float(found.smallest_X[x])
    null, z = _beside_null(found, x)
    return OrderingRow(
        ordering, dataset, "merged" if found.is_merged else "single", rank, labels.token(x), labels.ids(x), largest,
        _known(found.largest_stderr_X, x), smallest, largest - smallest, float(found.mean_X[x]),
        _known(found.mean_stderr_X, x), float(found.positive_X[x]), null, z,
    )  # fmt: skip


def _beside_null(found: Measures, x: int) -> tuple[float | None, float | None]:
    return (None, None) if found.excess is None else (_known(found.excess.null_X, x), _known(found.excess.z_X, x))


def merged_table(data: Gathered, nulls: NullCounts | None) -> pa.Table:
    """Every group that is among the K largest somewhere, on all datasets together and on each."""
    rows = []
    for dataset in all_datasets(data):
        found, labels = measures(data, nulls, dataset, True), Labels.of(data, dataset, True)
        order = np.argsort(-found.largest_X, kind="stable")
        for rank, x in enumerate(order[found.largest_X[order] > 0].tolist()):
            rows.append(
                MergedTokenRow(
                    dataset, rank, labels.token(x), labels.ids(x), float(found.largest_X[x]),
                    _known(found.largest_stderr_X, x), float(found.smallest_X[x]), *_beside_null(found, x),
                )
            )  # fmt: skip
    return table_of(MergedTokenRow, rows)


def position_table(data: Gathered) -> pa.Table:
    """By bucket of input positions the merged tokens that are most often among the K largest."""
    return table_of(PositionRow, [row for d in all_datasets(data) for row in _position_rows(data, d)])


def _position_rows(data: Gathered, dataset: str) -> Iterator[PositionRow]:
    counts_BG = data.total("by_bucket", dataset)
    n_B = data.bucket_positions(dataset)
    labels = Labels.of(data, dataset, True)
    everywhere_G = counts_BG.sum(0) / max(int(n_B.sum()), 1)
    leading = _first(everywhere_G)
    for bucket in np.flatnonzero(n_B).tolist():
        share_G = counts_BG[bucket] / n_B[bucket]
        listed = np.union1d(_first(share_G), leading)
        for rank, g in enumerate(listed[np.argsort(-share_G[listed], kind="stable")].tolist()):
            yield PositionRow(
                dataset, bucket, bucket_name(bucket), int(n_B[bucket]), rank, labels.token(g), labels.ids(g),
                float(share_G[g]), float(everywhere_G[g]),
            )  # fmt: skip


def _first(share_G: np.ndarray) -> np.ndarray:
    """The groups with the largest share that is above 0."""
    order = np.argsort(-share_G, kind="stable")
    return order[share_G[order] > 0][:_BY_POSITION]
