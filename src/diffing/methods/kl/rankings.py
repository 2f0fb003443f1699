"""Rankings of tokens and documents, and the capped table of all tokens."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from diffing.analysis.bootstrap import mean_stderr
from diffing.core.tables import DocumentScoreRow, TokenScoreRow, schema_of, table_of
from diffing.data.tokens import ROLES
from diffing.methods.kl.gather import Gathered
from diffing.methods.kl.results import RisenFallenRow, TokenRow

_LISTED = 200


def token_score_table(data: Gathered, names: Mapping[int, str]) -> pa.Table:
    """All compared tokens by their part in the mean KL: the mean over positions of p·log(p/q).

    The scores of all tokens add up to the mean KL over the kept tokens of all datasets. A high score
    marks a token that the finetuned model says where the base model does not.
    """
    n_tokens = int(data.kept_N.sum())
    n_sequences = len(np.unique(data.tokens.sequence_N[data.kept_N]))
    total, squares = data.sums["kl_sum"].sum(0), data.sums["kl_squares"].sum(0)
    score, error = total / n_tokens, mean_stderr(total, squares, n_tokens, n_sequences)
    order = np.lexsort((data.shared_ids, -score))
    rows = [
        TokenScoreRow(
            int(data.shared_ids[i]), names[int(data.shared_ids[i])], float(score[i]),
            None if np.isnan(error[i]) else float(error[i]), None,
        )
        for i in order
    ]  # fmt: skip
    return table_of(TokenScoreRow, rows)


def risen_fallen_table(data: Gathered, names: Mapping[int, str]) -> pa.Table:
    """Per dataset and direction, the tokens most often among the k that rose or fell most."""
    rows: list[RisenFallenRow] = []
    for index, dataset in enumerate(data.tokens.datasets):
        mask = data.kept_N & (data.tokens.dataset_N == index)
        if mask.any():
            for direction in ("risen", "fallen"):
                rows += _direction_rows(data, names, mask, index, dataset, direction)
    return table_of(RisenFallenRow, rows)


def _direction_rows(
    data: Gathered, names: Mapping[int, str], mask: np.ndarray, index: int, dataset: str, direction: str
) -> list[RisenFallenRow]:
    ids, change = data.columns[f"{direction}_ids"][mask], data.columns[f"{direction}_change"][mask].astype(np.float64)
    moved = change > 0 if direction == "risen" else change < 0
    width = int(data.shared_ids.max()) + 1
    counts = np.bincount(ids[moved], minlength=width)
    sums = np.bincount(ids[moved], weights=change[moved], minlength=width)
    n_tokens = int(mask.sum())
    column = {int(v): i for i, v in enumerate(data.shared_ids)}
    kl_total = data.sums["kl_sum"][index].sum()
    top = [int(i) for i in np.lexsort((np.arange(width), -np.abs(sums)))[:_LISTED] if counts[i]]
    return [
        RisenFallenRow(
            dataset, direction, rank, i, names[i], int(counts[i]), float(counts[i] / n_tokens),
            float(sums[i] / counts[i]),
            float(data.sums["change_sum"][index][column[i]] / n_tokens),
            float(data.sums["kl_sum"][index][column[i]] / kl_total) if kl_total > 0 else 0.0,
        )
        for rank, i in enumerate(top)
    ]  # fmt: skip


def document_score_table(sequences: pa.Table) -> pa.Table:
    """All documents by mean KL, from the table of sequences."""
    rows = [DocumentScoreRow(r["dataset"], r["sequence"], r["mean_kl"]) for r in sequences.to_pylist()]
    return table_of(DocumentScoreRow, sorted(rows, key=lambda r: (-r.score, r.dataset, r.document)))


def token_table(data: Gathered, names: Mapping[int, str], max_rows: int) -> pa.Table:
    """One row per token in corpus order; above `max_rows`, whole sequences evenly spread over the corpus."""
    index = np.unique(data.tokens.sequence_N)
    if len(data.tokens.ids_N) > max_rows:
        every = int(np.ceil(len(data.tokens.ids_N) / max_rows))
        index = index[::every]
    rows_N = np.isin(data.tokens.sequence_N, index)
    if rows_N.sum() > max_rows:
        rows_N &= np.cumsum(rows_N) <= max_rows
    return pa.table(_token_columns(data, names, rows_N), schema=schema_of(TokenRow))


def _token_columns(data: Gathered, names: Mapping[int, str], rows_N: np.ndarray) -> dict[str, pa.Array]:
    has_next = data.tokens.next_N[rows_N] >= 0
    floats = {k: data.values(k)[rows_N] for k in ("kl", "reverse_kl", "js", "entropy_base", "entropy_ft")}
    return {
        "dataset": pa.array(np.array(data.tokens.datasets)[data.tokens.dataset_N[rows_N]]),
        "sequence": pa.array(data.tokens.documents[data.tokens.sequence_N[rows_N]]),
        "position": pa.array(data.tokens.position_N[rows_N].astype(np.int64)),
        "token_id": pa.array(data.tokens.ids_N[rows_N]),
        "token": pa.array([names[i] for i in data.tokens.ids_N[rows_N].tolist()]),
        "next_token_id": pa.array(data.tokens.next_N[rows_N], mask=~has_next),
        "next_token": pa.array(
            [names[i] if i >= 0 else None for i in data.tokens.next_N[rows_N].tolist()], type=pa.string()
        ),
        **{k: pa.array(v) for k, v in floats.items()},
        "delta_nll": pa.array(data.values("delta_nll")[rows_N], mask=~has_next),
        "top1_agree": pa.array(data.values("top1_agree")[rows_N].astype(bool)),
        "role": pa.array(np.array(ROLES)[data.tokens.role_N[rows_N]]),
        "kept": pa.array(data.kept_N[rows_N]),
    }
