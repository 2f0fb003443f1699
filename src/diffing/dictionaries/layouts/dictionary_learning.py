"""dictionary_learning: `config.json` with a trainer's dict_class and `ae.pt`, a pickled state dict; read only.

The one place in diffing that opens a pickle, and only as torch does with `weights_only`: tensors and plain containers
are read, and whatever else the file asks to import or run is refused.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import NoReturn

import torch
from torch import Tensor

from diffing.core.errors import UserError, one_line
from diffing.core.suggest import did_you_mean
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.layouts import crosscoder_learning
from diffing.dictionaries.layouts.files import Foreign, Stored, layer_in, read_config
from diffing.dictionaries.layouts.folding import assemble, check_even_rows, gated_thresholds, unit_rows
from diffing.dictionaries.layouts.published import Facts, Published
from diffing.dictionaries.spec import DictionarySpec

NAME = "dictionary_learning"
WEIGHTS, CONFIG = "ae.pt", "config.json"
_COMPILED = "_orig_mod."  # what torch.compile puts before every name


class Trainer(crosscoder_learning.CodeSettings):
    """What the library was told to train."""

    dict_class: str
    layer: int | None = None
    lm_name: str | None = None
    submodule_name: str | None = None
    k: float | None = None


class Config(Foreign):
    """`config.json`."""

    trainer: Trainer


def read(folder: Path) -> Published:
    """Open an autoencoder or crosscoder of dictionary_learning."""
    path = folder / CONFIG
    trainer = read_config(path, Config).trainer
    stored = read_pickle(folder / WEIGHTS)
    notes, normalisation = (), "none"
    if trainer.dict_class in crosscoder_learning.CLASSES:
        dictionary, normalisation = crosscoder_learning.from_tensors(stored, trainer.dict_class, trainer, path)
    elif trainer.dict_class in ("AutoEncoder", "AutoEncoderNew"):
        dictionary = _relu(stored, trainer.dict_class)
    elif trainer.dict_class == "AutoEncoderTopK":
        dictionary, notes = _topk(stored, path)
    elif trainer.dict_class in _CUT:
        dictionary = _CUT[trainer.dict_class](stored)
    else:
        known = ("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", *_CUT, *crosscoder_learning.CLASSES)
        near = did_you_mean(trainer.dict_class, known)
        raise UserError(f"{path}: dict_class {trainer.dict_class} cannot be opened; {near}")
    hook = trainer.submodule_name
    layer = trainer.layer if trainer.layer is not None else layer_in(hook)
    facts = Facts(trainer.lm_name, hook, layer, trainer.dict_class, trainer.k, normalisation)
    return Published(dictionary, NAME, facts, notes)


def read_pickle(path: Path) -> Stored:
    """The tensors of a state dict, without executing code.

    Raises:
        UserError: The file is missing, damaged, holds code, or is no state dict.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; copy it there, or fetch the dictionary again.")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise UserError(
            f"{path} is not opened: it is damaged or holds more than tensors (code that would run on opening); where "
            "you trust it, open it yourself and save its state_dict alone."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is cut off or damaged ({one_line(error, 80)}); fetch the dictionary again.") from None
    if not isinstance(held, dict) or not all(isinstance(v, Tensor) for v in held.values()):
        raise UserError(f"{path} holds no state dict (names and their tensors), so it is no dictionary.")
    return Stored(path, {str(name).removeprefix(_COMPILED): tensor for name, tensor in held.items()})


def _linear(stored: Stored) -> tuple[Tensor, Tensor]:
    """(W_e, d) of the classes that are made of two linear layers."""
    encoder_FMD = stored.get("encoder.weight", None, None)[:, None]
    f, _, d = encoder_FMD.shape
    return encoder_FMD, stored.get("decoder.weight", d, f).T[:, None]


def _sae(encoder_FMD: Tensor, sparsity: str, k: int = 1) -> DictionarySpec:
    f, _, d = encoder_FMD.shape
    return DictionarySpec.model_validate(
        {"n_sites": 1, "width": d, "n_latents": f, "sparsity": sparsity, "k": min(k, f)}
    )


def _relu(stored: Stored, kind: str) -> Dictionary:
    """`AutoEncoder` centres, and the library opens it with unit rows; `AutoEncoderNew` (April 2024) does neither."""
    encoder_FMD, decoder_FMD = _linear(stored)
    f, _, d = encoder_FMD.shape
    bias_F = stored.get("encoder.bias", f)
    if kind == "AutoEncoderNew":
        bias_MD = stored.get("decoder.bias", d)[None]
        centre_MD = torch.zeros_like(bias_MD)
        return assemble(_sae(encoder_FMD, "l1"), encoder_FMD, bias_F, decoder_FMD, bias_MD, centre_MD=centre_MD)
    encoder_FMD, bias_F, decoder_FMD = unit_rows(encoder_FMD, bias_F, decoder_FMD)
    return assemble(_sae(encoder_FMD, "l1"), encoder_FMD, bias_F, decoder_FMD, stored.get("bias", d)[None])


def _topk(stored: Stored, path: Path) -> tuple[Dictionary, tuple[str, ...]]:
    encoder_FMD, decoder_FMD = _linear(stored)
    f, _, d = encoder_FMD.shape
    notes = check_even_rows(decoder_FMD, f"dict_class=AutoEncoderTopK in {path}")
    spec = _sae(encoder_FMD, "topk", max(1, int(stored.number("k"))))
    bias_F, bias_MD = stored.get("encoder.bias", f), stored.get("b_dec", d)[None]
    return assemble(spec, encoder_FMD, bias_F, decoder_FMD, bias_MD), notes


def _batch_topk(stored: Stored) -> Dictionary:
    encoder_FMD, decoder_FMD = _linear(stored)
    bias_F = stored.get("encoder.bias", len(encoder_FMD))
    return _above_threshold(stored, encoder_FMD, bias_F, decoder_FMD)


def _matryoshka(stored: Stored) -> Dictionary:
    return _above_threshold(stored, *_matrices(stored))


def _matrices(stored: Stored) -> tuple[Tensor, Tensor, Tensor]:
    """(W_e, b_e, d) of the classes that hold W_enc [d, F] and W_dec [F, d]."""
    encoder_FMD = stored.get("W_enc", None, None).T[:, None]
    f, _, d = encoder_FMD.shape
    return encoder_FMD, stored.get("b_enc", f), stored.get("W_dec", f, d)[:, None]


def _above_threshold(stored: Stored, encoder_FMD: Tensor, bias_F: Tensor, decoder_FMD: Tensor) -> Dictionary:
    """One threshold on a_j, whatever the length of its decoder row: a jumprelu with the same threshold everywhere."""
    threshold = stored.number("threshold")
    if threshold < 0:
        raise UserError(
            f"{stored.path}: threshold is {threshold:g}, so training never set it and every activation would be kept."
        )
    bias_MD = stored.get("b_dec", encoder_FMD.shape[2])[None]
    thresholds_F = torch.full_like(bias_F, threshold)
    spec = _sae(encoder_FMD, "jumprelu")
    return assemble(spec, encoder_FMD, bias_F, decoder_FMD, bias_MD, thresholds_F=thresholds_F)


def _jumprelu(stored: Stored) -> Dictionary:
    encoder_FMD, bias_F, decoder_FMD = _matrices(stored)
    f, _, d = encoder_FMD.shape
    bias_MD, thresholds_F = stored.get("b_dec", d)[None], stored.get("threshold", f)
    return assemble(
        _sae(encoder_FMD, "jumprelu"), encoder_FMD, bias_F, decoder_FMD, bias_MD,
        centre_MD=torch.zeros_like(bias_MD), thresholds_F=thresholds_F,
    )  # fmt: skip


def _gated(stored: Stored) -> Dictionary:
    encoder_FMD, decoder_FMD = _linear(stored)
    f, _, d = encoder_FMD.shape
    magnitude_F, bias_F = stored.get("r_mag", f).exp(), stored.get("mag_bias", f)
    thresholds_F = gated_thresholds(magnitude_F, stored.get("gate_bias", f), bias_F)
    encoder_FMD = encoder_FMD * magnitude_F[:, None, None]
    bias_MD = stored.get("decoder_bias", d)[None]
    return assemble(_sae(encoder_FMD, "jumprelu"), encoder_FMD, bias_F, decoder_FMD, bias_MD, thresholds_F=thresholds_F)


_CUT = {
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
    "GatedAutoEncoder": _gated,
}


def write(folder: Path, dictionary: Dictionary, facts: Facts) -> NoReturn:
    """Refuse: the layout is a pickle."""
    raise UserError(
        f"The layout {NAME} (ae.pt) is only read, because it is a pickle; write saelens or crosscoder_learning instead."
    )
