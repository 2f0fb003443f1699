"""Patchscopes of the means, layer by layer, kept so that an interrupted run goes on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffing.analysis.context import RunContext
from diffing.analysis.patchscope import PROMPTS, Patchscope, n_rows, patchscope
from diffing.analysis.token_text import token_strings
from diffing.core.progress import bar
from diffing.core.seeds import generator
from diffing.data.prompts import raw_prompt_ids
from diffing.methods.activation_difference_lens.config import LensConfig
from diffing.methods.activation_difference_lens.means import Means
from diffing.methods.activation_difference_lens.readouts import Vector, place_of
from diffing.methods.activation_difference_lens.results import PatchscopeRow, ScaleRow
from diffing.methods.activation_difference_lens.stored import stored_arrays
from diffing.models.pair import ModelHandle


@dataclass(frozen=True, eq=False)
class Said:
    """What a layer's vectors say."""

    vectors: tuple[Vector, ...]
    found: Patchscope


def read_patchscope(
    config: LensConfig, context: RunContext, layer: int, vectors: Sequence[Vector], mean_norm: float
) -> Said:
    """Read a layer's vectors in the package's identity prompts."""
    handle = patched_model(config, context)
    prompts = [raw_prompt_ids(text, handle.tokenizer) for text in PROMPTS]
    vectors_ND = torch.stack([v.vector_D for v in vectors])
    random_MD = random_directions(config.n_random_directions, vectors_ND.shape[1], context.seed, "patchscope", layer)
    total = n_rows(len(vectors), len(random_MD), len(config.scales), len(prompts))

    def read() -> dict[str, np.ndarray]:
        with bar(f"patchscope at layer {layer}", total, "states") as advance:
            found = patchscope(
                handle, prompts, layer, vectors_ND, random_MD, mean_norm, config.scales, config.n_patchscope_tokens,
                advance,
            )  # fmt: skip
        return {k: np.asarray(v) for k, v in vars(found).items() if k != "scales"}

    arrays = stored_arrays(context.scratch / f"patchscope_{layer:03d}.safetensors", read)
    return Said(tuple(vectors), Patchscope(scales=config.scales, **arrays))


def patched_model(config: LensConfig, context: RunContext) -> ModelHandle:
    """The model that the patchscope runs."""
    return context.pair.finetuned if config.patchscope_model == "finetuned" else context.pair.base


def random_directions(n: int, width: int, seed: int, *purpose: str | int) -> torch.Tensor:
    """Unit vectors, (n, width), float64."""
    drawn_ND = torch.from_numpy(generator(seed, *purpose).standard_normal((n, width)))
    return drawn_ND / drawn_ND.norm(dim=1, keepdim=True)


def patchscope_rows(config: LensConfig, context: RunContext, means: Means, said: Said) -> list[PatchscopeRow]:
    """`patchscope.parquet`."""
    found = said.found
    names = token_strings(patched_model(config, context).tokenizer, np.unique(found.ids_NSK).tolist())
    rows = []
    for i, vector in enumerate(said.vectors):
        if vector.of == "null":
            continue
        s = int(found.chosen_N[i])
        columns = (found.ids_NSK, found.probabilities_NSK, found.random_NSK, found.is_shared_NSK)
        for rank, (token, p, r, shared) in enumerate(zip(*(c[i, s].tolist() for c in columns), strict=True)):
            where = (*place_of(means, vector), vector.of, found.scales[s], rank)
            rows.append(PatchscopeRow(*where, token, names[token], p, r, bool(shared)))
    return rows


def scale_rows(means: Means, said: Said) -> list[ScaleRow]:
    """`scales.parquet`."""
    found = said.found
    return [
        ScaleRow(
            *place_of(means, vector), vector.of, scale, float(found.coherence_NS[i, s]),
            float(found.random_coherence_S[s]), s == int(found.chosen_N[i]),
        )
        for i, vector in enumerate(said.vectors)
        if vector.of != "null"
        for s, scale in enumerate(found.scales)
    ]  # fmt: skip
