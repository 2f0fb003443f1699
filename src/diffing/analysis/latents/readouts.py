"""What latents' decoder rows say through the finetuned model's final norm and head."""

import numpy as np
import torch

from diffing.analysis.context import RunContext
from diffing.analysis.latents.results import LatentTokenRow
from diffing.analysis.lenses import has_lens, logit_lens
from diffing.analysis.token_text import token_strings
from diffing.core.layers import Slot
from diffing.dictionaries.dictionary import Dictionary

SIDES = (("promoted", 1.0), ("suppressed", -1.0))


def latent_tokens(
    context: RunContext, dictionary: Dictionary, slot: Slot, shown: np.ndarray, n_tokens: int
) -> tuple[list[LatentTokenRow], list[str]]:
    """Rows of `latent_tokens.parquet`, and a sentence where nothing can be read.

    Rows are read at mean square 1, by the finetuned model; those of length 0 are left out. Only the residual stream is
    read: what attention and MLP give is not what the head reads.
    """
    if not n_tokens or not len(shown) or slot.site != "residual":
        return [], [] if slot.site == "residual" or not n_tokens else [
            f"{slot.name} is not read out: not the residual stream."
        ]
    handle = context.pair.finetuned
    if not has_lens(handle):
        return [], ["The finetuned model's read-out is not known; no tokens are read."]
    rows_CD = dictionary.decoder_FMD.detach()[torch.from_numpy(shown), -1].cpu().double()
    norm_C = rows_CD.norm(dim=1)
    has_length = norm_C > 1e-6 * float(norm_C.max())
    rows_CD = rows_CD[has_length] * (rows_CD.shape[1] ** 0.5 / norm_C[has_length])[:, None]
    latents = shown[has_length.numpy()].tolist()
    found: list[LatentTokenRow] = []
    for side, sign in SIDES:
        readings = logit_lens(handle, (sign * rows_CD).float(), n_tokens)
        names = token_strings(handle.tokenizer, np.unique(readings.ids_NK).tolist())
        for latent, ids, shares in zip(
            latents, readings.ids_NK.tolist(), readings.probabilities_NK.tolist(), strict=True
        ):
            found += [
                LatentTokenRow(latent, side, rank, i, names[i], p)
                for rank, (i, p) in enumerate(zip(ids, shares, strict=True))
            ]
    return found, []
