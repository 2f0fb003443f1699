"""Sparsify (EleutherAI): `cfg.json` and `sae.safetensors`, topk of one site.

encoder.weight [F, d], encoder.bias [F], W_dec [F, d], b_dec [d].
"""

import re
from pathlib import Path

from pydantic import Field

from diffing.core.errors import UserError
from diffing.core.files import write_json
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.layouts.files import Foreign, layer_in, read_config, read_tensors, write_tensors
from diffing.dictionaries.layouts.folding import assemble, check_even_rows, raw_weights, refuse_writing, unit_rows
from diffing.dictionaries.layouts.published import Facts, Published
from diffing.dictionaries.spec import DictionarySpec

NAME = "sparsify"
WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"
_HOOK = re.compile(r"(layers|h|blocks)[._]\d+")


class Config(Foreign):
    """`cfg.json`."""

    d_in: int = Field(ge=1)
    activation: str = "topk"
    expansion_factor: int = 32
    num_latents: int = 0
    k: int = Field(32, ge=1)
    multi_topk: bool = False
    signed: bool = False
    skip_connection: bool = False
    transcode: bool = False


def read(folder: Path) -> Published:
    """Open a sparse autoencoder of sparsify; its folder is named by its hook."""
    path = folder / CONFIG
    config = read_config(path, Config)
    _refuse(config, path)
    stored = read_tensors(folder / WEIGHTS)
    f, d = config.num_latents or config.d_in * config.expansion_factor, config.d_in
    if stored.has("W_skip"):
        raise UserError(f"{stored.path} holds W_skip, a linear path past the latents, which cannot be expressed.")
    decoder_FMD = stored.get("W_dec", f, d)[:, None]
    notes = check_even_rows(decoder_FMD, f"activation=topk in {path}")
    dictionary = assemble(
        DictionarySpec(n_sites=1, width=d, n_latents=f, sparsity="topk", k=min(config.k, f)),
        stored.get("encoder.weight", f, d)[:, None],
        stored.get("encoder.bias", f),
        decoder_FMD,
        stored.get("b_dec", d)[None],
    )
    hook = folder.name if _HOOK.match(folder.name) else None
    facts = Facts(hook=hook, layer=layer_in(hook), kind="topk", k=config.k)
    return Published(dictionary, NAME, facts, notes)


def _refuse(config: Config, path: Path) -> None:
    for field, why in (
        ("transcode", "it is a transcoder: it gives the output of a module for its input, not its input back"),
        ("skip_connection", "a linear path leads past the latents"),
        ("signed", "negative activations are kept"),
    ):
        if getattr(config, field):
            raise UserError(f"{path}: {field}=true cannot be expressed ({why}).")
    if config.activation != "topk":
        raise UserError(f"{path}: activation {config.activation} cannot be expressed, only topk.")


def write(folder: Path, dictionary: Dictionary, facts: Facts) -> None:
    """Write a topk dictionary of one site; the layout has no place for facts (its folder's name is the hook)."""
    refuse_writing(dictionary, NAME, ("topk",), "one site")
    encoder_FMD, bias_F, decoder_FMD, bias_MD = raw_weights(dictionary)
    encoder_FMD, bias_F, decoder_FMD = unit_rows(encoder_FMD, bias_F, decoder_FMD)
    tensors = {
        "encoder.weight": encoder_FMD[:, 0],
        "encoder.bias": bias_F,
        "W_dec": decoder_FMD[:, 0],
        "b_dec": bias_MD[0],
    }
    spec = dictionary.spec
    write_tensors(folder / WEIGHTS, tensors)
    config = {
        "activation": "topk",
        "expansion_factor": max(1, spec.n_latents // spec.width),
        "normalize_decoder": True,
        "num_latents": spec.n_latents,
        "k": spec.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": spec.width,
    }
    write_json(folder / CONFIG, config)
