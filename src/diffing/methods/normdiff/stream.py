"""Per-token metrics of one block of activations, and the sums that mean vectors are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.activations.source import PairRows

METRICS = ("norm_diff", "relative", "cosine", "norm_base", "norm_ft")
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Groups:
    """Sets of tokens whose mean vectors are wanted.

    Args:
        names: What each set is.
        member_N: For every token of the corpus the sets it is in, as rows of (token, set) pairs sorted by token.
    """

    n_groups: int
    tokens_M: np.ndarray
    groups_M: np.ndarray

    def of(self, token_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a block and the set each is in; a row may be in several sets."""
        order = np.argsort(token_N, kind="stable")
        left = np.searchsorted(self.tokens_M, token_N[order], "left")
        right = np.searchsorted(self.tokens_M, token_N[order], "right")
        counts = right - left
        rows = np.repeat(order, counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self.groups_M[np.repeat(left, counts) + within]


@torch.no_grad()
def metrics(rows: PairRows) -> dict[str, np.ndarray]:
    """The metrics of `METRICS` for every row, float32; NaN where a row is not finite in either model.

    ‖δ‖, ‖δ‖/((‖b‖+‖f‖)/2) (0 where δ = 0), and the cosine distance as ½‖b/‖b‖ − f/‖f‖‖², which keeps small values
    that 1 − cos loses (NaN where b or f is 0).
    """
    parts = [_metrics(b.float(), f.float()) for b, f in _pieces(rows)]
    return {name: torch.cat([p[name] for p in parts]).cpu().numpy() for name in METRICS}


def _pieces(rows: PairRows) -> list[tuple[Tensor, Tensor]]:
    return list(zip(rows.base_ND.split(_ROWS), rows.finetuned_ND.split(_ROWS), strict=True))


def _metrics(b_ND: Tensor, f_ND: Tensor) -> dict[str, Tensor]:
    norm_b, norm_f = _norm(b_ND), _norm(f_ND)
    gap = _norm(f_ND - b_ND)
    scale = (norm_b + norm_f) / 2
    relative = torch.where(gap == 0, torch.zeros_like(gap), gap / scale)
    cosine = 0.5 * _norm(b_ND / norm_b[:, None] - f_ND / norm_f[:, None]).square()
    unknown = ~(torch.isfinite(norm_b) & torch.isfinite(norm_f))
    values = (gap, relative, cosine, norm_b, norm_f)
    return {name: v.masked_fill(unknown, float("nan")) for name, v in zip(METRICS, values, strict=True)}


def _norm(x_ND: Tensor) -> Tensor:
    """Norms of rows; of rows so large that their squares overflow float32, too."""
    norm_N = torch.linalg.vector_norm(x_ND, dim=-1)
    if torch.isinf(norm_N).any():
        norm_N = torch.linalg.vector_norm(x_ND.double(), dim=-1).float()
    return norm_N


@torch.no_grad()
def group_sums(rows: PairRows, row_M: np.ndarray, group_M: np.ndarray, n_groups: int) -> Mapping[str, np.ndarray]:
    """Sums over the finite rows of every set, float64: of δ, b and f (G, D), of ‖δ‖² and ‖b‖, and their number (G,).

    Args:
        rows: A block's activations.
        row_M: Rows, one entry for each set a row is in.
        group_M: The set of each entry.
        n_groups: G.
    """
    b_ND, f_ND = rows.base_ND.float(), rows.finetuned_ND.float()
    finite = (torch.isfinite(b_ND).all(-1) & torch.isfinite(f_ND).all(-1)).cpu().numpy()
    kept = finite[row_M]
    row_M, group_M = row_M[kept], group_M[kept]
    present = np.unique(group_M)
    device = b_ND.device
    width = b_ND.shape[1]
    sums = {name: np.zeros((n_groups, width)) for name in ("delta", "base", "finetuned")}
    sums |= {name: np.zeros(n_groups) for name in ("delta_squares", "base_norms", "n")}
    d_ND = f_ND - b_ND
    squares_N = d_ND.double().square().sum(-1).cpu().numpy()
    norms_N = b_ND.norm(dim=-1).double().cpu().numpy()
    for group in present.tolist():
        at = row_M[group_M == group]
        index = torch.from_numpy(at).to(device)
        for name, x_ND in (("delta", d_ND), ("base", b_ND), ("finetuned", f_ND)):
            sums[name][group] = x_ND.index_select(0, index).sum(0, dtype=torch.float64).cpu().numpy()
        sums["delta_squares"][group] = squares_N[at].sum()
        sums["base_norms"][group] = norms_N[at].sum()
        sums["n"][group] = len(at)
    return sums


def add_sums(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The sums of several blocks, added in order."""
    total = {name: value.copy() for name, value in parts[0].items()}
    for part in parts[1:]:
        for name, value in part.items():
            total[name] += value
    return total
