"""The attention and the MLP inside a decoder block, told by the names and structure that transformers gives them."""

from collections.abc import Iterator
from typing import Literal

from torch import nn

from diffing.core.errors import UserError
from diffing.core.layers import Site, Slot

# What mixes tokens, by name: attention first, then what stands in its place in recurrent and convolutional blocks.
_ATTENTION = (("attn", "attention", "mixer"), ("mamba", "temporal_block", "conv", "mlstm"))
_ELSEWHERE = ("norm", "cross", "encoder_attn")
_MLP = ("mlp", "feed_forward", "ffn", "moe", "feedforward")


def site_module(layers: nn.ModuleList, slot: Slot) -> nn.Module:
    """The module whose output the slot is: the block itself, its attention, or its MLP.

    Raises:
        UserError: The block has no such module, or several.
    """
    block = layers[slot.layer]
    if slot.site == "residual":
        return block
    found = candidates(block, slot.site)
    if len(found) == 1:
        return found[0]
    kinds = sorted({type(child).__name__ for child in block.children()})
    problem = "has no single module that is" if not found else f"has {len(found)} modules that could be"
    raise UserError(
        f"Layer {slot.layer} ({type(block).__name__}: {', '.join(kinds)}) {problem} its {slot.site}; "
        "use preprocessing.sites=[residual], or other layers."
    )


def candidates(block: nn.Module, site: Site) -> list[nn.Module]:
    """Direct children of a block that are its attention or MLP; norms, dropouts and cross-attention are not.

    A list in a block stands for its members.
    """
    for names in _ATTENTION if site == "attention" else (_MLP,):
        if found := [module for module in _named(block, names) if any(True for _ in module.children())]:
            return found
    return []


def site_named(name: str) -> Literal["attention", "mlp"] | None:
    """Which of the two a child of a block is by its name; None for norms and whatever else."""
    lower = name.lower()
    if any(n in lower for n in _ELSEWHERE):
        return None
    if any(n in lower for names in _ATTENTION for n in names):
        return "attention"
    return "mlp" if any(n in lower for n in _MLP) else None


def _named(block: nn.Module, names: tuple[str, ...]) -> Iterator[nn.Module]:
    for name, child in block.named_children():
        lower = name.lower()
        if any(n in lower for n in names) and not any(n in lower for n in _ELSEWHERE):
            yield from child if isinstance(child, nn.ModuleList) else (child,)
