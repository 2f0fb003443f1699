"""What is decomposed: rows of δ, b or f in float64, and which of them are finite."""

import torch
from torch import Tensor

from diffing.activations.outliers import largest_norms
from diffing.activations.source import PairRows
from diffing.methods.pca.config import Target


def finite_rows(rows: PairRows) -> Tensor:
    """Which rows are finite in both models, and their difference too, shape (N,)."""
    base_ND, finetuned_ND = rows
    return (torch.isfinite(base_ND) & torch.isfinite(finetuned_ND)).all(1) & torch.isfinite(
        finetuned_ND.float() - base_ND.float()
    ).all(1)


def usual_rows(rows: PairRows, limit: float) -> Tensor:
    """Which rows are not above a norm in either model, shape (N,)."""
    return ~(largest_norms(torch.stack(list(rows), 1)) > limit)


def target_rows(rows: PairRows, target: Target, chosen_N: Tensor) -> Tensor:
    """The chosen rows of δ = f − b, b or f in float64; on the CPU where the device (Apple's) has no float64."""
    base_ND, finetuned_ND = (_doubles(x[chosen_N]) for x in rows)
    if target == "delta":
        return finetuned_ND - base_ND
    return base_ND if target == "base" else finetuned_ND


def _doubles(rows_ND: Tensor) -> Tensor:
    return (rows_ND.cpu() if rows_ND.device.type == "mps" else rows_ND).double()
