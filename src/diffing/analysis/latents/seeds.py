"""Which latents come back when the dictionary is trained again from other initial weights."""

import numpy as np
import torch

from diffing.dictionaries.dictionary import Dictionary

SAME_COSINE = 0.7
_ROWS_AT_ONCE = 4096


@torch.no_grad()
def best_matches(dictionary: Dictionary, other: Dictionary, alive_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most similar live latent of another dictionary, and the cosine of the decoder rows over all sites, (F,) each.

    Args:
        dictionary: Whose latents are matched.
        other: The other one, on the same device.
        alive_F: Which latents of the other one are alive; cosine NaN and match −1 where none is.
    """
    n = dictionary.spec.n_latents
    if not alive_F.any():
        return np.full(n, -1), np.full(n, np.nan)
    mine_FE, theirs_FE = (_unit_rows(d) for d in (dictionary, other))
    dead_F = torch.from_numpy(~alive_F).to(theirs_FE.device)
    match, cosine = [], []
    for start in range(0, n, _ROWS_AT_ONCE):
        best = (mine_FE[start : start + _ROWS_AT_ONCE] @ theirs_FE.T).masked_fill(dead_F, -2).max(1)
        match.append(best.indices.cpu())
        cosine.append(best.values.cpu())
    return torch.cat(match).numpy(), torch.cat(cosine).double().numpy()


def _unit_rows(dictionary: Dictionary) -> torch.Tensor:
    rows_FE = dictionary.decoder_FMD.detach().flatten(1)
    return rows_FE / rows_FE.norm(dim=1, keepdim=True).clamp_min(1e-12)
