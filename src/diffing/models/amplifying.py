"""Scaling what finetuning changed: factors for the changed modules of a pair, while it is loaded or at run time.

An adapter's ΔW is scaled by PEFT's own scaling of each layer; the two models of a full finetune give
W = W_base + factor · (W_ft − W_base), in float32. Both are put back to the bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from diffing.core.amplification import AmplificationSpec, Kind, Place, factors
from diffing.core.errors import UserError
from diffing.models.adapters import NAME
from diffing.models.block_sites import candidates

if TYPE_CHECKING:
    from diffing.models.pair import ModelPair

Undo = Callable[[], None]


@dataclass(frozen=True, eq=False)
class AdapterChange:
    """The change an adapter makes to one module."""

    place: Place
    layer: Any

    def scale_(self, factor: float) -> None:
        """Multiply ΔW."""
        self.layer.scaling[NAME] *= factor

    def kept(self) -> Undo:
        """What puts the change back as it is now."""
        before = self.layer.scaling[NAME]
        return lambda: self.layer.scaling.__setitem__(NAME, before)


@dataclass(frozen=True, eq=False)
class TensorChange:
    """One tensor of a finetuned model beside the base's; of rows that the base has not, none is scaled."""

    place: Place
    base: Tensor
    own: Tensor

    def scale_(self, factor: float) -> None:
        """Set it to W_base + factor · (W − W_base), computed in float32 at least."""
        rows = self.own[: len(self.base)] if self.own.dim() else self.own
        self._copy(rows, factor)

    def rounding(self, factor: float) -> tuple[float, float]:
        """What storing the scaled tensor loses, and what it changes: sums of squares."""
        rows = self.own[: len(self.base)] if self.own.dim() else self.own
        exact = self._scaled(rows, factor)
        base = self._base(rows)
        lost = (exact.to(self.own.dtype).to(exact.dtype) - exact).double().square().sum().item()
        return lost, (exact - base).double().square().sum().item()

    def kept(self) -> Undo:
        """What puts it back as it is now; holds a copy."""
        before = self.own.clone()
        return lambda: self._put(before)

    def _put(self, before: Tensor) -> None:
        with torch.no_grad():
            self.own.copy_(before)

    def _base(self, rows: Tensor) -> Tensor:
        wide = torch.promote_types(self.own.dtype, torch.float32)
        return self.base[: len(rows)].to(rows.device, wide) if rows.dim() else self.base.to(rows.device, wide)

    def _scaled(self, rows: Tensor, factor: float) -> Tensor:
        base = self._base(rows)
        return base + factor * (rows.to(base.dtype) - base)

    def _copy(self, rows: Tensor, factor: float) -> None:
        with torch.no_grad():
            rows.copy_(self._scaled(rows, factor))


Change = AdapterChange | TensorChange


class Amplifier:
    """The changed modules of a loaded pair, whose factors can be set for a while.

    Of a pair in which nothing changed it holds none, and sets nothing.

    Args:
        pair: Not changed by making an amplifier of it.

    Raises:
        UserError: The pair's change cannot be scaled.
    """

    def __init__(self, pair: "ModelPair") -> None:
        finetuned = pair.finetuned
        layers = finetuned.sites.layers
        self.n_layers = len(layers)
        self.changes: tuple[Change, ...] = ()
        if finetuned.toggle is not None:
            self.changes = adapter_changes(finetuned.module, layers)
        elif finetuned.module is not pair.base.module:
            self.changes = tensor_changes(pair.base.module, finetuned.module, layers)

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the changed modules stand, each once."""
        return tuple(dict.fromkeys(c.place for c in self.changes))

    @contextmanager
    def set(self, spec: AmplificationSpec, where: str = "the amplification") -> Iterator[None]:
        """Within the block the finetuned model's change is scaled, over what the pair was loaded with.

        Raises:
            UserError: A rule speaks of no changed module.
        """
        if not self.changes:
            yield
            return
        chosen = factors(spec, self.places, self.n_layers, where)
        with ExitStack() as stack:
            for change in self.changes:
                if (factor := chosen[change.place.path]) != 1:
                    stack.callback(change.kept())
                    change.scale_(factor)
            yield


@contextmanager
def amplified(pair: "ModelPair", spec: AmplificationSpec) -> Iterator[None]:
    """Within the block the pair's finetuned model has its change scaled; afterwards it is as before, to the bit."""
    with Amplifier(pair).set(spec):
        yield


def amplify_(changes: Sequence[Change], spec: AmplificationSpec, n_layers: int) -> dict[str, Any]:
    """Scale the changes of a pair that is being loaded, for good; what was done, for manifests.

    Raises:
        UserError: A rule speaks of no changed module.
    """
    chosen = factors(spec, tuple(dict.fromkeys(c.place for c in changes)), n_layers)
    lost = moved = 0.0
    for change in changes:
        factor = chosen[change.place.path]
        if factor == 1:
            continue
        if isinstance(change, TensorChange) and change.own.dtype.itemsize < 4:
            sums = change.rounding(factor)
            lost, moved = lost + sums[0], moved + sums[1]
        change.scale_(factor)
    return {
        "label": spec.label,
        "rules": [rule.model_dump(mode="json") for rule in spec.rules],
        "n_modules": len(chosen),
        "n_scaled": sum(f != 1 for f in chosen.values()),
        "rounding_error": (lost / moved) ** 0.5 if moved else 0.0,
        "is_base": all(f == 0 for f in chosen.values()),
    }


def adapter_changes(module: nn.Module, layers: nn.ModuleList) -> tuple[Change, ...]:
    """The changes of an attached adapter, modules saved whole included.

    Args:
        module: The base that the adapter is attached to.
        layers: Its decoder blocks.

    Raises:
        UserError: The adapter has parts whose change is not linear in a factor.
    """
    place_of = locator(module, layers)
    found: list[Change] = []
    for name, inner in module.named_modules():
        if isinstance(inner, BaseTunerLayer):
            _refuse_not_linear(inner, name)
            found.append(AdapterChange(place_of(name), inner))
        elif isinstance(inner, AuxiliaryTrainingWrapper):
            if not isinstance(inner, ModulesToSaveWrapper):
                raise UserError(
                    f"The adapter trains single rows of {name} (trainable_token_indices), which amplification "
                    "cannot scale; drop organism.amplification."
                )
            base, own = inner.original_module, inner.modules_to_save[NAME]
            pairs = zip(_tensors(base), _tensors(own), strict=True)  # type: ignore[arg-type]
            found += [TensorChange(place_of(name), b, o) for (_, b), (_, o) in pairs]
    return tuple(found)


def _refuse_not_linear(layer: Any, name: str) -> None:
    if NAME in getattr(layer, "lora_magnitude_vector", {}):
        raise UserError(
            f"The adapter is a DoRA ({name} has a magnitude of its own), whose change of the weights is not "
            "proportional to any factor; drop organism.amplification, or merge it into a full model."
        )
    variant = getattr(layer, "lora_variant", {}).get(NAME)
    if variant is not None or NAME not in getattr(layer, "scaling", {}):
        kind = type(layer if variant is None else variant).__name__
        raise UserError(f"The adapter has a part of kind {kind} ({name}), which amplification cannot scale.")


def tensor_changes(base: nn.Module, finetuned: nn.Module, layers: nn.ModuleList) -> tuple[Change, ...]:
    """The tensors in which a finetuned model differs from its base; tied ones once.

    Args:
        base: The base.
        finetuned: The finetuned model.
        layers: Its decoder blocks.

    Raises:
        UserError: The models are of different shapes, or one ties weights that differ in the other.
    """
    place_of, ours = locator(finetuned, layers), dict(_tensors(base))
    theirs = dict(_tensors(finetuned))
    odd = sorted(ours.keys() ^ theirs.keys())
    if odd:
        raise UserError(
            f"Base and finetuned model have different weights ({odd[0]} is in one alone), so that no difference of "
            "theirs can be scaled; amplification needs models of one architecture."
        )
    found: dict[int, tuple[Tensor, Tensor, str]] = {}
    for name, own in theirs.items():
        b = ours[name]
        if b.shape[1:] != own.shape[1:] or b.dim() != own.dim():
            raise UserError(
                f"Base and finetuned model differ in the shape of {name}, {tuple(b.shape)} and {tuple(own.shape)}; "
                "amplification needs models of one architecture."
            )
        known = found.setdefault(own.data_ptr(), (b, own, name))
        if known[0] is not b and known[0].data_ptr() != b.data_ptr() and not torch.equal(known[0], b):
            raise UserError(
                f"The finetuned model ties {known[2]} and {name}, which differ in the base; their change cannot be "
                "scaled."
            )
    return tuple(
        TensorChange(place_of(name.rpartition(".")[0]), b, own)
        for b, own, name in found.values()
        if b.shape != own.shape or not torch.equal(b.to(own.device, own.dtype), own)
    )


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights and buffers of floating-point numbers that are saved with a model."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            yield name, tensor.detach()


def locator(module: nn.Module, layers: nn.ModuleList) -> Callable[[str], Place]:
    """Says of a module's path in which decoder block it lies, and whether in its attention or MLP.

    Args:
        module: The model.
        layers: Its decoder blocks.
    """
    prefix = next(name for name, inner in module.named_modules() if inner is layers)
    kinds = [_parts(block) for block in layers]

    def place_of(path: str) -> Place:
        path = path.replace(".base_layer", "")
        number, _, within = path.removeprefix(f"{prefix}.").partition(".")
        if not path.startswith(f"{prefix}.") or not number.isdecimal():
            return Place(path, None, "other")
        for part, kind in kinds[int(number)].items():
            if f"{within}.".startswith(f"{part}."):
                return Place(path, int(number), kind)
        return Place(path, int(number), "other")

    return place_of


def _parts(block: nn.Module) -> dict[str, Kind]:
    """Path within a block of its attention and MLP modules, and which each is."""
    both: tuple[Literal["attention", "mlp"], ...] = ("attention", "mlp")
    by_id: dict[int, Kind] = {id(m): kind for kind in both for m in candidates(block, kind)}
    return {name: by_id[id(m)] for name, m in block.named_modules() if name and id(m) in by_id}
