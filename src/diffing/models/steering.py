"""Steering: a vector added to the residual stream after one block, at chosen positions."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from diffing.core.errors import UserError
from diffing.models.handle import ModelHandle
from diffing.models.stream_hook import stream_changed

Where = Literal["prompt", "all", "fading"]


@dataclass(frozen=True, eq=False)
class Steering:
    """What is added to the residual stream, where.

    Args:
        layer: The block after which it is added.
        vector_D: What is added, in the stream's own units.
        where: `prompt`: at the prompt's tokens; `all`: at generated tokens too; `fading`: at the prompt's tokens, and
            at the n-th generated token (from 1) its share max(0, 1 − n / fade_tokens).
        fade_tokens: After so many generated tokens nothing is left; read by `fading` only.
        skip_first_tokens: Leading positions that are never steered (attention sinks).

    Raises:
        UserError: The vector is not one finite vector, or another value makes no sense.
    """

    layer: int
    vector_D: Tensor
    where: Where
    fade_tokens: int = 32
    skip_first_tokens: int = 1

    def __post_init__(self) -> None:
        if self.vector_D.dim() != 1:
            raise UserError(f"The steering vector has shape {tuple(self.vector_D.shape)}; give one vector, shape (D,).")
        n_bad = int((~torch.isfinite(self.vector_D)).sum())
        if n_bad:
            raise UserError(
                f"The steering vector holds NaN or infinite values in {n_bad} of its {len(self.vector_D)} entries; "
                "choose another vector, or a smaller strength."
            )
        if self.where not in get_args(Where):
            raise UserError(f"Steering where={self.where!r} is unknown; give one of {', '.join(get_args(Where))}.")
        if self.fade_tokens < 1:
            raise UserError(f"fade_tokens is {self.fade_tokens}; give 1 or more.")
        if self.skip_first_tokens < 0:
            raise UserError(f"skip_first_tokens is {self.skip_first_tokens}; give 0 or more.")


def check_layer(handle: ModelHandle, layer: int) -> None:
    """Raises UserError: The model has no block `layer`."""
    n_layers = len(handle.sites.layers)
    if not 0 <= layer < n_layers:
        raise UserError(f"Layer {layer} is out of range: the model has {n_layers} layers; give 0 to {n_layers - 1}.")


def steering_scales(steering: Steering, first_position: int, n_tokens: int, n_prompt: int) -> Tensor:
    """The share of the vector that each position gets, shape (n_tokens,), float32.

    Args:
        steering: Where it is added.
        first_position: Position in the whole sequence of the first of these tokens.
        n_tokens: How many follow each other.
        n_prompt: Tokens of the prompt; later positions are generated ones.
    """
    position_T = torch.arange(first_position, first_position + n_tokens)
    generated_T = (position_T - n_prompt + 1).clamp_min(0).float()
    after_T = {
        "prompt": (generated_T == 0).float(),
        "all": torch.ones(n_tokens),
        "fading": (1 - generated_T / steering.fade_tokens).clamp_min(0),
    }[steering.where]
    return after_T * (position_T >= steering.skip_first_tokens)


@dataclass(frozen=True, eq=False)
class SteeredRow:
    """One row of a batch: what is added to it, if anything, and the number of its prompt's tokens."""

    steering: Steering | None
    n_prompt: int


@contextmanager
def steered(handle: ModelHandle, steering: Steering, first_position: int, n_prompt: int) -> Iterator[None]:
    """Within the block every forward pass of the handle's module is steered, all rows alike; see `steered_rows`.

    Args:
        handle: Whose module.
        steering: What is added, where.
        first_position: Position in the whole sequence of the first token of the forward pass (cached ones are not
            part of it).
        n_prompt: Tokens of the prompt.
    """
    with steered_rows(handle, [SteeredRow(steering, n_prompt)], first_position):
        yield


@contextmanager
def steered_rows(handle: ModelHandle, rows: Sequence[SteeredRow], first_position: int) -> Iterator[None]:
    """Within the block every forward pass of the handle's module is steered; afterwards no hook is left.

    The module may serve several handles: keep the block to one forward pass, and threads apart by a lock.
    Hooks that are set inside the block, such as `capture`'s, see the steered stream.

    Args:
        handle: Whose module.
        rows: Of each row of the batch; one alone is of all.
        first_position: Position in the whole sequence of the first token of the forward pass.

    Raises:
        UserError: The model has no such layer, or, from the forward pass, a vector does not fit its width.
    """
    with ExitStack() as stack:
        for layer in sorted({row.steering.layer for row in rows if row.steering is not None}):
            check_layer(handle, layer)
            change = partial(_steered, layer, rows, first_position)
            stack.enter_context(stream_changed(handle.sites.layers[layer], change))
        yield


def _steered(layer: int, rows: Sequence[SteeredRow], first_position: int, stream_BTD: Tensor) -> Tensor | None:
    assert stream_BTD.dim() == 3, "a block's output is (B, T, D)"
    added_BTD = _added(layer, rows, first_position, stream_BTD)
    return None if added_BTD is None else (stream_BTD.to(added_BTD.dtype) + added_BTD).to(stream_BTD.dtype)


def _added(layer: int, rows: Sequence[SteeredRow], first_position: int, stream_BTD: Tensor) -> Tensor | None:
    """What is added to each row and position, in at least float32, so that the sum is rounded once; None: nothing."""
    n_tokens, width = stream_BTD.shape[1:]
    scale_BT = torch.zeros(len(rows), n_tokens)
    vector_BD = torch.zeros(len(rows), width, dtype=torch.promote_types(stream_BTD.dtype, torch.float32))
    for b, row in enumerate(rows):
        if row.steering is not None and row.steering.layer == layer:
            check_width(row.steering, width)
            scale_BT[b] = steering_scales(row.steering, first_position, n_tokens, row.n_prompt)
            vector_BD[b] = row.steering.vector_D
    if not scale_BT.any():
        return None
    scale_BT, vector_BD = scale_BT.to(stream_BTD.device, vector_BD.dtype), vector_BD.to(stream_BTD.device)
    return scale_BT[:, :, None] * vector_BD[:, None]


def check_width(steering: Steering, width: int) -> None:
    """Raises UserError: The vector is not as wide as the residual stream."""
    if len(steering.vector_D) != width:
        raise UserError(
            f"The steering vector has {len(steering.vector_D)} entries and the residual stream after layer "
            f"{steering.layer} has {width}; choose a vector that was measured on this model."
        )
