"""What a vector of the residual stream says through a model's final norm and head: the logit lens.

Source: nostalgebraist, interpreting GPT: the logit lens (2020); softmax(transform(head(norm(v)))).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffing.core.errors import UserError
from diffing.models.handle import ModelHandle

_LOGIT_BYTES = 2**26
_COPIES = 2


@dataclass(frozen=True, eq=False)
class Readings:
    """The likeliest tokens of each vector, likeliest first.

    Args:
        ids_NK: Token ids.
        probabilities_NK: Their probabilities, float32.
    """

    ids_NK: np.ndarray
    probabilities_NK: np.ndarray


def has_lens(handle: ModelHandle) -> bool:
    """Whether the model's final norm and head are known well enough for `logit_lens`."""
    return handle.sites.final_norm is not None and handle.transform is not None


def logit_lens(handle: ModelHandle, vectors_ND: Float[Tensor, "N D"], k: int) -> Readings:
    """The k tokens that each vector makes likeliest, as if it were the last block's output.

    The tokens that a vector makes least likely are not those of its negative; both are asked for by their own vector.
    A norm that divides by the vector's size has an ε: give vectors whose mean square is not below about 0.01. A vector
    of zeros reads as whatever the model gives for it.

    Args:
        handle: The model that reads.
        vectors_ND: One vector a row.
        k: Tokens for each vector; of a smaller vocabulary, all.

    Raises:
        UserError: A vector does not fit the model or is not finite, or the model's read-out is not known.
    """
    norm, vectors_ND = _checked(handle, vectors_ND)
    step = max(1, _LOGIT_BYTES // (_COPIES * 4 * handle.vocab_size))
    ids, probabilities = [], []
    with handle.active(), torch.no_grad():
        for start in range(0, len(vectors_ND), step):
            hidden_ND = norm(vectors_ND[start : start + step])
            logits_NV = handle.logits(hidden_ND.to(device_of(handle.sites.head, hidden_ND.device)))
            top = logits_NV.topk(min(k, logits_NV.shape[1]))
            ids.append(top.indices.cpu())
            probabilities.append((top.values - logits_NV.logsumexp(-1, keepdim=True)).exp().cpu())
    none = torch.empty(0, min(k, handle.vocab_size))
    return Readings(
        torch.cat(ids or [none.long()]).numpy(), torch.cat(probabilities or [none]).numpy()
    )  # fmt: skip


def mean_lens(handle: ModelHandle, vectors_ND: Float[Tensor, "N D"], weights_MN: Float[Tensor, "M N"]) -> Tensor:
    """Weighted sums of what vectors say about every token, float64, shape (M, V); no (N, V) table is held.

    Args:
        handle: The model that reads.
        vectors_ND: One vector a row, as for `logit_lens`.
        weights_MN: For each of M sums, how much each vector's distribution counts.

    Raises:
        UserError: As for `logit_lens`.
    """
    norm, vectors_ND = _checked(handle, vectors_ND)
    step = max(1, _LOGIT_BYTES // (_COPIES * 4 * handle.vocab_size))
    total_MV = torch.zeros(len(weights_MN), handle.vocab_size, dtype=torch.float64)
    with handle.active(), torch.no_grad():
        for start in range(0, len(vectors_ND), step):
            hidden_ND = norm(vectors_ND[start : start + step])
            logits_NV = handle.logits(hidden_ND.to(device_of(handle.sites.head, hidden_ND.device)))
            probabilities_NV = logits_NV.softmax(-1).cpu().double()
            total_MV += weights_MN[:, start : start + step].double() @ probabilities_NV
    return total_MV


def _checked(handle: ModelHandle, vectors_ND: Tensor) -> tuple[nn.Module, Tensor]:
    """The final norm, and the vectors in the model's dtype and on the norm's device."""
    norm = known_norm(handle, "set the option of read-out tokens to 0")
    width = handle.module.config.get_text_config(decoder=True).hidden_size
    if vectors_ND.shape[1] != width:
        raise UserError(
            f"A vector of {vectors_ND.shape[1]} numbers cannot be read by a model whose residual stream has {width}; "
            "choose one that was measured on this model."
        )
    given_ND = vectors_ND.to(device_of(norm, handle.device), handle.module.dtype)
    if not torch.isfinite(given_ND).all():
        raise UserError(
            f"A vector holds NaN or infinite values in {str(handle.module.dtype).removeprefix('torch.')} and cannot "
            "be read as tokens; choose another, or scale it down."
        )
    return norm, given_ND


def known_norm(handle: ModelHandle, remedy: str) -> nn.Module:
    """The final norm of a model whose read-out is known.

    Args:
        handle: The model.
        remedy: What helps where it is not.

    Raises:
        UserError: The model's read-out is not known.
    """
    norm = handle.sites.final_norm
    if norm is None or handle.transform is None:
        raise UserError(
            f"Model class {type(handle.module).__name__} has no read-out that could be verified, so that vectors "
            f"cannot be read as tokens; {remedy}."
        )
    return norm


def device_of(module: nn.Module, otherwise: torch.device) -> torch.device:
    """Where a module's weights lie; `otherwise` where it has none."""
    parameter = next(module.parameters(), None)
    return otherwise if parameter is None else parameter.device
