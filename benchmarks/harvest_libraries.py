"""The same harvest with nnsight and with TransformerLens, each in an environment of its own.

Written as their documentation has it; both stop behind the layer that is read. The finetuned model is a merged copy
in a folder.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import Harvested, Memory, row_norms

Read = Callable[[Any, Any], Any]


def nnsight_reader(folder: str, layer: int) -> tuple[Any, Read]:
    import torch
    from nnsight import LanguageModel

    model = LanguageModel(folder, device_map="cpu", dtype=torch.float32, dispatch=True)

    def read(ids_BT: Any, mask_BT: Any) -> Any:
        with model.trace({"input_ids": ids_BT, "attention_mask": mask_BT}) as tracer:
            found = model.model.layers[layer].output.save()
            tracer.stop()
        return found[0] if isinstance(found, tuple) else found

    return model._module, read


def transformer_lens_reader(folder: str, layer: int) -> tuple[Any, Read]:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    name = f"blocks.{layer}.hook_out"

    def read(ids_BT: Any, mask_BT: Any) -> Any:
        _, found = model.run_with_cache(
            ids_BT, attention_mask=mask_BT, names_filter=name, stop_at_layer=layer + 1, return_cache_object=False
        )
        return found[name]

    return model, read


def measure(variant: str, shared: Path) -> Harvested:
    """Read all sequences of `work.json` through both models, in batches in data order, padded on the right."""
    import torch

    work = json.loads((shared / "work.json").read_text())
    make = {"nnsight": nnsight_reader, "transformer_lens": transformer_lens_reader}[variant]
    (base, read_base), (finetuned, read_finetuned) = (make(folder, work["layer"]) for folder in work["models"])
    sequences, size = [torch.tensor(s) for s in work["sequences"]], work["batch"]

    @torch.no_grad()
    def harvest(batches: list[list[Any]]) -> tuple[Any, Any]:
        rows: tuple[list[Any], list[Any]] = ([], [])
        for batch in batches:
            ids_BT = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
            mask_BT = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in batch], batch_first=True)
            for kept, read in zip(rows, (read_base, read_finetuned), strict=True):
                kept.append(read(ids_BT, mask_BT)[mask_BT.bool()])
        return torch.cat(rows[0]), torch.cat(rows[1])

    harvest([sequences[:1]])
    weights = sum(p.numel() * p.element_size() for m in (base, finetuned) for p in m.parameters())
    memory = Memory()
    started = time.perf_counter()
    base_ND, finetuned_ND = harvest([sequences[i : i + size] for i in range(0, len(sequences), size)])
    seconds, peak = time.perf_counter() - started, memory.peak()
    position_N = torch.cat([torch.arange(len(s)) for s in sequences])
    norms = row_norms(base_ND, finetuned_ND, position_N)
    return Harvested(seconds, len(position_N), *norms, memory.loaded, peak, weights)
