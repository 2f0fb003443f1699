"""Measures the change of every weight from the pair's files; loads the models only to read vectors out as tokens."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import torch

from diffing.analysis.context import RunContext
from diffing.core.errors import UserError
from diffing.core.method import MethodOutput
from diffing.core.progress import bar
from diffing.core.seeds import generator
from diffing.methods.weight_spectrum.config import WeightSpectrumConfig
from diffing.methods.weight_spectrum.findings import evidence, summary
from diffing.methods.weight_spectrum.gather import Gathered, Weight, null_of
from diffing.methods.weight_spectrum.measure import Measured, measure
from diffing.methods.weight_spectrum.readouts import Said, read_out, readout_table
from diffing.methods.weight_spectrum.statistics import (
    left_out_table,
    map_table,
    part_table,
    spectrum_table,
    vector_table,
    weight_table,
)
from diffing.methods.weight_spectrum.units import read_unit, write_unit
from diffing.models.changed_weight import LeftOut, WeightChange
from diffing.models.weight_changes import WeightChanges, weight_changes
from diffing.models.weight_places import writes_residual


def run(config: WeightSpectrumConfig, context: RunContext) -> MethodOutput:
    """Read the pair's weights as its files hold them.

    Raises:
        UserError: Weights cannot be read or compared, or nothing changed though no null pair was asked for.
    """
    found = weight_changes(context.plan)
    _check_base(config, found)
    data = Gathered(tuple(_weights(config, context, found)))
    if data.square == 0 and context.null_pair == "none" and context.plan.spec.amplification is None:
        source = context.plan.finetuned or context.plan.base
        raise UserError(
            f"Finetuned model {source.id} changes nothing: all its weights equal the base's; check that the right "
            "files were named, or ask for this comparison with null_pair=identical."
        )
    return _tabulate(context, found, data, read_out(data, context, config))


def _check_base(config: WeightSpectrumConfig, found: WeightChanges) -> None:
    if config.relative is True and not any(c.base for c in found.changes):
        raise UserError(
            "diffing.method.relative=true needs the base's weights, and none of them can be read as they stand (not at "
            "hand, quantised, or of other names); use relative=auto or false."
        )


def _weights(config: WeightSpectrumConfig, context: RunContext, found: WeightChanges) -> Iterator[Weight]:
    with bar("weight_spectrum: decomposing ΔW", len(found.changes), "weights") as advance:
        for unit, change in enumerate(found.changes):
            writes = change.is_matrix and writes_residual(change.place, change.out_width, found.width)
            measured = _measured(config, context, change, unit, writes)
            yield Weight(unit, change, measured, writes, null_of(change, measured, context.seed))
            advance(1, change.name)


def _measured(
    config: WeightSpectrumConfig, context: RunContext, change: WeightChange, unit: int, writes: bool
) -> Measured:
    """A weight's numbers, from an interrupted run where they are there."""
    reads_base = change.base is not None and (config.relative is not False or change.factors is None)
    path: Path = context.scratch / f"weight_{unit:05d}.safetensors"
    is_long = change.rows is not None or reads_base
    if is_long and (known := read_unit(path)) is not None:
        return known
    rng = generator(context.seed, "weight_spectrum", change.name)
    measured = measure(change, config, reads_base, writes, rng)
    if is_long:
        write_unit(path, measured)
    return measured


def _tabulate(context: RunContext, found: WeightChanges, data: Gathered, said: Said) -> MethodOutput:
    tables: dict[str, pa.Table] = {
        "weights": weight_table(data),
        "spectrum": spectrum_table(data),
        "map": map_table(data),
        "parts": part_table(data),
        "vectors": vector_table(data, said.readouts),
        "readouts": readout_table(said.readouts),
        "left_out": left_out_table(found.left_out),
    }
    if said.scores is not None:
        tables["token_scores"] = said.scores
    claimed = None if context.null_pair == "none" else False
    return MethodOutput(
        tables=tables,
        evidence=evidence(tables, claimed),
        summary=summary(tables, claimed),
        tensors={v.tensor: torch.from_numpy(v.vector_D.copy()) for v in data.vectors},
        notes=tuple(dict.fromkeys([*found.notes, *_said(context, found, data), *said.notes])),
        facts={
            "n_weights": len(data.weights),
            "n_left_out": len(found.left_out),
            "width": found.width,
            "token_threshold": said.threshold,
        },
    )


def _said(context: RunContext, found: WeightChanges, data: Gathered) -> Iterator[str]:
    """What a reader must know of how weights were read."""
    yield from _left_out(found.left_out)
    unknown = [w for w in data.weights if w.measured.base_square is None and w.change.kind != "lora bias"]
    if found.base is not None and unknown and len(unknown) < len(data.weights):
        yield f"Of {len(unknown)} weights the base's own cannot be read (such as {unknown[0].change.name})."
    if context.plan.spec.model.quantization != "none" and context.plan.kind == "adapter":
        yield "Norms of the base are those of its files, before model.quantization."
    floors = [w for w in data.weights if w.change.floor and w.measured.base_square and w.measured.square > 0]
    low = [w for w in floors if w.norm < 2 * (w.change.floor or 0) * (w.measured.base_square or 0) ** 0.5]
    if low:
        yield (
            f"Of {len(low)} of {len(data.weights)} weights the change is no larger than twice what rounding to the "
            f"files' dtype alone gives (about {low[0].change.floor:.1e} of ‖W‖): their spectra may be rounding's."
        )
    approximate = sum(not w.measured.is_exact for w in data.weights)
    if approximate:
        yield (
            f"{approximate} matrices are decomposed by a block Krylov method: their largest singular values are lower "
            "bounds, close ones where they stand out, and their effective ranks are estimates."
        )


def _left_out(left_out: Sequence[LeftOut]) -> Iterator[str]:
    """One sentence for each way in which tensors are left out."""
    groups: dict[tuple[str, str], list[str]] = {}
    for x in left_out:
        kind = "has another shape" if x.reason.startswith("has shape") else x.reason
        groups.setdefault((x.where, kind), []).append(x.name)
    for (_, reason), names in groups.items():
        more = f" and {len(names) - 1} more like it" if len(names) > 1 else ""
        yield f"Left out: {names[0]} {reason}{more}."
