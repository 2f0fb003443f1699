"""How long a steering vector should be: strengths are shares of the mean norm of the residual stream."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.core.seeds import generator
from diffing.data.batches import make_batch, plan_batches
from diffing.data.token_table import TokenTable
from diffing.data.tokens import Corpus
from diffing.models.capture import capture
from diffing.models.handle import ModelHandle
from diffing.models.steering import check_layer

_BATCH_TOKENS = 2048


def mean_activation_norm(
    handle: ModelHandle, corpus: Corpus, layer: int, skip_first_tokens: int, max_tokens: int = 2048
) -> float:
    """Mean Euclidean norm of the residual stream after block `layer`, over the tokens that statistics keep.

    Leading positions, BOS and padding are left out (`TokenTable.kept`), and tokens whose norm is not finite.

    Args:
        handle: The model.
        corpus: Texts in its vocabulary; whole sequences are taken, mixed from all datasets, always the same ones.
        layer: The decoder block.
        skip_first_tokens: Leading positions left out.
        max_tokens: Once as many kept tokens are taken, no further sequence is.

    Raises:
        UserError: The model has no such layer, or no token is kept.
    """
    check_layer(handle, layer)
    table = TokenTable.of(corpus)
    bos = handle.tokenizer.bos_token_id
    kept_N = table.kept(bos if isinstance(bos, int) else None, skip_first_tokens)
    chosen = _some_sequences(table, kept_N, max_tokens)
    total, count = 0.0, 0
    for places in plan_batches([table.length_of(s) for s in chosen], _BATCH_TOKENS):
        batch = make_batch(corpus, [chosen[i] for i in places], pad_id=0)
        stream_BTD = capture(handle, batch.ids_BT, [Slot(layer)], batch.lengths)[Slot(layer)]
        for row, sequence in enumerate(batch.sequences):
            rows = table.rows_of(sequence)
            keep_T = torch.from_numpy(kept_N[rows]).to(stream_BTD.device)
            norms = stream_BTD[row, : len(keep_T)][keep_T].float().norm(dim=-1).double()
            norms = norms[torch.isfinite(norms)]
            total, count = total + float(norms.sum()), count + len(norms)
    if not count:
        raise UserError(
            f"None of the {len(table)} tokens counts for the mean norm after layer {layer} with "
            f"skip_first_tokens={skip_first_tokens}; give longer texts, or skip fewer tokens."
        )
    return total / count


def _some_sequences(table: TokenTable, kept_N: np.ndarray, max_tokens: int) -> list[int]:
    """Sequences with kept tokens, in a fixed random order, until `max_tokens` are reached."""
    chosen, n_kept = [], 0
    for sequence in generator(0, "mean_activation_norm").permutation(table.n_sequences).tolist():
        here = int(kept_N[table.rows_of(sequence)].sum())
        if here and n_kept < max_tokens:
            chosen.append(sequence)
            n_kept += here
    return chosen


def steering_vector(vector_D: Float[Tensor, " D"], strength: float, mean_norm: float) -> Float[Tensor, " D"]:
    """`strength` · `mean_norm` · v/‖v‖, in float32.

    Args:
        vector_D: The direction v; its length does not matter.
        strength: Share of the mean norm; negative values steer the other way.
        mean_norm: Of the residual stream at the layer to be steered; see `mean_activation_norm`.

    Raises:
        UserError: v is zero or not finite, or a number is not finite.
    """
    if not math.isfinite(strength) or not math.isfinite(mean_norm):
        raise UserError(f"Steering strength {strength} and mean norm {mean_norm} must be finite numbers.")
    exact_D = vector_D.double()
    norm = float(exact_D.norm())
    if not math.isfinite(norm) or norm == 0:
        what = "is zero" if norm == 0 else "holds NaN or infinite values"
        raise UserError(f"The steering vector {what}, so that it has no direction; choose another.")
    return (strength * mean_norm * exact_D / norm).float()
