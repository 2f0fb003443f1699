"""Tables of spaces, spectra, components, and scores by dataset."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diffing.analysis.bootstrap import ratio_intervals
from diffing.core.seeds import generator
from diffing.core.tables import table_of
from diffing.methods.pca.gather import Gathered, Listed
from diffing.methods.pca.readouts import Key, Readout
from diffing.methods.pca.results import ComponentRow, DatasetRow, SpaceRow, SpectrumRow
from diffing.methods.pca.spaces import Space

_BEYOND = 2.0


def space_table(data: Gathered) -> pa.Table:
    """One row per decomposition."""
    return table_of(SpaceRow, [_space_row(unit, space) for unit, space in enumerate(data.spaces)])


def _space_row(unit: int, space: Space) -> SpaceRow:
    mean_square = space.mean_norm**2 + (space.total if space.centring == "centred" else 0.0)
    whole = mean_square if space.centring == "centred" else space.total
    above = float(space.values_K[space.above_K].sum())
    return SpaceRow(
        unit=unit, layer=space.slot.layer, site=space.slot.site, target=space.target, centring=space.centring,
        n_tokens=space.n_tokens, n_not_finite=space.n_not_finite, n_unusual=space.n_unusual, total=space.total,
        mean_norm=space.mean_norm,
        mean_share=min(space.mean_norm**2 / whole, 1.0) if whole > 0 else None,
        participation_ratio=space.participation_ratio, n_above_null=space.n_above,
        share_above_null=min(above / space.total, 1.0) if space.total > 0 else None,
        n_null_tokens=space.n_null_tokens, n_null_documents=space.n_null_documents, is_exact=space.is_exact,
    )  # fmt: skip


def spectrum_table(data: Gathered) -> pa.Table:
    """Every eigenvalue of every space beside its null."""
    rows = []
    for space in data.spaces:
        shares, cumulative = _shares(space)
        for i, value in enumerate(space.values_K.tolist()):
            rows.append(
                SpectrumRow(
                    space.slot.layer, space.slot.site, space.target, space.centring, i + 1, value, shares[i],
                    cumulative[i], float(space.null_K[i]), bool(space.above_K[i]),
                )
            )  # fmt: skip
    return table_of(SpectrumRow, rows)


def _shares(space: Space) -> tuple[list[float | None], list[float | None]]:
    if not space.total > 0:
        return [None] * len(space.values_K), [None] * len(space.values_K)
    shares = space.values_K / space.total
    return shares.tolist(), np.minimum(np.cumsum(shares), 1.0).tolist()


def component_table(data: Gathered, readouts: Mapping[Key, Readout]) -> pa.Table:
    """The listed components with what is read from them."""
    rows = []
    for c in data.listed:
        space, i = c.space, c.index
        shares, cumulative = _shares(space)
        share, so_far = shares[i], cumulative[i]
        assert share is not None
        assert so_far is not None
        norm = space.mean_norm
        ends = [readouts.get(("component", c.unit, end)) for end in ("positive", "negative")]
        rows.append(
            ComponentRow(
                unit=c.unit, layer=space.slot.layer, site=space.slot.site, target=space.target,
                centring=space.centring, component=i + 1, eigenvalue=c.value, share=share, cumulative=so_far,
                null_p95=float(space.null_K[i]), is_above_null=bool(space.above_K[i]),
                n_coordinates=1 / float(space.vectors_CD[i].pow(4).sum()),
                n_tokens_carrying=data.n_tokens_carrying(c),
                cosine_with_mean=float(space.vectors_CD[i] @ space.mean_D) / norm if norm > 0 else None,
                tensor=c.tensor, positive=ends[0].tokens if ends[0] else (), negative=ends[1].tokens if ends[1] else (),
            )
        )  # fmt: skip
    return table_of(ComponentRow, rows)


def dataset_table(data: Gathered, seed: int) -> pa.Table:
    """Scores of each listed component by dataset."""
    rows = []
    for c in data.listed:
        values_N = data.scores_of(c)
        for index, name in enumerate(data.tokens.datasets):
            here_N = (data.tokens.dataset_N == index) & ~np.isnan(values_N)
            if here_N.any():
                rows.append(_dataset_row(data, c, values_N, here_N, name, seed))
    return table_of(DatasetRow, rows)


def _dataset_row(
    data: Gathered, c: Listed, values_N: np.ndarray, here_N: np.ndarray, name: str, seed: int
) -> DatasetRow:
    sums_S, counts_S = data.tokens.sums_by_sequence(values_N, here_N)
    used = counts_S > 0
    rng = generator(seed, "pca", "dataset", c.tensor, name)
    found = ratio_intervals(sums_S[used][:, None], counts_S[used][:, None], rng)
    values, low, high = values_N[here_N], float(found.low[0]), float(found.high[0])
    return DatasetRow(
        unit=c.unit, layer=c.space.slot.layer, site=c.space.slot.site, target=c.space.target,
        centring=c.space.centring, component=c.index + 1, dataset=name, n_documents=int(used.sum()),
        n_tokens=len(values), mean=float(values.mean()), low=None if np.isnan(low) else low,
        high=None if np.isnan(high) else high, mean_square=float(np.square(values).mean()),
        frequency=float((np.abs(values) > _BEYOND * c.value**0.5).mean()),
    )  # fmt: skip


def tensors_of(data: Gathered) -> dict[str, Tensor]:
    """Components of each space as a matrix and one by one, and the mean of each target; float32."""
    found: dict[str, Tensor] = {}
    for space in data.spaces:
        if space.n_tokens:
            found[f"{space.slot.name}/{space.target}/mean"] = space.mean_D.to(torch.float32)
        if space.n_listed:
            found[f"{space.key}/components"] = space.vectors_CD.to(torch.float32)
    found |= {c.tensor: c.space.vectors_CD[c.index].to(torch.float32) for c in data.listed}
    return found
