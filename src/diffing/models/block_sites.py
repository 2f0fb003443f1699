"""The attention and the MLP inside a decoder block, told by the names and structure that transformers gives them."""

from torch import nn

from diffing.core.errors import UserError
from diffing.core.layers import Site, Slot

_ATTENTION = ("attn", "attention", "mixer")
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
    """Direct children of a block that are its attention or MLP; norms, dropouts and the like are not."""
    wanted = _ATTENTION if site == "attention" else _MLP
    return [
        child
        for name, child in block.named_children()
        if any(w in name.lower() for w in wanted) and any(True for _ in child.children()) and "norm" not in name.lower()
    ]
