"""crosscoder_learning: `config.json` with a dict_class and `model.safetensors`, several sites.

encoder.weight [M, d, F], encoder.bias [F], decoder.weight [M, F, d], decoder.bias [M, d]; a BatchTopKCrossCoder also
threshold, on a_j times a norm of its decoder rows of which there are five kinds; since 2025 activation_mean and
activation_std [M, d] (NaN: none) with activation_global_scale [M].
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from diffing.core.errors import UserError
from diffing.core.files import write_json
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.layouts.files import Foreign, Stored, read_config, read_tensors, write_tensors
from diffing.dictionaries.layouts.folding import assemble, exact_product, raw_weights, refuse_writing
from diffing.dictionaries.layouts.published import Facts, Published
from diffing.dictionaries.spec import DictionarySpec

NAME = "crosscoder_learning"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
CLASSES = ("CrossCoder", "BatchTopKCrossCoder")
CODES = ("CROSSCODER", "SAE", "MIXED", "NONE", "DECOUPLED")
_EPSILON = 1e-8  # what the library adds to a scale before it divides by it


class CodeSettings(Foreign):
    """What a config says of the norm that scores are made with, and of the sites."""

    code_normalization: str | None = None
    code_normalization_alpha_sae: float | None = 1.0
    code_normalization_alpha_cc: float | None = 0.1
    encoder_layers: list[int] | None = None
    encoder_layers_indices: list[int] | None = None
    decoder_type: str = "linear"
    keep_relative_variance: bool = True


class Config(CodeSettings):
    """`config.json`."""

    dict_class: str | None = None
    activation_dim: int = Field(ge=1)
    dict_size: int = Field(ge=1)
    num_layers: int | None = None
    k: float | None = None


@dataclass(frozen=True, eq=False)
class _Normaliser:
    """x̃^m = g_m (x^m − μ^m), undone by x^m = x̃^m / (g_m + ε) + μ^m."""

    mean_MD: Tensor
    scale_M: Tensor


def read(folder: Path) -> Published:
    """Open a crosscoder."""
    path = folder / CONFIG
    config = read_config(path, Config)
    stored = read_tensors(folder / WEIGHTS)
    kind = config.dict_class or CLASSES[stored.has("threshold")]
    if kind not in CLASSES:
        raise UserError(f"{path}: dict_class {kind} is none that can be opened ({', '.join(CLASSES)}).")
    stored.get("encoder.weight", None, config.activation_dim, config.dict_size)
    if config.num_layers is not None:
        stored.get("decoder.weight", config.num_layers, config.dict_size, config.activation_dim)
    dictionary, normalisation = from_tensors(stored, kind, config, path)
    return Published(dictionary, NAME, Facts(kind=kind, k=config.k, normalisation=normalisation))


def from_tensors(stored: Stored, kind: str, settings: CodeSettings, config_path: Path) -> tuple[Dictionary, str]:
    """A crosscoder and its normalisation in words, from tensors of whatever file.

    Args:
        stored: The tensors.
        kind: One of `CLASSES`.
        settings: From the config.
        config_path: For messages.
    """
    if settings.decoder_type != "linear":
        raise UserError(f"{config_path}: decoder_type {settings.decoder_type} is not supported, only linear.")
    _, d, f = stored.get("encoder.weight", None, None, None).shape
    decoder_FMD = stored.get("decoder.weight", None, f, d).permute(1, 0, 2)
    m = decoder_FMD.shape[1]
    encoder_FMD = _encoder(stored, settings, (m, d, f), config_path)
    bias_MD = stored.get("decoder.bias", m, d)
    cut = _cut(stored, kind, settings, decoder_FMD, config_path)
    spec = DictionarySpec(n_sites=m, width=d, n_latents=f, sparsity=cut.sparsity, k=min(cut.k, f))
    more = {"threshold": cut.threshold, "thresholds_F": cut.thresholds_F}
    normaliser = _normaliser(stored, settings, (m, d), config_path)
    centre_MD, words = torch.zeros_like(bias_MD), "none"
    if normaliser is not None:
        back_M1 = (normaliser.scale_M.double() / (normaliser.scale_M.double() + _EPSILON)).float()[:, None]
        centre_MD = normaliser.mean_MD * normaliser.scale_M[:, None]
        decoder_FMD, bias_MD = decoder_FMD * back_M1, bias_MD * back_M1 + centre_MD
        more["scale_M"] = normaliser.scale_M
        words = f"mean removed, times {', '.join(f'{s:.6g}' for s in normaliser.scale_M.tolist())}"
    bias_F = stored.get("encoder.bias", f)
    return assemble(spec, encoder_FMD, bias_F, decoder_FMD, bias_MD, centre_MD=centre_MD, **more), words


def _encoder(stored: Stored, settings: CodeSettings, shape: tuple[int, int, int], config_path: Path) -> Tensor:
    """W_e with zeros at sites that the encoder does not read."""
    m, d, f = shape
    sites = settings.encoder_layers or settings.encoder_layers_indices or list(range(m))
    if len(set(sites)) != len(sites) or not set(sites) <= set(range(m)):
        raise UserError(f"{config_path}: encoder_layers {sites} are not among the {m} sites of the decoder.")
    encoder_FMD = torch.zeros(f, m, d)
    encoder_FMD[:, sites] = stored.get("encoder.weight", len(sites), d, f).permute(2, 0, 1)
    return encoder_FMD


@dataclass(frozen=True, eq=False)
class _Cut:
    """Which activations are kept."""

    sparsity: Literal["l1", "batch_topk", "jumprelu"] = "l1"
    k: int = 1
    threshold: float = 0.0
    thresholds_F: Tensor | None = None


def _cut(stored: Stored, kind: str, settings: CodeSettings, decoder_FMD: Tensor, config_path: Path) -> _Cut:
    code = _code(stored, settings, config_path)
    if kind == "CrossCoder":
        return _Cut()
    if code == "DECOUPLED":
        raise UserError(
            f"{config_path}: code_normalization=DECOUPLED keeps other latents at each site, which cannot be expressed."
        )
    threshold = stored.number("threshold")
    if threshold < 0:
        raise UserError(
            f"{stored.path}: threshold is {threshold:g}, so training never set it and what it keeps depends on the "
            "batch."
        )
    k = max(1, int(stored.number("k")))
    if code == "CROSSCODER":
        return _Cut("batch_topk", k, threshold)
    per_site_F, joint_F = decoder_FMD.norm(dim=2).sum(1), decoder_FMD.flatten(1).norm(dim=1)
    sae, cc = settings.code_normalization_alpha_sae or 0.0, settings.code_normalization_alpha_cc or 0.0
    norm_F = {"SAE": joint_F, "MIXED": sae * joint_F + cc * per_site_F, "NONE": torch.ones_like(joint_F)}[code]
    return _Cut("jumprelu", k, 0.0, threshold / norm_F.clamp_min(1e-30))


def _code(stored: Stored, settings: CodeSettings, config_path: Path) -> str:
    """Which norm scores are made with: the config's, else the file's, else the first, as in the library."""
    if settings.code_normalization is not None:
        code = settings.code_normalization.upper()
        if code not in CODES:
            raise UserError(f"{config_path}: code_normalization {code} is not known ({', '.join(CODES)}).")
        return code
    if not stored.has("code_normalization_id"):
        return CODES[0]
    number = int(stored.number("code_normalization_id"))
    if not 1 <= number <= len(CODES):
        raise UserError(f"{stored.path}: code_normalization_id {number} is not known (1 to {len(CODES)}).")
    return CODES[number - 1]


def _normaliser(
    stored: Stored, settings: CodeSettings, shape: tuple[int, int], config_path: Path
) -> _Normaliser | None:
    if not stored.has("activation_mean") or not stored.has("activation_std"):
        return None
    mean_MD, std_MD = stored.raw("activation_mean", *shape), stored.raw("activation_std", *shape)
    if mean_MD.isnan().any() or std_MD.isnan().any():
        return None
    if not settings.keep_relative_variance:
        raise UserError(f"{config_path}: keep_relative_variance=false scales every number by itself, not supported.")
    return _Normaliser(mean_MD, stored.get("activation_global_scale", shape[0]))


def write(folder: Path, dictionary: Dictionary, facts: Facts) -> None:
    """Write a crosscoder of kind batch_topk or l1; of the facts, the layout has a place for none.

    Scores are made with decoder norms in normalised units. Where sites have different scales, these are therefore
    written as the library's own normaliser (with a mean of 0) and not folded into the weights.
    """
    refuse_writing(dictionary, NAME, ("batch_topk", "l1"), "several sites")
    spec, scale_M = dictionary.spec, dictionary.scale_M
    is_batch = spec.sparsity == "batch_topk"
    if spec.n_shared and is_batch:
        raise UserError(
            f"The layout {NAME} has one threshold for all latents, and n_shared={spec.n_shared} have another."
        )
    is_even = bool((scale_M == scale_M[0]).all())
    keeps_scale = is_batch and not is_even
    if keeps_scale:
        weights = tuple(p.detach() for p in (
            dictionary.encoder_FMD, dictionary.encoder_bias_F, dictionary.decoder_FMD, dictionary.decoder_bias_MD
        ))  # fmt: skip
    else:
        weights = raw_weights(dictionary)
    encoder_FMD, bias_F, decoder_FMD, bias_MD = weights
    tensors = {
        "encoder.weight": encoder_FMD.permute(1, 2, 0),
        "encoder.bias": bias_F - exact_product(encoder_FMD, bias_MD),
        "decoder.weight": decoder_FMD.permute(1, 0, 2),
        "decoder.bias": bias_MD,
        "code_normalization_id": torch.tensor(1),
    }
    if is_batch:
        threshold = dictionary.threshold if keeps_scale else dictionary.threshold / scale_M[0]
        tensors |= {"k": torch.tensor(spec.k, dtype=torch.int32), "threshold": threshold.float()}
    write_tensors(folder / WEIGHTS, tensors | (_written_normaliser(scale_M, spec.width) if keeps_scale else {}))
    write_json(folder / CONFIG, _written_config(spec))


def _written_normaliser(scale_M: Tensor, width: int) -> dict[str, Tensor]:
    """Buffers that make the library multiply by s_m: its scale is 1 / √Σσ²."""
    std_M = 1 / scale_M / width**0.5
    return {
        "target_rms": torch.tensor(1.0),
        "activation_mean": torch.zeros(len(scale_M), width),
        "activation_std": std_M[:, None].expand(-1, width),
        "activation_global_scale": scale_M,
    }


def _written_config(spec: DictionarySpec) -> dict[str, str | int]:
    """Arguments of the library's class and dict_class; it takes no others."""
    is_batch = spec.sparsity == "batch_topk"
    config: dict[str, str | int] = {
        "dict_class": CLASSES[is_batch],
        "activation_dim": spec.width,
        "dict_size": spec.n_latents,
        "num_layers": spec.n_sites,
        "code_normalization": "CROSSCODER",
    }
    return config | ({"k": spec.k} if is_batch else {})
