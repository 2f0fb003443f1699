"""Where things happen in a decoder, found from the module itself: its layers, final norm, head and embedding.

One short forward pass with hooks shows which `ModuleList` the text runs through and what the head is given;
no architecture is named anywhere.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffing.core.errors import UserError


@dataclass(frozen=True)
class Sites:
    """The places of a model that methods read or change.

    Args:
        layers: Decoder blocks, in order.
        final_norm: What is applied to the last block's output before the head; None where no single module is.
        head: The output embedding: hidden state after the final norm → raw logits.
        embed: The input embedding.
    """

    layers: nn.ModuleList
    final_norm: nn.Module | None
    head: nn.Module
    embed: nn.Module


class HeadReached(Exception):
    """Ends a forward pass at the head and carries what the head was about to be given."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__("head reached")
        self.hidden = hidden


def find_sites(module: PreTrainedModel, probe_ids_BT: Tensor) -> Sites:
    """Find the sites of `module` by one forward pass on `probe_ids_BT`.

    Raises:
        UserError: There is no output head or no list of decoder layers.
    """
    name = type(module).__name__
    head, embed = head_of(module), module.get_input_embeddings()
    trace = _trace(module, head, probe_ids_BT)
    layers = _decoder_layers(module, trace)
    if layers is None:
        n_layers = module.config.get_text_config(decoder=True).num_hidden_layers
        raise UserError(
            f"No list of {n_layers} decoder layers was found in model class {name}; "
            "this architecture is not supported, choose another model.id."
        )
    return Sites(layers=layers, final_norm=_final_norm(trace, layers), head=head, embed=embed)


def head_of(module: PreTrainedModel) -> nn.Module:
    """The output embedding.

    Raises:
        UserError: There is none.
    """
    head = module.get_output_embeddings()
    if not isinstance(head, nn.Module):
        name = type(module).__name__
        raise UserError(f"Model class {name} has no output head; only causal language models can be compared.")
    return head


@dataclass(frozen=True)
class _Trace:
    """Modules that ran, in the order they finished, with the tensor each gave; and the head's input."""

    calls: tuple[tuple[nn.Module, Tensor], ...]
    hidden_BTD: Tensor

    def output_of(self, module: nn.Module) -> Tensor | None:
        return next((out for m, out in self.calls if m is module), None)


def _trace(module: nn.Module, head: nn.Module, ids_BT: Tensor) -> _Trace:
    calls: list[tuple[nn.Module, Tensor]] = []

    def note(m: nn.Module, args: Any, output: Any) -> None:
        if (tensor := first_tensor(output)) is not None:
            calls.append((m, tensor))

    with ExitStack() as stack:
        for m in module.modules():
            stack.callback(m.register_forward_hook(note).remove)
        hidden = run_to_head(module, head, ids_BT)
    return _Trace(tuple(calls), hidden)


def run_to_head(module: nn.Module, head: nn.Module, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """What the head is given for `ids_BT`, shape (B, T, D); the head itself is not computed.

    Without a mask, right padding is left in: under causal attention it cannot reach earlier positions.
    """
    given = {} if mask_BT is None else {"attention_mask": mask_BT}
    with _stops_at(head), torch.no_grad():
        try:
            module(input_ids=ids_BT, use_cache=False, **given)
        except HeadReached as reached:
            return reached.hidden
    raise UserError(f"Model class {type(module).__name__} never calls its output head; it cannot be compared.")


@contextmanager
def _stops_at(head: nn.Module) -> Iterator[None]:
    def stop(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise HeadReached(args[0] if args else next(iter(kwargs.values())))

    handle = head.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def first_tensor(output: Any) -> Tensor | None:
    """The tensor a module returned, or the first of a tuple; None for anything else."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _decoder_layers(module: PreTrainedModel, trace: _Trace) -> nn.ModuleList | None:
    """The list of the right length whose every block ran and kept the stream's shape; the largest if several."""
    n_layers = module.config.get_text_config(decoder=True).num_hidden_layers
    ran = {id(m): out.shape for m, out in trace.calls}
    shape = trace.hidden_BTD.shape
    fitting = [
        m
        for m in module.modules()
        if isinstance(m, nn.ModuleList) and len(m) == n_layers and all(_streams(ran.get(id(b)), shape) for b in m)
    ]
    return max(fitting, key=lambda m: sum(p.numel() for p in m.parameters()), default=None)


def _streams(shape: torch.Size | None, hidden_shape: torch.Size) -> bool:
    return shape is not None and shape[:-1] == hidden_shape[:-1]


def _final_norm(trace: _Trace, layers: nn.ModuleList) -> nn.Module | None:
    """The first module after the blocks whose output is the head's input, and which makes it from the last block's."""
    inside = {id(m) for m in layers.modules()}
    last_BTD = trace.output_of(layers[-1])
    for m, out in trace.calls:
        if id(m) in inside or not _same_memory(out, trace.hidden_BTD) or last_BTD is None:
            continue
        with torch.no_grad():
            return m if _applies(m, last_BTD, trace.hidden_BTD) else None
    return None


def _applies(norm: nn.Module, last_BTD: Tensor, hidden_BTD: Tensor) -> bool:
    if list(norm.modules())[1:] or last_BTD.shape != hidden_BTD.shape:
        return False
    again = norm(last_BTD.to(hidden_BTD.device))
    return isinstance(again, Tensor) and torch.allclose(again.float(), hidden_BTD.float(), rtol=1e-3, atol=1e-4)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.dtype == b.dtype
