"""In which model a latent lives, from its decoder norms; and whether that can be believed, from latent scaling."""

import numpy as np

from diffing.analysis.latents.sites import Input
from diffing.dictionaries.dictionary import Dictionary

FT_ONLY_BELOW = 0.1
BASE_ONLY_ABOVE = 0.9
SHARED = (0.4, 0.6)
NU_ERROR = 0.2
NU_RECONSTRUCTION = 0.5
THRESHOLDS = {
    "ft_only": f"relative norm < {FT_ONLY_BELOW}",
    "stronger_in_ft": f"{FT_ONLY_BELOW} ≤ relative norm < {SHARED[0]}",
    "shared": f"{SHARED[0]} ≤ relative norm ≤ {SHARED[1]}",
    "stronger_in_base": f"{SHARED[1]} < relative norm ≤ {BASE_ONLY_ABOVE}",
    "base_only": f"relative norm > {BASE_ONLY_ABOVE}",
}


def relative_norms(norms_FM: np.ndarray) -> np.ndarray:
    """½((‖d^b‖ − ‖d^f‖)/max(‖d^b‖, ‖d^f‖) + 1), (F,); ½ where both are 0."""
    base_F, finetuned_F = norms_FM[:, 0], norms_FM[:, -1]
    largest_F = np.maximum(base_F, finetuned_F)
    return 0.5 * ((base_F - finetuned_F) / np.where(largest_F > 0, largest_F, 1) + 1)


def tag(relative_norm: float | None, is_dead: bool) -> str:
    """dead, ft_only, stronger_in_ft, shared, stronger_in_base or base_only (`THRESHOLDS`); difference: of δ itself."""
    if is_dead:
        return "dead"
    if relative_norm is None:
        return "difference"
    if relative_norm < FT_ONLY_BELOW:
        return "ft_only"
    if relative_norm > BASE_ONLY_ABOVE:
        return "base_only"
    if SHARED[0] <= relative_norm <= SHARED[1]:
        return "shared"
    return "stronger_in_ft" if relative_norm < SHARED[0] else "stronger_in_base"


def tag_names(dictionary: Dictionary, kind: Input, alive_F: np.ndarray) -> list[str]:
    """Tag of every latent of a dictionary."""
    relative_F = relative_norms(dictionary.norms_FM().detach().double().cpu().numpy())
    return [
        tag(None if kind == "difference" else float(r), not alive) for r, alive in zip(relative_F, alive_F, strict=True)
    ]


def verdict(tag: str, nu_error: float, nu_reconstruction: float) -> str | None:
    """Whether an ft_only latent really is: specific, shrunk or decoupled; None for others and where ν is unknown.

    Source: the thresholds of Minder, Dumas et al. 2025, section 4.
    """
    if tag != "ft_only" or np.isnan(nu_error) or np.isnan(nu_reconstruction):
        return None
    if abs(nu_error) >= NU_ERROR:
        return "shrunk"
    return "decoupled" if abs(nu_reconstruction) >= NU_RECONSTRUCTION else "specific"
