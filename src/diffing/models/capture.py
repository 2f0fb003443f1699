"""Activations of chosen slots, read by hooks in one forward pass that ends once the last of them is there."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.models.block_sites import site_module
from diffing.models.handle import ModelHandle
from diffing.models.sites import first_tensor


class AllCaptured(Exception):
    """Ends a forward pass: nothing after the deepest slot is computed."""


def capture(
    handle: ModelHandle, ids_BT: Tensor, slots: Iterable[Slot], lengths: Sequence[int] | None = None
) -> dict[Slot, Tensor]:
    """What each slot gives for `ids_BT`, shape (B, T, D) each; layers after the deepest slot, and the head, do not run.

    Args:
        handle: The model.
        ids_BT: Token ids, padded on the right; states at padding are meaningless.
        slots: Where to read. The residual stream of the last block is read before the final norm.
        lengths: Tokens of each row; read only by models for which padding matters.

    Raises:
        UserError: A block has no single attention or MLP module where one is asked for, or it gives no (B, T, D).
    """
    ids_BT = ids_BT.to(handle.device)
    modules = {slot: site_module(handle.sites.layers, slot) for slot in slots}
    mask_BT = handle.mask(ids_BT, lengths)
    given = {} if mask_BT is None else {"attention_mask": mask_BT}
    found: dict[Slot, Tensor] = {}
    with handle.active(), _hooks(modules, found, ids_BT.shape), torch.no_grad():
        try:
            handle.module(input_ids=ids_BT, use_cache=False, **given)
        except AllCaptured:
            return found
    absent = next(slot for slot in modules if slot not in found)
    raise UserError(
        f"{absent.name} never ran in model class {type(handle.module).__name__}; choose another layer or site."
    )


@contextmanager
def _hooks(modules: dict[Slot, nn.Module], found: dict[Slot, Tensor], shape_BT: torch.Size) -> Iterator[None]:
    def keep(slot: Slot) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found[slot] = _by_token(slot, output, shape_BT)
            if len(found) == len(modules):
                raise AllCaptured

        return hook

    with ExitStack() as stack:
        for slot, module in modules.items():
            stack.callback(module.register_forward_hook(keep(slot)).remove)
        yield


def _by_token(slot: Slot, output: Any, shape_BT: torch.Size) -> Tensor:
    """What a module returned, as (B, T, D); some mixtures of experts give all tokens in one row of (B·T, D)."""
    tensor = first_tensor(output)
    if tensor is None:
        raise UserError(f"{slot.name} gives {type(output).__name__}, not a tensor; choose another site.")
    if tensor.dim() == 2 and tensor.shape[0] == shape_BT.numel():
        tensor = tensor.unflatten(0, tuple(shape_BT))
    if tensor.dim() != 3 or tensor.shape[:2] != shape_BT:
        raise UserError(
            f"{slot.name} gives shape {tuple(tensor.shape)} for token ids of shape {tuple(shape_BT)}, "
            "not one vector per token; choose another layer or site."
        )
    return tensor
