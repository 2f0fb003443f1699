"""An attached adapter's change of the weights: whether there is any, merging it, switching it on and off."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffing.models.adapters import NAME
from diffing.models.quiet import quiet_transformers


def tuner_layers(peft_model: nn.Module) -> list[Any]:
    """The layers an adapter sits in (PEFT's `BaseTunerLayer`s, whose methods its types do not declare)."""
    return [m for m in peft_model.modules() if isinstance(m, BaseTunerLayer)]


def delta_is_zero(peft_model: PeftModel) -> bool:
    """Whether every ΔW is exactly 0 and every module saved whole equals the base's; stops at the first that is not.

    DoRA layers count as changing: their magnitude makes ΔW inexact even where nothing was trained.
    """
    return not any(_moves(layer) for layer in tuner_layers(peft_model)) and not any(
        _replaces(m) for m in peft_model.modules() if isinstance(m, AuxiliaryTrainingWrapper)
    )


def _moves(layer: Any) -> bool:
    if NAME in getattr(layer, "lora_magnitude_vector", {}):
        return True
    biases = [b.bias for b in getattr(layer, "lora_B", {}).values() if getattr(b, "bias", None) is not None]
    return any(b.count_nonzero() for b in biases) or bool(layer.get_delta_weight(NAME).count_nonzero())


def _replaces(wrapper: Any) -> bool:
    if not isinstance(wrapper, ModulesToSaveWrapper):
        return True
    own: dict[str, Tensor] = wrapper.original_module.state_dict()
    saved: dict[str, Tensor] = wrapper.modules_to_save[NAME].state_dict()
    return any(not torch.equal(saved[k].to(own[k].dtype), own[k]) for k in own)


def merge(peft_model: PeftModel) -> tuple[PreTrainedModel, float]:
    """Merge the adapter in float32 and return the plain model in its former dtypes, and the rounding error.

    The error is ‖round(W+ΔW) − (W+ΔW)‖ / ‖ΔW‖ over all adapted matrices; 0 where they are kept in float32.
    """
    dtypes = {id(p): p.dtype for p in peft_model.parameters()}
    _untie_adapted(peft_model)
    lost, moved = 0.0, 0.0
    tuner: Any = peft_model.base_model
    with quiet_transformers(), torch.no_grad():
        for layer in tuner_layers(peft_model):
            weight = layer.get_base_layer().weight
            dtype = dtypes.get(id(weight), weight.dtype)
            weight.data = weight.data.float()
            before = weight.data.clone()
            layer.merge(adapter_names=[NAME])
            moved += (weight.data - before).double().square().sum().item()
            rounded = weight.data.to(dtype)
            lost += (rounded.float() - weight.data).double().square().sum().item()
            weight.data = rounded
        merged = tuner.merge_and_unload()
    return merged.eval().requires_grad_(False), (lost / moved) ** 0.5 if moved else 0.0


def _untie_adapted(peft_model: PeftModel) -> None:
    """Give an adapted layer whose weight other modules share (tied embeddings) a weight of its own."""
    uses = Counter(id(p) for _, p in peft_model.named_parameters(remove_duplicate=False))
    for layer in tuner_layers(peft_model):
        base = layer.get_base_layer()
        if uses[id(base.weight)] > 1:
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)


class Toggle:
    """Switches an attached adapter on and off, without the cost and side effects of PEFT's own switch.

    PEFT's `enable_adapters` also resets which weights need gradients, on every layer, every time.
    """

    def __init__(self, peft_model: PeftModel) -> None:
        self.peft_model = peft_model
        self.is_on = True
        self._layers = [m for m in peft_model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]

    @contextmanager
    def active(self, on: bool) -> Iterator[None]:
        """Within the block the adapter is on or off; afterwards it is as before. Blocks may be nested."""
        before = self.is_on
        self._switch(on)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, on: bool) -> None:
        if on != self.is_on:
            for layer in self._layers:
                layer._disable_adapters = not on
            self.is_on = on
