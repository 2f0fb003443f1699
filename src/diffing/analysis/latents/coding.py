"""Goes over a run's rows with a dictionary: block by block, finite kept rows alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.activations.rows import RowBlock, SlotRows
from diffing.analysis.latents.sites import Input, as_input
from diffing.dictionaries.codes import Codes
from diffing.dictionaries.dictionary import Dictionary


@dataclass(frozen=True, eq=False)
class CodedBlock:
    """Some whole sequences' kept tokens with their codes.

    Args:
        token_N: Rows of the token table.
        pair_N2D: Both models' raw activations, float32.
        x_NMD: What the dictionary reads, in normalised units.
        codes: Active latents.
        made_NMD: What they make of it, in normalised units.
        n_not_finite: Kept tokens that were left out because a number is not finite,
        n_unusual: and because their norm is above the limit.
    """

    token_N: np.ndarray
    pair_N2D: Tensor
    x_NMD: Tensor
    codes: Codes
    made_NMD: Tensor
    n_not_finite: int
    n_unusual: int


def coded_blocks(
    dictionary: Dictionary, rows: SlotRows, kind: Input, kept_N: np.ndarray, title: str
) -> Iterator[CodedBlock]:
    """Every block's kept tokens, coded; in the source's order."""
    for block in rows.blocks(title):
        yield _coded(dictionary, rows, kind, kept_N, block)


@torch.no_grad()
def _coded(dictionary: Dictionary, rows: SlotRows, kind: Input, kept_N: np.ndarray, block: RowBlock) -> CodedBlock:
    keep_N = torch.from_numpy(kept_N[block.token_N]).to(block.rows_N2D.device)
    pair_N2D = block.rows_N2D[keep_N].to(dictionary.scale_M.device, torch.float32)
    is_finite_N, is_usual_N = torch.isfinite(pair_N2D).flatten(1).all(1), rows.usual(pair_N2D)
    token_N, fine_N = block.token_N[keep_N.cpu().numpy()], is_finite_N & is_usual_N
    if not fine_N.all():
        pair_N2D, token_N = pair_N2D[fine_N], token_N[fine_N.cpu().numpy()]
    x_NMD = dictionary.normalised(as_input(pair_N2D, kind))
    codes = dictionary.encode(x_NMD)
    made_NMD = dictionary.decode(codes)
    return CodedBlock(token_N, pair_N2D, x_NMD, codes, made_NMD, int((~is_finite_N).sum()), int((~is_usual_N).sum()))
