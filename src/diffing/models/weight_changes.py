"""The change of every weight of a pair, ΔW = finetuned − base, from the pair's files, without loading a model."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from diffing.core.amplification import Place
from diffing.core.errors import UserError
from diffing.models.adapter_changes import AdapterChanges
from diffing.models.adapters import read_config
from diffing.models.changed_weight import Factors, LeftOut, WeightChange
from diffing.models.loading import stream_width
from diffing.models.plan import PairPlan
from diffing.models.weight_differences import Casts, difference
from diffing.models.weight_files import WeightFiles, open_weights
from diffing.models.weight_places import is_stored_transposed, weight_place


@dataclass(frozen=True)
class WeightChanges:
    """All weights of a pair that can be compared; nothing but headers was read.

    Args:
        changes: From the embedding to the head, block by block.
        left_out: Tensors that are not compared.
        width: Of the residual stream.
        base: The base's files; None where its weights are not at hand.
        notes: Sentences for the reader.
    """

    changes: tuple[WeightChange, ...]
    left_out: tuple[LeftOut, ...]
    width: int
    base: WeightFiles | None
    notes: tuple[str, ...] = field(default=())


def weight_changes(plan: PairPlan) -> WeightChanges:
    """Which weights a pair compares, and how to read them.

    An adapter needs no weights of the base, unless they are a part of its change. Base and finetuned of
    `null_pair=dtype` are one file, rounded to the two dtypes.

    Raises:
        UserError: A file is damaged, the adapter's kind is not readable from its file, or nothing can be compared.
    """
    base = open_weights(plan.base.folder, plan.base.id)
    width = stream_width(plan.spec.model, plan.base)
    shapes = {name: t.shape for name, t in base.tensors.items()} if base else {}
    is_transposed = is_stored_transposed(shapes, width)
    if plan.kind == "adapter":
        found = list(_adapter(plan, base, is_transposed))
    else:
        found = list(_models(plan, base, is_transposed))
    changes = [_amplified(c, plan) for c in sorted((c for c in found if isinstance(c, WeightChange)), key=_order)]
    left_out = tuple(c for c in found if isinstance(c, LeftOut))
    if not changes:
        raise _nothing(plan, left_out)
    return WeightChanges(tuple(changes), left_out, width, base, tuple(_said(base, changes)))


def _adapter(plan: PairPlan, base: WeightFiles | None, is_transposed: bool) -> Iterator[WeightChange | LeftOut]:
    assert plan.finetuned is not None
    source = plan.finetuned
    adapter = open_weights(source.folder, source.id)
    if adapter is None:
        raise UserError(f"Adapter {source.id} has no adapter_model.safetensors; check its id.")
    yield from AdapterChanges(read_config(source.folder, source.id), adapter, base, is_transposed).all()


def _models(plan: PairPlan, base: WeightFiles | None, is_transposed: bool) -> Iterator[WeightChange | LeftOut]:
    source = plan.finetuned or plan.base
    finetuned = open_weights(source.folder, source.id)
    if base is None or finetuned is None:
        raise UserError(f"The weights of {plan.base.id} and {source.id} are not both at hand; fetch them again.")
    casts: Casts | None = None
    if plan.kind == "dtype":
        casts = getattr(torch, plan.dtypes[0]), getattr(torch, plan.dtypes[1])
    met = set()
    for tensor in base.tensors.values():
        other = finetuned.find(tensor.name)
        if other is None and weight_place(tensor.name).part == "head":
            other = finetuned.embedding
        if other is None:
            yield LeftOut(tensor.name, "base", "is in the base alone")
            continue
        met.add(other.name)
        yield difference(base, tensor, finetuned, other, is_transposed, casts=casts)
    for tensor in finetuned.tensors.values():
        if tensor.name not in met:
            yield _new(base, finetuned, tensor.name, is_transposed)


def _new(base: WeightFiles, finetuned: WeightFiles, name: str, is_transposed: bool) -> WeightChange | LeftOut:
    """A tensor that only the finetuned model stores: its own head where the base's is tied to the embedding."""
    place = weight_place(name)
    if place.part == "head" and base.embedding is not None:
        return difference(base, base.embedding, finetuned, finetuned.tensors[name], is_transposed, place=place)
    return LeftOut(name, "finetuned", "is in the finetuned model alone")


def _amplified(change: WeightChange, plan: PairPlan) -> WeightChange:
    """The change scaled as `organism.amplification` asks."""
    if plan.spec.amplification is None:
        return change
    place = change.place
    kind = "attention" if place.part == "attention" else "mlp" if place.part == "mlp" else "other"
    path = change.name.rpartition(".")[0]
    factor = plan.spec.amplification.factor_of(Place(path, place.layer, kind), plan.n_layers)
    read_factors, read_rows = change.factors, change.rows

    def factors() -> Factors:
        assert read_factors is not None
        found = read_factors()
        return replace(found, scale=factor * found.scale)

    def rows() -> Iterator[tuple[int, Tensor]]:
        assert read_rows is not None
        for start, chunk in read_rows():
            yield start, factor * chunk

    return replace(change, factors=factors if read_factors else None, rows=rows if read_rows else None)


def _order(change: WeightChange) -> tuple[int, str, int, str]:
    place = change.place
    if place.layer is not None:
        return (1, place.stack, place.layer, "")
    return (0 if place.part in ("embedding", "other") else 2, "", 0, "")


def _said(base: WeightFiles | None, changes: list[WeightChange]) -> Iterator[str]:
    tables = {c.place.part for c in changes} & {"embedding", "head"}
    if base is not None and base.embedding is not None and "embedding" in tables and "head" not in tables:
        yield (
            f"The base's head and embedding are one matrix (tied): a change of {base.embedding.name} is one of both, "
            "and it is listed once."
        )


def _nothing(plan: PairPlan, left_out: tuple[LeftOut, ...]) -> UserError:
    source = plan.finetuned or plan.base
    first = f" (such as {left_out[0].name}, which {left_out[0].reason})" if left_out else ""
    return UserError(
        f"No weight of {plan.base.id} and {source.id} can be compared{first}; kl compares what the models say, and "
        "needs neither equal shapes nor plain weights."
    )
