"""Options of `weight_spectrum`."""

from typing import Literal

from pydantic import Field

from diffing.core.method import MethodConfig


class WeightSpectrumConfig(MethodConfig):
    """Options of the spectra of ΔW.

    Args:
        relative: Whether the base's weights are read, for relative norms and for how the base itself uses the
            directions of ΔW: `auto` when they are at hand, `true`, or `false` (an adapter is then all that is read;
            full finetunes are compared with their base in any case).
        n_values: Singular values kept for each matrix, the largest.
        n_vectors: Singular vectors saved, and read as tokens, for each matrix that writes into the residual stream.
        n_readout: Tokens read from both ends of each of these through the finetuned model's final norm and head; 0:
            none, and no model is loaded.
        n_random: Random directions for each of these matrices, the null of the token ranking: what the base's own
            matrix writes at random inputs, or plain random directions where it is not read.
        n_iterations: Passes of the block Krylov method over a matrix whose smaller side exceeds 1,024; smaller ones are
            decomposed exactly.
    """

    name: str = "weight_spectrum"
    relative: Literal["auto"] | bool = "auto"
    n_values: int = Field(default=16, ge=1)
    n_vectors: int = Field(default=2, ge=0)
    n_readout: int = Field(default=8, ge=0)
    n_random: int = Field(default=8, ge=2)
    n_iterations: int = Field(default=5, ge=1)
