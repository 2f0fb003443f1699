"""Norms of the means and what they rest on, and the means as tensors."""

from collections import Counter
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from diffing.analysis.token_text import Decoder, token_string
from diffing.methods.activation_difference_lens.means import Means
from diffing.methods.activation_difference_lens.results import PositionRow

_ROUNDING = 1e-12


def position_rows(means: Means, tokenizer: Decoder, ranked: Collection[int]) -> list[PositionRow]:
    """`positions.parquet`."""
    rows = []
    for layer_index, layer in enumerate(means.layers):
        for p, place in enumerate(means.places):
            n, square = int(means.n_P[p]), float(means.squares_PL[p, layer_index])
            norm = float(means.norm_PL[p, layer_index])
            variance = square - norm**2 if square - norm**2 > _ROUNDING * square else 0.0
            token_id, count = Counter(means.token_ids[p].tolist()).most_common(1)[0]
            rows.append(
                PositionRow(
                    layer=layer, dataset=place.dataset, kind=place.kind, position=place.position, token_id=token_id,
                    token=token_string(tokenizer, token_id), token_share=count / len(means.token_ids[p]),
                    n_documents=n, n_prefixes=int(means.n_prefixes_P[p]), is_ranked=p in ranked, norm=norm,
                    stderr=(variance / (n - 1)) ** 0.5 if n > 1 else None,
                    chance=float(means.chance_PL[p, layer_index]),
                    explained=min(norm**2 / square, 1.0) if square > 0 else None,
                    relative=float(means.relative_PL[p, layer_index]),
                    beyond_chance=float(means.beyond_PL[p, layer_index]),
                    mean_norm_delta=float(means.norms["delta"][p, layer_index]),
                    mean_norm_base=float(means.norms["base"][p, layer_index]),
                    mean_norm_finetuned=float(means.norms["finetuned"][p, layer_index]),
                    tensor=f"layer_{layer:02d}/{place.key}/mean_delta",
                )
            )  # fmt: skip
    return rows


def tensors_of(means: Means) -> dict[str, Tensor]:
    """Means of δ, b and f at every layer and place, float32."""
    named = {"delta": means.delta_PLD, "base": means.base_PLD, "finetuned": means.finetuned_PLD}
    return {
        f"layer_{layer:02d}/{place.key}/mean_{of}": torch.from_numpy(mean_PLD[p, i].astype(np.float32))
        for i, layer in enumerate(means.layers)
        for p, place in enumerate(means.places)
        for of, mean_PLD in named.items()
    }
