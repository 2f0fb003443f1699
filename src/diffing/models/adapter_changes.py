"""The change of every weight that a PEFT adapter makes, from its file alone where its kind allows."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from peft.utils.other import get_pattern_key
from torch import Tensor

from diffing.core.errors import UserError
from diffing.models.adapter_rows import dora_rows, loha_rows, lokr_rows, vector_rows
from diffing.models.changed_weight import Factors, LeftOut, WeightChange
from diffing.models.weight_differences import difference, out_axis, rows_of, unreadable
from diffing.models.weight_files import StoredTensor, WeightFiles
from diffing.models.weight_places import weight_place

_FACTORS = re.compile(
    r"(?P<module>.+)\.(?P<factor>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
    r"|hada_w1_a|hada_w1_b|hada_w2_a|hada_w2_b|lokr_w1|lokr_w1_a|lokr_w1_b|lokr_w2|lokr_w2_a|lokr_w2_b)"
    r"(?P<tail>\.bias|\.weight)?"
)
_PREFIX = "base_model.model."
_KINDS = (
    ("lora", frozenset({"lora_A", "lora_B"})),
    ("embedding", frozenset({"lora_embedding_A", "lora_embedding_B"})),
    ("loha", frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})),
    ("lokr", frozenset({"lokr_w1", "lokr_w2"})),
    ("lokr", frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2"})),
    ("lokr", frozenset({"lokr_w1", "lokr_w2_a", "lokr_w2_b"})),
    ("lokr", frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"})),
)
_VARIANTS = (
    "target_parameters", "trainable_token_indices", "layer_replication", "use_qalora", "use_bdlora", "arrow_config",
    "kasa_config", "monteclora_config",
)  # fmt: skip
# Ways to begin that take a part of the base's weights away; an adapter trained so fits the rest alone.
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterChanges:
    """An adapter's file beside the base's.

    Args:
        config: The adapter's settings.
        adapter: Its tensors.
        base: The base's tensors; None where they are not at hand.
        is_transposed: Whether the base's files hold matrices as (in, out).
    """

    config: Mapping[str, Any]
    adapter: WeightFiles
    base: WeightFiles | None
    is_transposed: bool

    def all(self) -> Iterator[WeightChange | LeftOut]:
        """The changes, in the order of the file.

        Raises:
            UserError: The adapter is of a variant that its file alone does not tell, or does not fit.
        """
        _refuse_variants(self.config, self.adapter.label)
        groups: dict[str, dict[str, str]] = {}
        whole = []
        for name in self.adapter.tensors:
            found = _FACTORS.fullmatch(name.removeprefix(_PREFIX))
            if found is None:
                whole.append(name)
            else:
                factor = found["factor"] + (".bias" if found["tail"] == ".bias" else "")
                groups.setdefault(found["module"].replace(".base_layer", ""), {})[factor] = name
        for module, names in groups.items():
            yield from self._factored(module, names)
        for name in whole:
            if _own_name(name).rpartition(".")[0] in groups:
                self._check_copy(name)
            else:
                yield self._whole(name)

    def _factored(self, module: str, names: Mapping[str, str]) -> Iterator[WeightChange | LeftOut]:
        kind = self._kind(module, names)
        if kind == "lora" and "lora_magnitude_vector" in names:
            yield self._dora(module, names)
        elif kind == "lora":
            yield self._lora(module, names, "lora_A", "lora_B")
        elif kind == "embedding":
            yield self._lora(module, names, "lora_embedding_A", "lora_embedding_B")
        else:
            yield self._products(module, names, kind)
        if "lora_B.bias" in names:
            rows = vector_rows(self.adapter, names["lora_B.bias"], self._scale(module, self._rank(names["lora_A"], 0)))
            shape = self._stored(names["lora_B.bias"]).shape
            yield WeightChange(f"{module}.bias", weight_place(f"{module}.bias"), "lora bias", shape, 0, rows=rows)

    def _kind(self, module: str, names: Mapping[str, str]) -> str:
        found = frozenset(names) - {"lora_magnitude_vector", "lora_B.bias"}
        for kind, needed in _KINDS:
            if found == needed:
                if any(len(self._stored(names[n]).shape) != 2 for n in needed):
                    raise self._refused(f"adapts {module}, which is no matrix (a convolution)")
                if kind == "embedding" and "lora_magnitude_vector" in names:
                    raise self._refused(f"uses DoRA on the embedding {module}")
                return kind
        raise UserError(
            f"Adapter {self.adapter.label} holds {', '.join(sorted(names))} for {module}, which is no whole set of "
            "factors; it is incomplete or of a kind that is not known here."
        )

    def _lora(self, module: str, names: Mapping[str, str], a: str, b: str) -> WeightChange:
        (rank, n_in), (n_out, _) = self._stored(names[a]).shape, self._stored(names[b]).shape
        self._check_rank(module, rank, names[b])
        place = weight_place(f"{module}.weight")
        is_table = a == "lora_embedding_A"
        axis = 1 if is_table else out_axis(place, 2, self._stores_transposed())
        shape = (n_in, n_out) if axis else (n_out, n_in)
        base = self._base_of(module, shape)
        scale = self._scale(module, rank)

        def factors() -> Factors:
            out_OR, in_IR = self.adapter.read(names[b]), self.adapter.read(names[a]).T
            return Factors(in_IR, out_OR, scale) if axis else Factors(out_OR, in_IR, scale)

        rows = rows_of(self.base, base) if self.base and base else None
        return WeightChange(
            base.name if base else f"{module}.weight", place, "lora", shape, axis, factors=factors, base=rows, rank=rank
        )

    def _dora(self, module: str, names: Mapping[str, str]) -> WeightChange:
        change = self._lora(module, names, "lora_A", "lora_B")
        if change.base is None or change.factors is None:
            raise self._refused(f"uses DoRA on {module}, which depends on weights of the base that cannot be read")
        magnitude = names["lora_magnitude_vector"]
        if self._stored(magnitude).shape != (change.out_width,):
            raise self._unfit(magnitude, self._stored(magnitude).shape, (change.out_width,))

        def read() -> Tensor:
            return self.adapter.read(magnitude)

        rows = dora_rows(change.base, change.factors, read, change.out_axis, change.shape)
        return WeightChange(
            change.name, change.place, "dora", change.shape, change.out_axis, rows=rows, base=change.base
        )

    def _products(self, module: str, names: Mapping[str, str], kind: str) -> WeightChange:
        scale = self._scale(module, self._asked_rank(module))
        make = loha_rows if kind == "loha" else lokr_rows
        shape, rows = make(self.adapter, names, scale)
        base = self._base_of(module, shape)
        return WeightChange(
            base.name if base else f"{module}.weight", weight_place(f"{module}.weight"),
            "loha" if kind == "loha" else "lokr", shape, 0, rows=rows,
            base=rows_of(self.base, base) if self.base and base else None,
        )  # fmt: skip

    def _whole(self, name: str) -> WeightChange | LeftOut:
        own = _own_name(name)
        if self.base is None:
            return LeftOut(own, "adapter", "is saved whole, and the base's weights are not at hand to compare it with")
        base = self.base.find(own) or self._tied(own)
        if base is None:
            raise UserError(
                f"Tensor {name} of adapter {self.adapter.label} matches no weight of the base; it was made for another "
                "model, check model.id."
            )
        stored = self._stored(name)
        return difference(
            self.base, base, self.adapter, stored, self.is_transposed, "saved whole", place=weight_place(own)
        )

    def _check_copy(self, name: str) -> None:
        """PEFT saves an adapted embedding's base beside its factors: a copy that differs would change it twice."""
        change = self._whole(name)
        if isinstance(change, WeightChange) and change.rows and any(rows.any() for _, rows in change.rows()):
            raise UserError(
                f"Adapter {self.adapter.label} replaces the base weight {change.name} and adapts it besides; merge it "
                "into a full model and name that as organism.finetuned."
            )

    def _base_of(self, module: str, shape: tuple[int, ...]) -> StoredTensor | None:
        """The base's weight that a module's factors change; None where it cannot be read as it stands."""
        if self.base is None:
            return None
        found = self.base.find(f"{module}.weight") or self._tied(f"{module}.weight")
        if found is None or unreadable(found) is not None:
            return None
        if found.shape != shape:
            raise self._unfit(module, shape, found.shape)
        return found

    def _tied(self, name: str) -> StoredTensor | None:
        """The embedding where the base has no head of its own."""
        assert self.base is not None
        return self.base.embedding if weight_place(name).part == "head" else None

    def _stores_transposed(self) -> bool:
        return bool(self.config.get("fan_in_fan_out")) or self.is_transposed

    def _scale(self, module: str, rank: int) -> float:
        patterns = self.config.get("alpha_pattern") or {}
        alpha = self.config.get("lora_alpha", self.config.get("alpha", 8))
        alpha = patterns.get(get_pattern_key(tuple(patterns), module), alpha)
        return alpha / rank**0.5 if self.config.get("use_rslora") else alpha / rank

    def _asked_rank(self, module: str) -> int:
        patterns = self.config.get("rank_pattern") or {}
        return int(patterns.get(get_pattern_key(tuple(patterns), module), self.config.get("r", 8)))

    def _check_rank(self, module: str, rank: int, other: str) -> None:
        asked = self._asked_rank(module)
        if not rank == asked == self._rank(other, 1):
            raise UserError(
                f"Adapter {self.adapter.label} has factors of rank {rank} for {module} and its settings say {asked}; "
                "its files do not belong together."
            )

    def _rank(self, name: str, axis: int) -> int:
        return self._stored(name).shape[axis]

    def _stored(self, name: str) -> StoredTensor:
        return self.adapter.tensors[name]

    def _unfit(self, name: str, shape: tuple[int, ...], needed: tuple[int, ...]) -> UserError:
        return UserError(
            f"Adapter {self.adapter.label} does not fit the base: {name} is {shape}, the base needs {needed}; check "
            "model.id and the adapter."
        )

    def _refused(self, problem: str) -> UserError:
        return _refusal(self.adapter.label, problem)


def _own_name(name: str) -> str:
    """What the base calls a tensor that an adapter saves whole."""
    return name.removeprefix(_PREFIX).replace(".modules_to_save", "").replace(".base_layer", "")


def _refusal(label: str, problem: str) -> UserError:
    return UserError(
        f"Adapter {label} {problem}: its change of the weights cannot be read from its file; use a method that runs "
        "the models, such as kl."
    )


def _refuse_variants(config: Mapping[str, Any], label: str) -> None:
    for name in _VARIANTS:
        if config.get(name):
            raise _refusal(label, f"uses {name}")
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_MOVES_BASE):
        raise _refusal(label, f"was begun by {begun}, which moves a part of the base's weights into it")
