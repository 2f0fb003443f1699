"""A finished dictionary on a text of one's own: which latents are active at its tokens."""

import numpy as np
import torch

from diffing.activations.reading import PairReader
from diffing.analysis.latents.results import LatentRow
from diffing.analysis.latents.saving import OURS
from diffing.analysis.latents.sites import as_input
from diffing.analysis.one_text import corpus_of
from diffing.core.layers import Site, Slot
from diffing.core.probing import TokenValues
from diffing.core.result import Result
from diffing.core.tables import rows_of
from diffing.data.sequences import TokenSequence
from diffing.dictionaries.checkpoints import load_dictionary
from diffing.models.pair import ModelPair

MOST_LATENTS = 24


def try_text(result: Result, pair: ModelPair, sequence: TokenSequence) -> tuple[TokenValues, ...]:
    """Activations of the latents that say most about one text, most telling first; those that contribute most of all.

    The first positions that the run left out are left out here too.

    Args:
        result: Of a dictionary method.
        pair: Of the same models.
        sequence: The text.

    Raises:
        UserError: The result's dictionary is damaged or is for other models, or the text's tokens are not shared.
    """
    if result.manifest["facts"].get("is_zero"):
        return ()
    slot = _slot(result)
    dictionary = load_dictionary(result.path(f"files/{OURS}/dictionary.safetensors"))
    reader = PairReader(pair, corpus_of(pair, sequence), (slot,), torch.float32)
    rows_N2D = torch.stack([r.cpu() for r in reader.read([0])[slot]], 1)
    codes = dictionary.encode(dictionary.normalised(as_input(rows_N2D, result.manifest["facts"]["input"])))
    acts_NF = np.zeros((codes.n_rows, codes.n_latents), dtype=np.float32)
    acts_NF[codes.row_P.numpy(), codes.latent_P.numpy()] = codes.value_P.numpy()
    acts_NF[: result.manifest["config"]["skip_first_tokens"]] = 0
    rows: list[LatentRow] = rows_of(LatentRow, result.table("latents"))
    size_F = acts_NF.max(0) * dictionary.score_scale_F().numpy()
    largest = set(np.argsort(-size_F, kind="stable")[:MOST_LATENTS].tolist())
    shown = [r for r in rows if r.latent in largest and size_F[r.latent] > 0]
    return tuple(TokenValues(_name(r), "", tuple(float(v) for v in acts_NF[:, r.latent]), slot.layer) for r in shown)


def _name(row: LatentRow) -> str:
    return f"latent {row.latent}" if row.tag == "difference" else f"latent {row.latent} ({row.tag})"


def _slot(result: Result) -> Slot:
    layer, _, site = result.manifest["facts"]["slot"].partition("/")
    sites: dict[str, Site] = {"residual": "residual", "attention": "attention", "mlp": "mlp"}
    return Slot(int(layer.removeprefix("layer_")), sites[site])
