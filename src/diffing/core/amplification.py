"""Amplification: by which factor the change of each module's weights is scaled, as people write it."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import Field, field_validator

from diffing.core.config import Strict
from diffing.core.errors import UserError, one_line
from diffing.core.suggest import did_you_mean

Kind = Literal["attention", "mlp", "other"]
KINDS: tuple[Kind, ...] = ("attention", "mlp", "other")
THIRDS = ("early", "middle", "late")
_WHERE = "organism.amplification"
_NUMBER = r"\d+(?:\.\d+)?"
_LAYERS = re.compile(rf"all|\d+|({_NUMBER})-({_NUMBER})")
_MODULE = re.compile(r"[A-Za-z_][\w.]*")
_FILES = (".yaml", ".yml", ".json")


class Place(NamedTuple):
    """Where a module stands: its path in the model, its decoder block (None: outside all), and what it belongs to."""

    path: str
    layer: int | None
    kind: Kind


def _is_share(layers: str) -> bool:
    return "." in layers


class AmplificationRule(Strict):
    """A factor for some modules.

    Args:
        factor: By it the change of the weights is multiplied.
        layers: `all` (those outside the blocks too); a block; `10-20` or [10, 20]: blocks, both included;
            [0.0, 0.5]: shares of the depth, the blocks ℓ of L with 0 ≤ ℓ/L < 0.5.
        modules: `all`, `attention`, `mlp`, `other`, or how a module's path ends (`o_proj`, `mlp.down_proj`).
    """

    factor: float = Field(allow_inf_nan=False)
    layers: str = "all"
    modules: tuple[str, ...] = Field(default=("all",), min_length=1)

    @field_validator("layers", mode="before")
    @classmethod
    def _range(cls, value: object) -> str:
        if isinstance(value, (list, tuple)) and len(value) == 2 and not any(isinstance(v, bool) for v in value):
            if all(isinstance(v, (int, float)) for v in value) and any(isinstance(v, float) for v in value):
                value = tuple(float(v) for v in value)
            value = f"{value[0]}-{value[1]}"
        text = str(value).replace(" ", "")
        found = _LAYERS.fullmatch(text)
        if found is None or isinstance(value, bool):
            raise ValueError("write all, a block such as 5, blocks such as 10-20, or shares such as [0.5, 1.0]")
        if found[1] and (float(found[1]) > float(found[2]) or (_is_share(text) and float(found[2]) > 1)):
            raise ValueError("a range goes from the smaller to the larger, and shares of the depth lie from 0 to 1")
        return text

    @field_validator("modules", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        names = (value,) if isinstance(value, str) else value
        if isinstance(names, (list, tuple)) and not all(isinstance(n, str) and _MODULE.fullmatch(n) for n in names):
            raise ValueError("write all, attention, mlp, other, or how a module's path ends, such as o_proj")
        return names

    def matches(self, place: Place, n_layers: int) -> bool:
        """Whether the rule speaks of a module."""
        return self._has_layer(place.layer, n_layers) and any(_is_named(place, name) for name in self.modules)

    def blocks(self, n_layers: int) -> range:
        """The blocks it speaks of, of a model that has `n_layers`; they may lie outside it."""
        if self.layers == "all":
            return range(n_layers)
        low, _, high = self.layers.partition("-")
        if _is_share(self.layers):
            first, end = (math.ceil(round(float(x) * n_layers, 9)) for x in (low, high))
            return range(first, end)
        return range(int(low), int(high or low) + 1)

    def _has_layer(self, layer: int | None, n_layers: int) -> bool:
        return self.layers == "all" or (layer is not None and layer in self.blocks(n_layers))


class AmplificationSpec(Strict):
    """Rules in order; the last one that matches a module gives its factor, and where none does it is 1.

    Args:
        rules: At least one.
        name: What the pair's label calls them; it changes no number.
    """

    rules: tuple[AmplificationRule, ...] = Field(min_length=1)
    name: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it leaves every change as it is."""
        return all(rule.factor == 1 for rule in self.rules)

    @property
    def uniform(self) -> float | None:
        """The one factor of all modules; None where there are several."""
        last = self.rules[-1]
        return last.factor if last.layers == "all" and "all" in last.modules else None

    @property
    def label(self) -> str:
        """`×2`, or `×` and the rules' name, or their number and how they begin."""
        if self.uniform is not None:
            return f"×{self.uniform:g}"
        return f"×{self.name}" if self.name else f"×{len(self.rules)} rules"

    def factor_of(self, place: Place, n_layers: int) -> float:
        """The factor of one module."""
        return next((r.factor for r in reversed(self.rules) if r.matches(place, n_layers)), 1.0)


def uniform(factor: float) -> AmplificationSpec:
    """One factor for every change."""
    return AmplificationSpec(rules=(AmplificationRule(factor=factor),))


def only(part: AmplificationRule, rest: float = 0.0) -> AmplificationSpec:
    """A rule for one part, and a factor for everything else."""
    return AmplificationSpec(rules=(AmplificationRule(factor=rest), part))


class Part(NamedTuple):
    """A third of the depth and a kind of module: what the change is cut into."""

    third: str
    kind: Kind
    layers: str

    @property
    def name(self) -> str:
        """`early attention`."""
        return f"{self.third} {self.kind}"

    def rule(self, factor: float) -> AmplificationRule:
        """The part's factor."""
        return AmplificationRule(factor=factor, layers=self.layers, modules=(self.kind,))


def parts(n_layers: int) -> list[Part]:
    """The parts of a model's blocks, by depth and then by kind; a third without a block has none."""
    ends = [round(i * n_layers / len(THIRDS)) for i in range(len(THIRDS) + 1)]
    return [
        Part(third, kind, f"{first}-{end - 1}")
        for third, first, end in zip(THIRDS, ends[:-1], ends[1:], strict=True)
        for kind in KINDS
        if end > first
    ]


def _preset(name: str, **part: Any) -> AmplificationSpec:
    return only(AmplificationRule(factor=1, **part)).model_copy(update={"name": name})


PRESETS = {
    "double": uniform(2),
    "half": uniform(0.5),
    "reversed": uniform(-1),
    "early_only": _preset("early_only", layers=[0.0, 0.5]),
    "late_only": _preset("late_only", layers=[0.5, 1.0]),
    "attention_only": _preset("attention_only", modules="attention"),
    "mlp_only": _preset("mlp_only", modules="mlp"),
}


def read_amplification(value: object, where: str = _WHERE) -> object:
    """What a user wrote, as the values of an `AmplificationSpec`.

    Args:
        value: None, a number, a preset's name, the path of a YAML or JSON file of rules, rules, or {name, rules}.
        where: The option, for messages.

    Raises:
        UserError: It is none of these.
    """
    if value is None or isinstance(value, AmplificationSpec):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"rules": [{"factor": value}]}
    if isinstance(value, str):
        return _named(value.strip(), where)
    if isinstance(value, (list, tuple)):
        return {"rules": value}
    if isinstance(value, dict):
        return value if "rules" in value else {"rules": [value]}
    raise UserError(f"{where}={value!r} is no amplification; give a number, a preset, a file of rules, or rules.")


def _named(text: str, where: str) -> object:
    if text in PRESETS:
        return PRESETS[text]
    try:
        return {"rules": [{"factor": float(text)}]}
    except ValueError:
        pass
    path = Path(text).expanduser()
    if path.suffix in _FILES or path.is_file():
        return _read(path, where)
    raise UserError(
        f"{where}={text!r} is no number, preset or file of rules (.yaml, .json): {did_you_mean(text, PRESETS)}"
    )


def _read(path: Path, where: str) -> object:
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{where}={path} cannot be read as rules ({one_line(error, 120)}).") from None
    values = {"rules": found} if isinstance(found, list) else found
    if not isinstance(values, dict) or "rules" not in values:
        raise UserError(f"{where}={path} holds no rules; write a list of {{layers, modules, factor}}.")
    return {"name": path.stem, **values}


def factors(spec: AmplificationSpec, places: Sequence[Place], n_layers: int, where: str = _WHERE) -> dict[str, float]:
    """The factor of each changed module, by its path.

    Args:
        spec: The rules.
        places: The modules that finetuning changed.
        n_layers: Decoder blocks of the model.
        where: The option that holds the rules, for messages.

    Raises:
        UserError: A rule names a layer that is not there, or speaks of no changed module.
    """
    for number, rule in enumerate(spec.rules, 1):
        if rule.layers != "all" and not _is_share(rule.layers) and rule.blocks(n_layers).stop > n_layers:
            raise UserError(
                f"Rule {number} of {where} names layers {rule.layers} and the model has {n_layers}: "
                f"0 to {n_layers - 1}."
            )
        if not any(rule.matches(place, n_layers) for place in places):
            raise UserError(f"Rule {number} of {where} {_unmatched(rule, places, n_layers)}")
    return {place.path: spec.factor_of(place, n_layers) for place in places}


def _unmatched(rule: AmplificationRule, places: Sequence[Place], n_layers: int) -> str:
    names = sorted({p.kind for p in places} | {p.path.rpartition(".")[2] for p in places} - {"default"})
    unknown = [n for n in rule.modules if not any(_is_named(p, n) for p in places)]
    if unknown:
        return f"names modules {unknown[0]!r}, which finetuning did not change: {did_you_mean(unknown[0], names)}"
    if not rule.blocks(n_layers):
        return f"names layers {rule.layers}, which hold none of the model's {n_layers}; widen the range."
    return (
        f"matches no changed module: {', '.join(rule.modules)} in layers {rule.layers}; finetuning changed "
        f"{', '.join(names[:6])}{', …' if len(names) > 6 else ''} elsewhere."
    )


def _is_named(place: Place, name: str) -> bool:
    return name in ("all", place.kind) or f".{place.path}".endswith(f".{name}")
