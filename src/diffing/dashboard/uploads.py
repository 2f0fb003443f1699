"""Vectors that a user uploads: safetensors alone, checked before anything is made of them."""

from typing import TYPE_CHECKING

from diffing.core.errors import UserError, one_line

if TYPE_CHECKING:
    from torch import Tensor

MOST_BYTES = 64 * 2**20
_LISTED = 5


def uploaded_vectors(name: str, content: bytes) -> "dict[str, Tensor]":
    """The tensors of an uploaded file that are vectors, float32, by name.

    Args:
        name: The file's name, for messages.
        content: Its bytes.

    Raises:
        UserError: It is too large, no safetensors file, or holds no finite vector.
    """
    if len(content) > MOST_BYTES:
        raise UserError(f"{name} has {len(content) / 2**20:.0f} MiB; at most {MOST_BYTES // 2**20} MiB are read.")
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{name} is no safetensors file ({one_line(error, 120)}); save the vector as one.") from None
    vectors = {k: v.reshape(-1).float() for k, v in tensors.items() if _is_vector(v)}
    if not vectors:
        shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in list(tensors.items())[:_LISTED]) or "nothing"
        raise UserError(f"{name} holds no vector of floating-point numbers; it holds {shapes}.")
    bad = [k for k, v in vectors.items() if not torch.isfinite(v).all() or not v.any()]
    good = {k: v for k, v in vectors.items() if k not in bad}
    if not good:
        raise UserError(f"{name}: the vector {bad[0]} is zero or holds NaN or infinite values; give another.")
    return good


def _is_vector(tensor: "Tensor") -> bool:
    return tensor.is_floating_point() and tensor.numel() > 1 and tensor.numel() == max(tensor.shape, default=0)
