"""What training begins with: the scale of the data, and weights before the first step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffing.core.errors import UserError
from diffing.core.seeds import generator
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.spec import DictionarySpec

Norm = Literal["per_model", "shared"]
_CONSTANT = 1e-10


@dataclass(frozen=True, eq=False)
class DataScale:
    """Size and centre of raw activations.

    Args:
        scale_M: s_m = √(D / E‖x^m‖²): what raw activations are multiplied by.
        mean_MD: E x̃, in normalised units.
        variance_M: tr Cov(x̃^m) = E‖x̃^m − E x̃^m‖².
    """

    scale_M: Tensor
    mean_MD: Tensor
    variance_M: Tensor

    @property
    def variance(self) -> float:
        """Σ_m tr Cov(x̃^m): what losses are divided by, so that they are 1 − FVE."""
        return float(self.variance_M.sum())

    @property
    def is_zero(self) -> bool:
        """Whether all activations of a site are 0."""
        return bool(((self.variance_M == 0) & (self.mean_MD == 0).all(1)).any())


def measure_scale(batches: Iterable[Tensor], norm: Norm = "per_model") -> DataScale:
    """Scale of the data in `batches` (N, M, D); rows that are not finite are left out. Sums are float64.

    Args:
        batches: Raw activations.
        norm: `per_model`: a factor for each site; `shared`: one for all, which keeps their relative size.

    Raises:
        UserError: There are no finite rows.
    """
    n, total_MD, squares_MD, first_MD = 0, None, None, None
    for batch_NMD in batches:
        rows_NMD = batch_NMD.detach().to("cpu", torch.float64)
        rows_NMD = rows_NMD[torch.isfinite(rows_NMD).flatten(1).all(1)]
        if not len(rows_NMD):
            continue
        if first_MD is None:
            first_MD = rows_NMD[0].clone()
            total_MD, squares_MD = torch.zeros_like(first_MD), torch.zeros_like(first_MD)
        assert total_MD is not None
        assert squares_MD is not None
        n += len(rows_NMD)
        shifted_NMD = rows_NMD - first_MD
        total_MD += shifted_NMD.sum(0)
        squares_MD += shifted_NMD.square().sum(0)
    if first_MD is None or total_MD is None or squares_MD is None:
        raise UserError("No activation is finite: nothing can be learned; check the weights, or use a wider dtype.")
    variance_M = (squares_MD / n - (total_MD / n).square()).clamp_min(0).sum(1)
    mean_MD = first_MD + total_MD / n
    return _scale(mean_MD, variance_M, norm)


def _scale(mean_MD: Tensor, variance_M: Tensor, norm: Norm) -> DataScale:
    mean_square_M = variance_M + mean_MD.square().sum(1)
    if norm == "shared":
        mean_square_M = mean_square_M.mean().expand_as(mean_square_M)
    scale_M = torch.where(mean_square_M > 0, mean_MD.shape[1] / mean_square_M, 1.0).sqrt()
    return DataScale(scale_M.float(), (mean_MD * scale_M[:, None]).float(), (variance_M * scale_M.square()).float())


def refuse_constant(scale: DataScale, names: Sequence[str]) -> None:
    """Refuse data from which nothing can be learned.

    Raises:
        UserError: The activations of a site are all zero, or all the same.
    """
    mean_square_M = scale.variance_M + scale.mean_MD.square().sum(1)
    bad: list[int] = (scale.variance_M <= _CONSTANT * mean_square_M).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"The activations ({', '.join(names[m] for m in bad)}) are the same at every token: there is nothing to "
            "learn; check the weights, or choose another layer."
        )


def initial_dictionary(spec: DictionarySpec, scale: DataScale, seed: int, row_norm: float = 1.0) -> Dictionary:
    """Random decoder rows, the same at every site; encoder = decoder; b_d = the mean of the data.

    Args:
        spec: Shape and kind.
        scale: Of the data.
        seed: Of the draw.
        row_norm: Length of a row over all sites together; rows of `unit_decoder` have length 1 in any case.
    """
    rng = generator(seed, "dictionary")
    rows_FD = torch.from_numpy(rng.standard_normal((spec.n_latents, spec.width), dtype=np.float32))
    rows_FD = rows_FD / rows_FD.norm(dim=1, keepdim=True)
    dictionary = Dictionary(spec, scale.scale_M)
    lives_FM = dictionary.lives_FM
    length_F = (1.0 if spec.unit_decoder else row_norm) / lives_FM.sum(1).sqrt()
    with torch.no_grad():
        rows_FMD = rows_FD[:, None] * (lives_FM * length_F[:, None])[:, :, None]
        dictionary.decoder_FMD.copy_(rows_FMD)
        dictionary.encoder_FMD.copy_(rows_FMD)
        dictionary.decoder_bias_MD.copy_(scale.mean_MD)
    return dictionary
