"""How far to steer along a latent: strengths in units of the latent's own maximum."""

from typing import NamedTuple

import torch
from torch import Tensor

from diffing.dictionaries.dictionary import Dictionary


class Raised(NamedTuple):
    """What is added to the finetuned model's stream, and what the latent's encoder makes of it.

    Args:
        vector_D: In raw units.
        rise: By how much the latent's pre-activation rises (normalised units, as activations are).
    """

    vector_D: Tensor
    rise: float


@torch.no_grad()
def raised(dictionary: Dictionary, latent: int, maximum: float, strength: float) -> Raised:
    """`strength` · maximum · d_j^ft in raw units, and the rise strength · maximum · ⟨w_j^ft, d_j^ft⟩.

    At strength 1 it is what the latent itself adds where it is strongest. The rise is exact whatever the stream is,
    since the encoder is linear before its ReLU; of a difference dictionary δ rises with the finetuned stream.

    Args:
        dictionary: Of a pair, or of a difference.
        latent: Its number.
        maximum: Its largest activation (`LatentRow.maximum`).
        strength: In units of the maximum; negative values lower it.
    """
    row_D, encoder_D = dictionary.decoder_FMD[latent, -1].double(), dictionary.encoder_FMD[latent, -1].double()
    added = strength * maximum
    vector_D = added * row_D / dictionary.scale_M[-1].double()
    return Raised(vector_D.float(), added * float(encoder_D @ row_D))
