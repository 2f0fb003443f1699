"""Mean and covariance of rows in one pass, exact however the rows are cut.

Everything is float64. Parts are merged with the parallel formula of Chan, Golub and LeVeque, "Updating Formulae and a
Pairwise Algorithm for Computing Sample Variances" (1979), with outer products in place of squares.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_BYTES = 2**25


@dataclass(frozen=True, eq=False)
class Covariance:
    """Number, mean and scatter of rows.

    Args:
        n: Rows.
        mean_D: Mean, float64 on the CPU; zeros when there are no rows.
        m2_DD: Σ (x − mean)(x − mean)ᵀ, likewise.
    """

    n: int
    mean_D: Tensor
    m2_DD: Tensor

    @classmethod
    def empty(cls, width: int) -> "Covariance":
        """Of no rows."""
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64))

    @classmethod
    def of(cls, rows_ND: Tensor) -> "Covariance":
        """Of the rows of a floating-point tensor on any device, which must be finite."""
        found = cls.empty(rows_ND.shape[1])
        step = max(1, _CHUNK_BYTES // (8 * max(1, rows_ND.shape[1])))
        for start in range(0, len(rows_ND), step):
            found = found.merge(_of_chunk(rows_ND[start : start + step]))
        return found

    def merge(self, other: "Covariance") -> "Covariance":
        """Of the rows of both."""
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        gap_D = other.mean_D - self.mean_D
        m2_DD = (self.m2_DD + other.m2_DD).addr_(gap_D, gap_D, alpha=self.n * other.n / n)
        return Covariance(n, self.mean_D + gap_D * (other.n / n), m2_DD)

    @property
    def centred_DD(self) -> Tensor:
        """E[(x − E x)(x − E x)ᵀ], divided by n (ddof=0); zeros when there are no rows."""
        return self.m2_DD / max(self.n, 1)

    @property
    def uncentred_DD(self) -> Tensor:
        """E[x xᵀ]."""
        return self.centred_DD.addr_(self.mean_D, self.mean_D)


def _of_chunk(rows_ND: Tensor) -> Covariance:
    """Shifting by the first row makes constants come out exactly; on the CPU where the device has no float64."""
    on_device = rows_ND.cpu() if rows_ND.device.type == "mps" else rows_ND
    doubles_ND = on_device.to(torch.float64, copy=True)
    first_D = doubles_ND[0].clone()
    offset_D = doubles_ND.sub_(first_D).mean(0)
    doubles_ND.sub_(offset_D)
    return Covariance(len(doubles_ND), (first_D + offset_D).cpu(), (doubles_ND.T @ doubles_ND).cpu())
