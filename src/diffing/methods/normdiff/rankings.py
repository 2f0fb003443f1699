"""Rankings of tokens and documents, mean vectors, and the capped table of all tokens."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diffing.core.layers import Slot
from diffing.core.tables import DocumentScoreRow, schema_of, table_of
from diffing.data.chats import ROLES
from diffing.methods.normdiff.gather import Gathered
from diffing.methods.normdiff.groups import Group
from diffing.methods.normdiff.results import TokenRow, VectorRow
from diffing.methods.normdiff.stream import METRICS

_ROUNDING = 1e-12


def document_score_table(sequences: pa.Table, slot: Slot) -> pa.Table:
    """All documents by mean relative difference at `slot`."""
    rows = [
        DocumentScoreRow(r["dataset"], r["sequence"], r["mean_relative"])
        for r in sequences.to_pylist()
        if (r["layer"], r["site"]) == slot
    ]
    return table_of(DocumentScoreRow, sorted(rows, key=lambda r: (-r.score, r.dataset, r.document)))


def vectors(data: Gathered, groups: Sequence[Group], names: Mapping[int, str]) -> tuple[pa.Table, dict[str, Tensor]]:
    """The mean differences with their standard errors, and the tensors themselves in float32."""
    rows: list[VectorRow] = []
    tensors: dict[str, Tensor] = {}
    for slot in data.slots:
        sums = data.sums[slot]
        for g, group in enumerate(groups):
            n = int(sums["n"][g])
            if n:
                key = f"{slot.name}/{group.key}"
                delta_D = sums["delta"][g] / n
                rows.append(_vector_row(key, slot, group, delta_D, sums, g, names))
                tensors[f"{key}/mean_delta"] = torch.from_numpy(delta_D).float()
                if group.kind == "all":
                    tensors[f"{key}/mean_base"] = torch.from_numpy(sums["base"][g] / n).float()
                    tensors[f"{key}/mean_finetuned"] = torch.from_numpy(sums["finetuned"][g] / n).float()
    return table_of(VectorRow, rows), tensors


def _vector_row(
    key: str, slot: Slot, group: Group, delta_D: np.ndarray, sums: Mapping[str, np.ndarray], g: int,
    names: Mapping[int, str],
) -> VectorRow:  # fmt: skip
    n, square = int(sums["n"][g]), float(delta_D @ delta_D)
    mean_square = float(sums["delta_squares"][g]) / n
    return VectorRow(
        key=key,
        layer=slot.layer,
        site=slot.site,
        dataset=group.dataset,
        kind=group.kind,
        position=group.position,
        token_id=group.token_id,
        token=None if group.token_id is None else names[group.token_id],
        n_tokens=n,
        norm=square**0.5,
        stderr=_stderr(mean_square, square, n),
        explained=min(square / mean_square, 1.0) if mean_square > 0 else None,
        mean_norm_base=float(sums["base_norms"][g]) / n,
    )


def _stderr(mean_square: float, square_of_mean: float, n: int) -> float | None:
    """√(E‖δ − δ̄‖² / n); a spread that float64 sums cannot tell from none is 0, that of a single token unknown."""
    spread = mean_square - square_of_mean
    if n < 2:
        return None
    return (spread / n) ** 0.5 if spread > _ROUNDING * mean_square else 0.0


def token_table(data: Gathered, names: Mapping[int, str], max_rows: int) -> pa.Table:
    """Every token at every slot, layer by layer; above `max_rows`, whole sequences evenly spread over the corpus.

    A first sequence that is longer than that is cut.
    """
    table, per_slot = data.tokens, max(1, max_rows // len(data.slots))
    index = np.unique(table.sequence_N[data.covered_N])
    lengths = np.diff(table.starts)[index]
    every = next((k for k in range(1, len(index)) if lengths[::k].sum() <= per_slot), len(index))
    chosen_N = data.covered_N & np.isin(table.sequence_N, index[::every])
    chosen_N &= np.cumsum(chosen_N) <= per_slot
    common = _common_columns(data, names, chosen_N)
    schema = schema_of(TokenRow)
    n = int(chosen_N.sum())
    parts = []
    for slot in data.slots:
        place = {"layer": pa.array(np.full(n, slot.layer)), "site": pa.array([slot.site] * n, type=pa.string())}
        values = {m: pa.array(data.values(slot, m)[chosen_N], from_pandas=True) for m in METRICS}
        columns = {**common, **place, **values}
        parts.append(pa.table([columns[name] for name in schema.names], schema=schema))
    return pa.concat_tables(parts)


def _common_columns(data: Gathered, names: Mapping[int, str], chosen_N: np.ndarray) -> dict[str, pa.Array]:
    table = data.tokens
    return {
        "dataset": pa.array(np.array(table.datasets)[table.dataset_N[chosen_N]]),
        "sequence": pa.array(table.documents[table.sequence_N[chosen_N]]),
        "position": pa.array(table.position_N[chosen_N].astype(np.int64)),
        "token_id": pa.array(table.ids_N[chosen_N]),
        "token": pa.array([names[i] for i in table.ids_N[chosen_N].tolist()], type=pa.string()),
        "role": pa.array(np.array(ROLES)[table.role_N[chosen_N]]),
        "is_template": pa.array(table.is_template_N[chosen_N]),
        "kept": pa.array(data.kept_N[chosen_N]),
    }
