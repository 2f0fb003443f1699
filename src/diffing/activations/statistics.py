"""Mergeable statistics of activations: per-dimension means and variances, norms and cosine distances of both models.

Everything is computed in float64, whatever the storage dtype: sums in bfloat16 stop growing after some hundred tokens,
and a float32 sum of squares loses the variance of a dimension whose mean is large. Parts are merged with the parallel
formula of Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

_CHUNK_BYTES = {"cpu": 2**21, "cuda": 2**23}
_VECTORS = ("base", "finetuned", "delta")


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and spread of rows, dimension by dimension.

    Args:
        n: Rows.
        mean_D: Mean, float64 on the CPU; zeros when there are no rows.
        m2_D: Sum of squared deviations from the mean, likewise.
    """

    n: int
    mean_D: Tensor
    m2_D: Tensor

    @classmethod
    def empty(cls, width: int) -> "Moments":
        """Of no rows."""
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))

    @classmethod
    def of(cls, rows_ND: Tensor) -> "Moments":
        """Of the rows of a floating-point tensor on any device, which must be finite."""
        found = cls.empty(rows_ND.shape[1])
        for start, stop in _chunks(rows_ND):
            found = found.merge(_moments_(_doubles(rows_ND[start:stop])))
        return found

    def merge(self, other: "Moments") -> "Moments":
        """Of the rows of both."""
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        gap_D = other.mean_D - self.mean_D
        mean_D = self.mean_D + gap_D * (other.n / n)
        return Moments(n, mean_D, self.m2_D + other.m2_D + gap_D.square() * (self.n * other.n / n))

    @property
    def variance_D(self) -> Tensor:
        """Variance of each dimension, divided by n (ddof=0); NaN when there are no rows."""
        return self.m2_D / self.n

    @property
    def total_variance(self) -> float | None:
        """E‖x − E x‖², the trace of the covariance (ddof=0); None when there are no rows."""
        return float(self.m2_D.sum()) / self.n if self.n else None

    @property
    def mean_square_norm(self) -> float | None:
        """E‖x‖²; None when there are no rows."""
        return float(self.m2_D.sum() / self.n + self.mean_D.square().sum()) if self.n else None


@dataclass(frozen=True, eq=False)
class PairStatistics:
    """Of aligned rows of both models. A row that holds NaN or infinity in either model enters nothing but the counts.

    Args:
        base: Of the base's rows b.
        finetuned: Of the finetuned model's rows f.
        delta: Of the differences δ = f − b.
        norms: Of ‖b‖, ‖f‖ and ‖δ‖, in this order.
        cosine: Of the cosine distance ½‖b/‖b‖ − f/‖f‖‖² = 1 − cos(b, f); rows of norm 0 have none.
        n_not_finite_base: Rows that hold NaN or infinity in the base.
        n_not_finite_finetuned: The same in the finetuned model.
    """

    base: Moments
    finetuned: Moments
    delta: Moments
    norms: Moments
    cosine: Moments
    n_not_finite_base: int
    n_not_finite_finetuned: int

    @classmethod
    def empty(cls, width: int) -> "PairStatistics":
        """Of no rows; no two of its tensors are one, which safetensors would refuse."""
        base, finetuned, delta = (Moments.empty(width) for _ in _VECTORS)
        return cls(base, finetuned, delta, Moments.empty(3), Moments.empty(1), 0, 0)

    @classmethod
    def of(cls, base_ND: Tensor, finetuned_ND: Tensor) -> "PairStatistics":
        """Of the rows of two floating-point tensors of one shape, on any one device."""
        assert base_ND.shape == finetuned_ND.shape, "rows are not aligned"
        found = cls.empty(base_ND.shape[1])
        for start, stop in _chunks(base_ND):
            found = found.merge(_pair_statistics(base_ND[start:stop], finetuned_ND[start:stop]))
        return found

    @property
    def n(self) -> int:
        """Rows that entered the statistics."""
        return self.base.n

    def merge(self, other: "PairStatistics") -> "PairStatistics":
        """Of the rows of both."""
        return PairStatistics(
            *(mine.merge(theirs) for mine, theirs in zip(self._moments, other._moments, strict=True)),
            n_not_finite_base=self.n_not_finite_base + other.n_not_finite_base,
            n_not_finite_finetuned=self.n_not_finite_finetuned + other.n_not_finite_finetuned,
        )

    @property
    def _moments(self) -> tuple[Moments, Moments, Moments, Moments, Moments]:
        return self.base, self.finetuned, self.delta, self.norms, self.cosine

    def to_tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """As tensors for a safetensors file; names and shapes depend on the width alone, and nothing is rounded."""
        counts = [self.base.n, self.cosine.n, self.n_not_finite_base, self.n_not_finite_finetuned]
        tensors = {f"{prefix}counts": torch.tensor(counts, dtype=torch.int64)}
        for name, moments in zip((*_VECTORS, "norms", "cosine"), self._moments, strict=True):
            tensors |= {f"{prefix}{name}.mean": moments.mean_D, f"{prefix}{name}.m2": moments.m2_D}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> "PairStatistics":
        """What `to_tensors` gave; other names are ignored.

        Raises:
            KeyError: A tensor is missing.
        """
        n, n_cosine, n_base, n_finetuned = tensors[f"{prefix}counts"].tolist()
        numbers = {**dict.fromkeys((*_VECTORS, "norms"), n), "cosine": n_cosine}
        parts = (
            Moments(k, tensors[f"{prefix}{name}.mean"], tensors[f"{prefix}{name}.m2"]) for name, k in numbers.items()
        )
        return cls(*parts, n_not_finite_base=n_base, n_not_finite_finetuned=n_finetuned)

    def summary(self) -> dict[str, Any]:
        """Headline numbers, ready for JSON; None where there are no rows to know them from.

        Standard deviations and variances divide by n (ddof=0); `mean_square_norm` is E‖x‖².
        """
        found: dict[str, Any] = {
            "n_tokens": self.n,
            "n_not_finite_base": self.n_not_finite_base,
            "n_not_finite_finetuned": self.n_not_finite_finetuned,
        }
        means, deviations = self.norms.mean_D.tolist(), self.norms.variance_D.sqrt().tolist()
        for i, (name, moments) in enumerate(zip(_VECTORS, self._moments, strict=False)):
            found[name] = {
                "mean_norm": means[i] if self.n else None,
                "sd_norm": deviations[i] if self.n else None,
                "total_variance": moments.total_variance,
                "mean_square_norm": moments.mean_square_norm,
            }
        found["mean_cosine_distance"] = float(self.cosine.mean_D) if self.cosine.n else None
        found["cosine_of_means"] = _cosine(self.base.mean_D, self.finetuned.mean_D)
        return found


def _chunks(rows_ND: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows that take `_CHUNK_BYTES` in float64; a handful of such copies are alive at a time."""
    limit = _CHUNK_BYTES.get(rows_ND.device.type, _CHUNK_BYTES["cpu"])
    step = max(1, limit // (8 * max(1, rows_ND.shape[1])))
    for start in range(0, rows_ND.shape[0], step):
        yield start, min(start + step, rows_ND.shape[0])


def _doubles(rows_ND: Tensor) -> Tensor:
    """A float64 copy, on the CPU where the device (Apple's) has no float64."""
    on_device = rows_ND.cpu() if rows_ND.device.type == "mps" else rows_ND
    return on_device.to(torch.float64, copy=True)


def _moments_(rows_ND: Tensor) -> Moments:
    """Of float64 rows, which are overwritten; shifting by the first row makes constants come out exactly."""
    n = rows_ND.shape[0]
    first_D = rows_ND[0].clone()
    offset_D = rows_ND.sub_(first_D).sum(0).div_(n)
    m2_D = rows_ND.sub_(offset_D).square_().sum(0)
    return Moments(n, (first_D + offset_D).cpu(), m2_D.cpu())


def _pair_statistics(base_ND: Tensor, finetuned_ND: Tensor) -> PairStatistics:
    base_ND, finetuned_ND = _doubles(base_ND), _doubles(finetuned_ND)
    delta_ND = finetuned_ND - base_ND
    norms_N3 = torch.stack([torch.linalg.vector_norm(x, dim=1) for x in (base_ND, finetuned_ND, delta_ND)], dim=1)
    lost_base = lost_finetuned = 0
    if not torch.isfinite(norms_N3).all():
        fine_base, fine_finetuned, _ = torch.isfinite(norms_N3).unbind(1)
        lost_base, lost_finetuned = int((~fine_base).sum()), int((~fine_finetuned).sum())
        kept = fine_base & fine_finetuned
        base_ND, finetuned_ND, delta_ND = base_ND[kept], finetuned_ND[kept], delta_ND[kept]
        norms_N3 = norms_N3[kept]
    none = PairStatistics.empty(base_ND.shape[1])
    if not len(norms_N3):
        return replace(none, n_not_finite_base=lost_base, n_not_finite_finetuned=lost_finetuned)
    cosine_N = _cosine_distances(norms_N3)
    return PairStatistics(
        base=_moments_(base_ND),
        finetuned=_moments_(finetuned_ND),
        delta=_moments_(delta_ND),
        norms=_moments_(norms_N3),
        cosine=_moments_(cosine_N[:, None]) if len(cosine_N) else none.cosine,
        n_not_finite_base=lost_base,
        n_not_finite_finetuned=lost_finetuned,
    )


def _cosine_distances(norms_N3: Tensor) -> Tensor:
    """½‖b/‖b‖ − f/‖f‖‖² = (‖δ‖² − (‖f‖ − ‖b‖)²) / (2‖b‖‖f‖), from the norms of b, f and δ, where b and f are not 0.

    Unlike 1 − cos this keeps its digits when b and f are nearly the same.
    """
    base_N, finetuned_N, delta_N = norms_N3[(norms_N3[:, :2] > 0).all(1)].unbind(1)
    gap_N = finetuned_N - base_N
    return ((delta_N - gap_N) * (delta_N + gap_N) / (2 * base_N * finetuned_N)).clamp_(0, 2)


def _cosine(x_D: Tensor, y_D: Tensor) -> float | None:
    norms = float(x_D.norm()) * float(y_D.norm())
    return max(-1.0, min(1.0, float(x_D @ y_D) / norms)) if norms > 0 and math.isfinite(norms) else None
