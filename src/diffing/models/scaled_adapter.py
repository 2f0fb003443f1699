"""An amplified adapter as a plain PEFT folder: each module's factor is folded into the weights.

`adapter_config.json` stays as it is, so that whatever serves the adapter serves the scaled one.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from diffing.core.amplification import AmplificationSpec, Place
from diffing.core.errors import UserError
from diffing.models.adapters import CONFIG, WEIGHTS, read_config, read_weights
from diffing.models.amplifying import Amplifier, locator
from diffing.models.pair import ModelPair
from diffing.models.plan import resolve_variant

_PREFIX = "base_model.model."
# ΔW is linear in each of these; the other factors of a module stay as they are.
_SCALED = ("lora_B", "lora_embedding_B", "hada_w1_a", "lokr_w1", "lokr_w1_a")
_FACTORS = ("lora_", "hada_", "lokr_")


def check_exportable(pair: ModelPair, spec: AmplificationSpec) -> None:
    """Refuse what has no scaled adapter.

    Raises:
        UserError: The pair is no adapter's, its change cannot be scaled, or a rule speaks of no changed module.
    """
    if pair.facts["kind"] != "adapter":
        what = "a full finetune" if pair.facts["kind"] == "model" else f"null_pair={pair.spec.null_pair}"
        raise UserError(
            f"diffing.method.export_factor writes a scaled adapter and {what} is none; leave it out, and name the "
            "scaled pair with organism.amplification instead."
        )
    _folder(pair)
    with Amplifier(pair).set(spec, "diffing.method.export_factor"):
        pass


def write_scaled_adapter(pair: ModelPair, spec: AmplificationSpec, folder: Path) -> None:
    """Write the pair's adapter with its change scaled, over what the pair was loaded with.

    Args:
        pair: Its finetuned model is an adapter; see `check_exportable`.
        spec: The factors.
        folder: Made; `adapter_config.json` and `adapter_model.safetensors` go there.
    """
    source = _folder(pair)
    base = pair.base.module
    place_of, n_layers = locator(base, pair.base.sites.layers), len(pair.base.sites.layers)
    specs = [s for s in (pair.spec.amplification, spec) if s is not None]
    weights = {}
    for key, tensor in read_weights(source, "that is exported").items():
        place, name = _split(key, place_of)
        factor = 1.0
        for s in specs:
            factor *= s.factor_of(place, n_layers)
        weights[key] = _scaled(tensor, name, factor, base, place).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / CONFIG, folder / CONFIG)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def _folder(pair: ModelPair) -> Path:
    assert pair.spec.finetuned is not None
    folder = resolve_variant(pair.spec.finetuned, pair.spec.model).folder
    config = read_config(folder, pair.spec.finetuned.id)
    if config.get("use_dora"):
        raise UserError("diffing.method.export_factor cannot scale a DoRA: it is not linear in a factor.")
    return folder


def _split(key: str, place_of: Callable[[str], Place]) -> tuple[Place, str]:
    """Of a tensor's name in the file: the module it belongs to, and its name within."""
    path = key.removeprefix(_PREFIX)
    at = min((i for f in _FACTORS if (i := path.find(f".{f}")) >= 0), default=path.rfind("."))
    return place_of(path[:at]), path[at + 1 :]


def _scaled(tensor: Tensor, name: str, factor: float, base: nn.Module, place: Place) -> Tensor:
    """The tensor that scales its module's change by `factor`; float32 where that is needed to be exact."""
    if factor == 1:
        return tensor
    if name.partition(".")[0] in _SCALED:
        return tensor.float() * factor
    if name.startswith(_FACTORS):
        return tensor
    own = _module(base, place.path).state_dict()[name].cpu().float()
    return own + factor * (tensor.float() - own)


def _module(base: nn.Module, path: str) -> nn.Module:
    """The base's own module, also where an adapter stands in its place."""
    module = base.get_submodule(path)
    return getattr(module, "original_module", module)
