"""Where in a model a weight belongs, told by its name and shape: no module is built to ask.

Names are data, the same for all architectures; shapes decide where names mean several things.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from diffing.models.block_sites import site_named

Part = Literal["attention", "mlp", "embedding", "head", "norm", "other"]
_WRAPPERS = ("base_model", "model", "transformer", "language_model", "text_model", "gpt_neox", "backbone", "decoder")
_EMBEDDING = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "embeddings", "embedding")
_POSITION = ("wpe", "embed_positions", "position_embeddings")
_HEAD = ("lm_head", "embed_out", "output", "head", "output_layer")
_NORM = ("norm", "ln_", "layernorm")
_LOOSE_MLP = ("fc1", "fc2")
# What writes into the residual stream, where its output is as wide as that.
_WRITERS = ("o_proj", "out_proj", "wo", "dense", "c_proj", "down_proj", "dense_4h_to_h", "fc2", "w2", "proj_out")
_OTHER_STACKS = ("visual", "vision", "audio", "encoder", "image")


def place_of(name: str) -> str:
    """A name without the words for whole models in front."""
    words = name.split(".")
    while len(words) > 2 and words[0] in _WRAPPERS:
        words = words[1:]
    return ".".join(words)


@dataclass(frozen=True)
class WeightPlace:
    """Where a weight belongs.

    Args:
        stack: The list of blocks it is in, such as `layers` or `visual.blocks`; "" outside of any.
        layer: The block; None outside of any.
        module: What it is inside the block, such as `self_attn.o_proj`; a bias keeps its `.bias`.
        part: Attention (or what mixes tokens in its place), MLP, embedding, head, norm, other.
    """

    stack: str
    layer: int | None
    module: str
    part: Part

    @property
    def label(self) -> str:
        """The name of its column in a map of layers: members of a list inside the block are one."""
        words = [w if not w.isdigit() else "*" for w in self.module.split(".")]
        inside = ".".join(words)
        return f"{self.stack}: {inside}" if any(s in self.stack for s in _OTHER_STACKS) else inside

    @property
    def is_decoder(self) -> bool:
        """Whether it is a part of the text decoder, not of a tower for images or sound."""
        return not any(s in f"{self.stack}.{self.module}" for s in _OTHER_STACKS)


def weight_place(name: str) -> WeightPlace:
    """The place of a weight by its name."""
    words = place_of(name).split(".")
    if words[-1] == "weight":
        words = words[:-1]
    at = next((i for i, w in enumerate(words) if w.isdigit() and 0 < i < len(words) - 1), None)
    if at is None:
        return WeightPlace("", None, ".".join(words), _outside(words))
    inside = words[at + 1 :]
    return WeightPlace(".".join(words[:at]), int(words[at]), ".".join(inside), _inside(inside))


def _outside(words: list[str]) -> Part:
    last = words[-2] if words[-1] == "bias" and len(words) > 1 else words[-1]
    if last in _POSITION:
        return "other"
    if last in _EMBEDDING:
        return "embedding"
    if last in _HEAD:
        return "head"
    return "norm" if _is_norm(last) else "other"


def _inside(words: list[str]) -> Part:
    modules = [w for w in words if w not in ("bias", "weight")]
    if modules and _is_norm(modules[-1]):
        return "norm"
    for word in modules:
        if (site := site_named(word)) is not None:
            return site
    return "mlp" if any(w in _LOOSE_MLP for w in modules) else "other"


def _is_norm(word: str) -> bool:
    return any(n in word.lower() for n in _NORM)


def writes_residual(place: WeightPlace, out_width: int, width: int) -> bool:
    """Whether a matrix's output is added to the residual stream: as wide as that, and of a name that says so.

    An embedding's rows are what the stream begins with.
    """
    if out_width != width or not place.is_decoder:
        return False
    if place.layer is None:
        return place.part == "embedding"
    return place.part in ("attention", "mlp") and place.module.rpartition(".")[2] in _WRITERS


def is_stored_transposed(shapes: Mapping[str, tuple[int, ...]], width: int) -> bool:
    """Whether a model's files hold its matrices as (in, out), as GPT-2's do.

    The MLP's last matrix tells: its output is as wide as the residual stream and its input is not.
    """
    for name, shape in shapes.items():
        place = weight_place(name)
        if place.part == "mlp" and len(shape) == 2 and place.module.rpartition(".")[2] in _WRITERS:
            if shape[0] == width and shape[1] != width:
                return False
            if shape[1] == width and shape[0] != width:
                return True
    return False
