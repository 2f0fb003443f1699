"""Per-token metrics of one block of activations, and the sums that mean vectors are made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffing.activations.source import PairRows

METRICS = ("norm_diff", "relative", "cosine", "norm_base", "norm_ft")
_CHUNK = {"cpu": 2**17, "cuda": 2**22}


@dataclass(frozen=True, eq=False)
class Groups:
    """Sets of tokens whose mean vectors are wanted.

    Args:
        n_groups: Number of sets.
        tokens_M: Tokens of the corpus, ascending, one entry for each set a token is in.
        groups_M: The set of each entry.
        has_models_G: Of which sets the mean b and f are wanted besides the mean δ.
    """

    n_groups: int
    tokens_M: np.ndarray
    groups_M: np.ndarray
    has_models_G: np.ndarray

    def of(self, token_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a block and the set each is in; a row may be in several sets."""
        order = np.argsort(token_N, kind="stable")
        left = np.searchsorted(self.tokens_M, token_N[order], "left")
        right = np.searchsorted(self.tokens_M, token_N[order], "right")
        counts = right - left
        rows = np.repeat(order, counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, self.groups_M[np.repeat(left, counts) + within]

    def present(self, token_N: np.ndarray) -> np.ndarray:
        """The sets that have one of these tokens, ascending."""
        return np.unique(self.of(token_N)[1])


class _Norms(NamedTuple):
    """‖δ‖, ‖b‖ and ‖f‖ of rows in float64, and whether all three are numbers in float32."""

    gap: Tensor
    base: Tensor
    finetuned: Tensor
    known: Tensor


@torch.no_grad()
def metrics(rows: PairRows) -> dict[str, np.ndarray]:
    """The metrics of `METRICS` for every row, float32; NaN where a row is not finite in either model.

    ‖δ‖, ‖δ‖/((‖b‖+‖f‖)/2) (0 where δ = 0), and the cosine distance as ½‖b/‖b‖ − f/‖f‖‖², which keeps small values
    that 1 − cos loses (NaN where b or f is 0). Computed in float64: at an angle of 1e-5 float32 is off by a thousandth.
    """
    parts = [_metrics(b, f) for _, b, f in _pieces(rows)]
    return {name: torch.cat([p[name] for p in parts]).cpu().numpy() for name in METRICS}


def _pieces(rows: PairRows) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Stretches of rows in float64 that caches hold; on the CPU where the device (Apple's) has no float64."""
    base_ND, finetuned_ND = (x.cpu() if x.device.type == "mps" else x for x in rows)
    step = max(1, _CHUNK.get(base_ND.device.type, _CHUNK["cpu"]) // max(1, base_ND.shape[1]))
    for start in range(0, len(base_ND), step):
        here = slice(start, start + step)
        yield here, base_ND[here].double(), finetuned_ND[here].double()


def _norms(b_ND: Tensor, f_ND: Tensor, d_ND: Tensor) -> _Norms:
    gap, base, finetuned = (torch.linalg.vector_norm(x, dim=-1) for x in (d_ND, b_ND, f_ND))
    return _Norms(gap, base, finetuned, torch.isfinite(torch.stack([gap, base, finetuned]).float()).all(0))


def _metrics(b_ND: Tensor, f_ND: Tensor) -> dict[str, Tensor]:
    norms = _norms(b_ND, f_ND, f_ND - b_ND)
    scale = (norms.base + norms.finetuned) / 2
    relative = torch.where(norms.gap == 0, torch.zeros_like(norms.gap), norms.gap / scale)
    apart_ND = (b_ND / norms.base[:, None]).sub_(f_ND / norms.finetuned[:, None])
    cosine = 0.5 * torch.linalg.vector_norm(apart_ND, dim=-1).square()
    values = (norms.gap, relative, cosine, norms.base, norms.finetuned)
    return {name: v.float().masked_fill(~norms.known, float("nan")) for name, v in zip(METRICS, values, strict=True)}


@torch.no_grad()
def group_sums(
    rows: PairRows, row_M: np.ndarray, group_M: np.ndarray, has_models_G: np.ndarray
) -> dict[str, np.ndarray]:
    """Sums over the finite rows of every set, float64: of δ (G, D), of ‖δ‖² and ‖b‖, and their number (G,).

    Of sets marked in `has_models_G` also of b and f, one row for each of them.

    Args:
        rows: A block's activations.
        row_M: Rows, one entry for each set a row is in.
        group_M: The set of each entry, from 0 to G − 1.
        has_models_G: Of which sets b and f are summed.
    """
    device = torch.device("cpu") if rows.base_ND.device.type == "mps" else rows.base_ND.device
    member_GN = torch.zeros(len(has_models_G), len(rows.base_ND), dtype=torch.float64)
    member_GN[torch.from_numpy(group_M), torch.from_numpy(row_M)] = 1
    member_GN, models = member_GN.to(device), torch.from_numpy(has_models_G).to(device)
    total: dict[str, Tensor] = {}
    for here, b_ND, f_ND in _pieces(rows):
        for name, value in _piece_sums(b_ND, f_ND, member_GN[:, here], models).items():
            total[name] = total[name] + value if name in total else value
    return {name: value.cpu().numpy() for name, value in total.items()}


def _piece_sums(b_ND: Tensor, f_ND: Tensor, member_GN: Tensor, models_G: Tensor) -> dict[str, Tensor]:
    d_ND = f_ND - b_ND
    norms = _norms(b_ND, f_ND, d_ND)
    gap_N, base_N = norms.gap, norms.base
    if not norms.known.all():
        b_ND, f_ND, d_ND = (x.masked_fill(~norms.known[:, None], 0) for x in (b_ND, f_ND, d_ND))
        gap_N, base_N = (x.masked_fill(~norms.known, 0) for x in (gap_N, base_N))
        member_GN = member_GN * norms.known
    whole_GN = member_GN[models_G]
    return {
        "delta": member_GN @ d_ND,
        "base": whole_GN @ b_ND,
        "finetuned": whole_GN @ f_ND,
        "delta_squares": member_GN @ gap_N.square(),
        "base_norms": member_GN @ base_N,
        "n": member_GN.sum(1),
    }
