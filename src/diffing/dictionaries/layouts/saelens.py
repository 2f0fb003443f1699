"""SAELens: `cfg.json` and `sae_weights.safetensors` (W_enc [d, F], b_enc, W_dec [F, d], b_dec, threshold), one site."""

from pathlib import Path
from typing import Any

import torch
from pydantic import AliasChoices, Field
from torch import Tensor

from diffing.core.errors import UserError
from diffing.core.files import write_json
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.layouts.files import Foreign, Stored, layer_in, read_config, read_tensors, write_tensors
from diffing.dictionaries.layouts.folding import (
    assemble,
    check_even_rows,
    gated_thresholds,
    raw_weights,
    refuse_writing,
    unit_rows,
)
from diffing.dictionaries.layouts.published import Facts, Published
from diffing.dictionaries.spec import DictionarySpec

NAME = "saelens"
WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
# Tells SAELens that the config is of its present form; configs without a version are taken for one before 6.0.
_FORM = "6.0.0"
_ARCHITECTURES = ("standard", "topk", "jumprelu", "gated")
_BY_AVERAGE = "expected_average_only_in"


class Metadata(Foreign):
    """Where a dictionary was trained."""

    model_name: str | None = None
    hook_name: str | None = None
    hook_layer: int | None = None
    norm_scaling_factor: float | None = None


class Config(Metadata):
    """`cfg.json`; before SAELens 6, metadata and the activation function stood at the top."""

    d_in: int = Field(ge=1)
    d_sae: int = Field(ge=1)
    architecture: str = "standard"
    dtype: str = "float32"
    apply_b_dec_to_input: bool = True
    normalize_activations: str | bool | None = "none"
    k: float | None = None
    rescale_acts_by_decoder_norm: bool = False
    activation_fn: str = Field("relu", validation_alias=AliasChoices("activation_fn", "activation_fn_str"))
    activation_fn_kwargs: dict[str, Any] | None = None
    metadata: Metadata = Metadata()


def read(folder: Path) -> Published:
    """Open a SAELens autoencoder."""
    path = folder / CONFIG
    config = read_config(path, Config)
    stored = read_tensors(folder / WEIGHTS)
    architecture, k = _architecture(config, path)
    _refuse_scaling_factor(stored)
    scale_M, d, f = _scale(config, path), config.d_in, config.d_sae
    notes = _notes(config)
    encoder_FMD, bias_F, thresholds_F = _encoder(stored, architecture, d, f)
    decoder_FMD, bias_MD = stored.get("W_dec", f, d)[:, None], stored.get("b_dec", d)[None]
    if architecture == "topk" and config.rescale_acts_by_decoder_norm:
        encoder_FMD, bias_F, decoder_FMD = unit_rows(encoder_FMD, bias_F, decoder_FMD)
    elif architecture == "topk":
        notes += check_even_rows(decoder_FMD, f"rescale_acts_by_decoder_norm=false in {path}")
    dictionary = assemble(
        _spec(architecture, d, f, k), encoder_FMD, bias_F, decoder_FMD, bias_MD,
        centre_MD=None if config.apply_b_dec_to_input else torch.zeros_like(bias_MD),
        scale_M=scale_M, thresholds_F=thresholds_F,
    )  # fmt: skip
    return Published(dictionary, NAME, _facts(config, architecture, k, scale_M), notes)


def _encoder(stored: Stored, architecture: str, d: int, f: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """W_e, b_e, and thresholds where there are some."""
    encoder_FMD = stored.get("W_enc", d, f).T[:, None]
    if architecture == "gated":
        magnitude_F, bias_F = stored.get("r_mag", f).exp(), stored.get("b_mag", f)
        thresholds_F = gated_thresholds(magnitude_F, stored.get("b_gate", f), bias_F)
        return encoder_FMD * magnitude_F[:, None, None], bias_F, thresholds_F
    return encoder_FMD, stored.get("b_enc", f), stored.get("threshold", f) if architecture == "jumprelu" else None


def _architecture(config: Config, path: Path) -> tuple[str, float | None]:
    kwargs = config.activation_fn_kwargs or {}
    if config.activation_fn == "topk" and "k" in kwargs:
        return "topk", _whole(kwargs["k"], path)
    if config.architecture == "batchtopk":
        raise UserError(
            f"{path}: architecture batchtopk is that of a checkpoint of training; have SAELens save it with "
            "save_inference_model, which makes it a jumprelu."
        )
    if config.architecture not in _ARCHITECTURES:
        raise UserError(
            f"{path}: architecture {config.architecture} is none that can be opened ({', '.join(_ARCHITECTURES)})."
        )
    if config.activation_fn != "relu":
        raise UserError(f"{path}: activation_fn {config.activation_fn} cannot be expressed, only relu and topk.")
    if config.architecture == "topk":
        return "topk", _whole(config.k, path)
    return config.architecture, config.k


def _whole(k: Any, path: Path) -> float:
    if not isinstance(k, int | float) or k < 1 or k != int(k):
        raise UserError(f"{path}: k of a topk dictionary must be a whole number of 1 or more, not {k!r}.")
    return k


def _scale(config: Config, path: Path) -> Tensor | None:
    """s, where activations are to be multiplied by a number that the weights do not hold yet."""
    kind = config.normalize_activations
    if kind in ("none", None, False):
        return None
    if kind not in (True, _BY_AVERAGE):
        raise UserError(
            f"{path}: normalize_activations={kind} makes of every activation another one by its own norm, which cannot "
            "be expressed."
        )
    factor = config.norm_scaling_factor or config.metadata.norm_scaling_factor
    if not factor:
        raise UserError(
            f"{path}: normalize_activations={_BY_AVERAGE} needs the factor that training multiplied activations by, "
            "and no file of this layout has it; write it there as norm_scaling_factor (√d / their mean norm)."
        )
    return torch.tensor([factor])


def _refuse_scaling_factor(stored: Stored) -> None:
    if stored.has("scaling_factor") and not (stored.raw("scaling_factor", None) - 1).abs().max() < 1e-5:
        raise UserError(
            f"{stored.path}: scaling_factor is not 1 everywhere (a finetuned scale), which is no part of ours."
        )


def _spec(architecture: str, d: int, f: int, k: float | None) -> DictionarySpec:
    if architecture == "topk":
        assert k is not None
        return DictionarySpec(n_sites=1, width=d, n_latents=f, sparsity="topk", k=min(int(k), f))
    return DictionarySpec(n_sites=1, width=d, n_latents=f, sparsity="l1" if architecture == "standard" else "jumprelu")


def _facts(config: Config, architecture: str, k: float | None, scale_M: Tensor | None) -> Facts:
    hook = config.metadata.hook_name or config.hook_name
    layer = config.metadata.hook_layer if config.metadata.hook_layer is not None else config.hook_layer
    return Facts(
        model=config.metadata.model_name or config.model_name,
        hook=hook,
        layer=layer if layer is not None else layer_in(hook),
        kind=architecture,
        k=k,
        normalisation="none" if scale_M is None else f"activations times {float(scale_M[0]):.6g}",
    )


def _notes(config: Config) -> tuple[str, ...]:
    if config.dtype in ("float32", "torch.float32"):
        return ()
    return (f"SAELens computes it in {config.dtype}; here it is computed in float32.",)


def write(folder: Path, dictionary: Dictionary, facts: Facts) -> None:
    """Write a dictionary of one site; `batch_topk` becomes a jumprelu of thresholds θ / ‖d_j‖, `l1` a standard one."""
    refuse_writing(dictionary, NAME, ("batch_topk", "topk", "jumprelu", "l1"), "one site")
    spec = dictionary.spec
    encoder_FMD, bias_F, decoder_FMD, bias_MD = raw_weights(dictionary)
    config = {"architecture": {"topk": "topk", "l1": "standard"}.get(spec.sparsity, "jumprelu")}
    if spec.sparsity == "topk":
        encoder_FMD, bias_F, decoder_FMD = unit_rows(encoder_FMD, bias_F, decoder_FMD)
        config |= {"k": spec.k, "rescale_acts_by_decoder_norm": False}
    tensors = {"W_enc": encoder_FMD[:, 0].T, "b_enc": bias_F, "W_dec": decoder_FMD[:, 0], "b_dec": bias_MD[0]}
    if config["architecture"] == "jumprelu":
        tensors["threshold"] = dictionary.latent_thresholds()
    write_tensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, {**config, **_config(spec, facts)})


def _config(spec: DictionarySpec, facts: Facts) -> dict[str, Any]:
    where = {"model_name": facts.model, "hook_name": facts.hook, "hook_layer": facts.layer}
    return {
        "d_in": spec.width,
        "d_sae": spec.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": _FORM, **{k: v for k, v in where.items() if v is not None}},
    }
