"""Where things happen in a decoder, found from the module itself: its layers, final norm, head and embedding.

One short forward pass with hooks shows which `ModuleList` the text runs through and what the head is given;
no architecture is named anywhere.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffing.core.errors import UserError

# What configs call the number of decoder blocks; encoder-decoder families count their encoder's under the first name.
_COUNTS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers", "num_layers")


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
    lists = _block_lists(module, trace)
    fitting = [m for m in lists if all(_streams(trace, block) for block in m) and _chained(trace, m)]
    if not fitting:
        raise UserError(_no_layers(name, module, trace, lists))
    layers = max(fitting, key=lambda m: sum(p.numel() for p in m.parameters()))
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


class _Call(NamedTuple):
    """One module's run: the tensors it was given (their addresses) and the tensor it gave."""

    module: nn.Module
    given: frozenset[int]
    output: Tensor


@dataclass(frozen=True)
class _Trace:
    """Runs in the order they finished, and the head's input. Outputs are held, so their addresses stay unique."""

    calls: tuple[_Call, ...]
    hidden_BTD: Tensor

    def of(self, module: nn.Module) -> _Call | None:
        return next((call for call in self.calls if call.module is module), None)


def _trace(module: nn.Module, head: nn.Module, ids_BT: Tensor) -> _Trace:
    calls: list[_Call] = []

    def note(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if (tensor := first_tensor(output)) is not None:
            given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            calls.append(_Call(m, frozenset(value.data_ptr() for value in given), tensor))

    with ExitStack() as stack:
        for m in module.modules():
            stack.callback(m.register_forward_hook(note, with_kwargs=True).remove)
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


def _block_lists(module: PreTrainedModel, trace: _Trace) -> list[nn.ModuleList]:
    """The lists of an announced length of which every block ran."""
    counts = _announced(module)
    ran = {id(call.module) for call in trace.calls}
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) in counts]
    return [m for m in lists if all(id(block) in ran for block in m)]


def _announced(module: PreTrainedModel) -> list[int]:
    """Numbers of blocks that the config may mean, the likeliest first."""
    config = module.config.get_text_config(decoder=True)
    values = [getattr(config, name, None) for name in _COUNTS]
    return [v for v in values if isinstance(v, int) and v > 0]


def _streams(trace: _Trace, block: nn.Module) -> bool:
    """Whether a block gave one vector for each token that the head was given."""
    call = trace.of(block)
    return call is not None and call.output.shape[:-1] == trace.hidden_BTD.shape[:-1]


def _chained(trace: _Trace, layers: nn.ModuleList) -> bool:
    """Whether blocks are given what the one before gave; lists of sublayers are not.

    Most links are enough: some models scale the stream between a few of their blocks (RWKV every sixth).
    """
    calls = [trace.of(block) for block in layers]
    links = [bool(a and b and a.output.data_ptr() in b.given) for a, b in pairwise(calls)]
    return 2 * sum(links) >= len(links)


def _no_layers(name: str, module: PreTrainedModel, trace: _Trace, lists: list[nn.ModuleList]) -> str:
    shapes = [call.output.shape for m in lists for block in m if (call := trace.of(block)) and call.output.dim() > 2]
    odd = next((shape for shape in shapes if shape[:-1] != trace.hidden_BTD.shape[:-1]), None)
    if odd is None:
        n_layers = next(iter(_announced(module)), 0)
        return (
            f"No list of {n_layers} decoder layers was found in model class {name}; "
            "this architecture is not supported, choose another model.id."
        )
    return (
        f"The decoder layers of model class {name} give {tuple(odd)} where its head is given "
        f"{tuple(trace.hidden_BTD.shape)}: its residual stream is not one vector per token; "
        "this architecture is not supported, choose another model.id."
    )


def _final_norm(trace: _Trace, layers: nn.ModuleList) -> nn.Module | None:
    """The first module after the blocks whose output is the head's input, and which makes it from the last block's."""
    inside = {id(m) for m in layers.modules()}
    last = trace.of(layers[-1])
    for m, _, out in trace.calls:
        if id(m) in inside or not _same_memory(out, trace.hidden_BTD) or last is None:
            continue
        with torch.no_grad():
            return m if _applies(m, layers, last.output, trace.hidden_BTD) else None
    return None


def _applies(norm: nn.Module, layers: nn.ModuleList, last_BTD: Tensor, hidden_BTD: Tensor) -> bool:
    if any(m is layers for m in norm.modules()) or last_BTD.shape != hidden_BTD.shape:
        return False
    again = norm(last_BTD.to(hidden_BTD.device))
    return isinstance(again, Tensor) and torch.allclose(again.float(), hidden_BTD.float(), rtol=1e-3, atol=1e-4)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.dtype == b.dtype
