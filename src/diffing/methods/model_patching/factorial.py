"""Logit differences at each divergence, with the states of either model put into the other at every point.

L(u, l) is the logit of the finetuned model's token minus that of the base's, when everything up to a point is model
u's and everything after it model l's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffing.analysis.context import RunContext
from diffing.analysis.units import read_arrays, write_arrays
from diffing.core.errors import UserError
from diffing.core.progress import bar
from diffing.data.batches import pad_id, plan_batches
from diffing.methods.model_patching.texts import Texts
from diffing.models.patching import EMBEDDING, patched_logits, read_states

_MOST_TOKENS = 512


@dataclass(frozen=True, eq=False)
class Factorial:
    """Logit differences of S divergences at P points, float64.

    Args:
        bb_S: L(base, base): the base's own.
        ff_S: L(finetuned, finetuned).
        bf_SP: L(base, finetuned): the base's states up to each point, read on by the finetuned model.
        fb_SP: L(finetuned, base).
        margin_base_S: The base's logit of its choice minus its largest other logit.
        margin_ft_S: The same of the finetuned model.
    """

    bb_S: np.ndarray
    ff_S: np.ndarray
    bf_SP: np.ndarray
    fb_SP: np.ndarray
    margin_base_S: np.ndarray
    margin_ft_S: np.ndarray

    @property
    def effect_S(self) -> np.ndarray:
        """L(finetuned, finetuned) − L(base, base)."""
        return self.ff_S - self.bb_S

    @property
    def upstream_SP(self) -> np.ndarray:
        """Main effect of the states up to each point: averaged over both late stacks."""
        return ((self.fb_SP - self.bb_S[:, None]) + (self.ff_S[:, None] - self.bf_SP)) / 2

    @property
    def late_SP(self) -> np.ndarray:
        """Main effect of what follows each point: averaged over both upstreams."""
        return ((self.bf_SP - self.bb_S[:, None]) + (self.ff_S[:, None] - self.fb_SP)) / 2

    @property
    def interaction_SP(self) -> np.ndarray:
        """By how much both together do more than the sum of each alone."""
        return self.ff_S[:, None] - self.fb_SP - self.bf_SP + self.bb_S[:, None]

    def of(self, rows: np.ndarray) -> "Factorial":
        """Some of the divergences."""
        return Factorial(*(getattr(self, f.name)[rows] for f in fields(self)))


def point_name(point: int, n_layers: int) -> str:
    """What a point is called: `embedding`, `layer 3`, `final norm`, `head`."""
    return {EMBEDDING: "embedding", n_layers: "final norm", n_layers + 1: "head"}.get(point, f"layer {point}")


def chosen_points(n_layers: int, n_chosen: int | None, layer: int) -> list[int]:
    """The points to patch at: the embedding, blocks, the final norm and the head.

    Args:
        n_layers: Blocks of the model.
        n_chosen: Blocks to take, spread evenly from the first to the last; None: all.
        layer: A block that is always among them.
    """
    spread = np.linspace(0, n_layers - 1, min(n_chosen or n_layers, n_layers)).round().astype(int).tolist()
    return [EMBEDDING, *sorted({*spread, n_layers - 1, layer}), n_layers, n_layers + 1]


def measure(context: RunContext, texts: Sequence[Texts], at: Sequence[int]) -> Factorial:
    """Patch both ways at the points `at` of every divergence; finished batches are kept in the scratch folder.

    Raises:
        UserError: A logit is not finite.
    """
    lengths = [len(t.context_ids) for t in texts]
    plan = plan_batches(lengths, min(context.batch_tokens, _MOST_TOKENS))
    found = _empty(len(texts), len(at))
    with bar("model_patching: patching states", sum(lengths), "tokens") as advance:
        for number, rows in enumerate(plan):
            path = context.scratch / f"patches_{number:04d}.safetensors"
            unit = _stored(path, len(rows), len(at))
            if unit is None:
                unit = _patched(context, [texts[i] for i in rows], at)
                write_arrays(path, unit)
            for name, values in unit.items():
                found[name][list(rows)] = values
            advance(sum(lengths[i] for i in rows))
    return Factorial(**found)


def _empty(n: int, n_points: int) -> dict[str, np.ndarray]:
    return {f.name: np.zeros((n, n_points) if f.name.endswith("_SP") else n) for f in fields(Factorial)}


@torch.no_grad()
def _patched(context: RunContext, texts: Sequence[Texts], at: Sequence[int]) -> dict[str, np.ndarray]:
    """The values of one batch."""
    base, finetuned = context.pair.base, context.pair.finetuned
    rows = [torch.tensor(t.context_ids) for t in texts]
    ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id(context.tokenizer))
    lengths = [len(r) for r in rows]
    own_b, own_f = read_states(base, ids_BT, lengths), read_states(finetuned, ids_BT, lengths)
    found: dict[str, list[np.ndarray]] = {"bf_SP": [], "fb_SP": []}
    for point in at:
        late_f = patched_logits(finetuned, own_f, own_b, point, ids_BT, lengths)
        late_b = patched_logits(base, own_b, own_f, point, ids_BT, lengths)
        found["bf_SP"].append(_difference(late_f, texts))
        found["fb_SP"].append(_difference(late_b, texts))
    return {
        "bb_S": _difference(own_b.logits_BV, texts),
        "ff_S": _difference(own_f.logits_BV, texts),
        **{name: np.stack(columns, 1) for name, columns in found.items()},
        "margin_base_S": _margin(own_b.logits_BV, [t.base_token for t in texts]),
        "margin_ft_S": _margin(own_f.logits_BV, [t.ft_token for t in texts]),
    }


def _difference(logits_BV: Tensor, texts: Sequence[Texts]) -> np.ndarray:
    """Logit of the finetuned model's choice minus that of the base's.

    Raises:
        UserError: One is not finite.
    """
    ft_B, base_B = (_picked(logits_BV, [getattr(t, name) for t in texts]) for name in ("ft_token", "base_token"))
    found = ft_B - base_B
    if not np.isfinite(found).all():
        raise UserError("Patched states give NaN or infinite logits; use model.dtype=float32, or check the weights.")
    return found


def _margin(logits_BV: Tensor, chosen: Sequence[int | None]) -> np.ndarray:
    """Logit of the choice minus the largest other one; negative where rounding made the text choose otherwise."""
    top = logits_BV.topk(2)
    is_first_B = (top.indices[:, 0].cpu() == torch.tensor(chosen)).numpy()
    first_B, second_B = top.values.cpu().double().numpy().T
    return _picked(logits_BV, chosen) - np.where(is_first_B, second_B, first_B)


def _picked(logits_BV: Tensor, tokens: Sequence[int | None]) -> np.ndarray:
    index_B = torch.tensor(tokens, device=logits_BV.device)
    return logits_BV.gather(1, index_B[:, None])[:, 0].cpu().double().numpy()


def _stored(path: Path, n: int, n_points: int) -> dict[str, np.ndarray] | None:
    expected = {k: v.shape for k, v in _empty(n, n_points).items()}
    unit = read_arrays(path)
    return unit if unit is not None and {k: v.shape for k, v in unit.items()} == expected else None
