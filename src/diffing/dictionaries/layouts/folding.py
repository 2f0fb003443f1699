"""Other libraries' ways to write an autoencoder, put into ours: where they centre, scale, and cut off.

All of them are x̃ = s·x, a = cut(W_e (x̃ − c) + b_e), x̂ = (Σ_j a_j d_j + b_d) / s; they differ in c (ours is b_d), in how
they cut, and in which unit a is.
"""

import torch
from torch import Tensor

from diffing.core.errors import UserError
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.spec import DictionarySpec

_SMALLEST, _LARGEST = 1e-30, 1e30
_EQUAL, _NEARLY = 1e-5, 1e-2
_ROWS = 4096


def assemble(
    spec: DictionarySpec,
    encoder_FMD: Tensor,
    encoder_bias_F: Tensor,
    decoder_FMD: Tensor,
    decoder_bias_MD: Tensor,
    *,
    centre_MD: Tensor | None = None,
    scale_M: Tensor | None = None,
    threshold: float = 0.0,
    thresholds_F: Tensor | None = None,
) -> Dictionary:
    """A dictionary of given weights.

    Args:
        spec: Shape and kind.
        encoder_FMD: W_e.
        encoder_bias_F: b_e, of an encoder that is given x̃ − c.
        decoder_FMD: d_j^m.
        decoder_bias_MD: b_d.
        centre_MD: c; None: b_d.
        scale_M: s_m; None: 1.
        threshold: θ of `batch_topk`.
        thresholds_F: Thresholds on a_j of `jumprelu`; those of 0 and below are made tiny: a_j > 0 is asked for anyway.
    """
    if centre_MD is not None:
        encoder_bias_F = encoder_bias_F + exact_product(encoder_FMD, decoder_bias_MD.double() - centre_MD.double())
    dictionary = Dictionary(spec, scale_M)
    state = {
        "encoder_FMD": encoder_FMD,
        "encoder_bias_F": encoder_bias_F,
        "decoder_FMD": decoder_FMD,
        "decoder_bias_MD": decoder_bias_MD,
        "scale_M": dictionary.scale_M,
        "threshold": torch.tensor(threshold),
    }
    if thresholds_F is not None:
        state["log_threshold_F"] = thresholds_F.clamp(_SMALLEST, _LARGEST).log()
    dictionary.load_state_dict({k: v.float().contiguous() for k, v in state.items()}, assign=True)
    return dictionary


def exact_product(weight_FMD: Tensor, vector_MD: Tensor) -> Tensor:
    """W v, (F,), summed in float64 without a float64 copy of all of W."""
    flat_E = vector_MD.double().flatten()
    parts = [rows_RMD.flatten(1).double() @ flat_E for rows_RMD in weight_FMD.split(_ROWS)]
    return torch.cat(parts).float()


def unit_rows(encoder_FMD: Tensor, encoder_bias_F: Tensor, decoder_FMD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same dictionary with decoder rows of length 1: a_j takes the length up. A row of zeros stays one."""
    norm_F = decoder_FMD.flatten(1).norm(dim=1)
    return (
        encoder_FMD * norm_F[:, None, None],
        encoder_bias_F * norm_F,
        decoder_FMD / norm_F.clamp_min(_SMALLEST)[:, None, None],
    )


def gated_thresholds(magnitude_F: Tensor, gate_bias_F: Tensor, magnitude_bias_F: Tensor) -> Tensor:
    """Thresholds by which a gated encoder is a JumpReLU.

    With π = W x, a gated encoder gives ReLU(e^r π + b_mag) where π + b_gate > 0, that is, where its magnitude exceeds
    b_mag − e^r b_gate (Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders", 3.2).

    Args:
        magnitude_F: e^r.
        gate_bias_F: b_gate.
        magnitude_bias_F: b_mag.
    """
    return (magnitude_bias_F.double() - magnitude_F.double() * gate_bias_F.double()).float()


def check_even_rows(decoder_FMD: Tensor, field: str) -> tuple[str, ...]:
    """Whether a ranking by a_j is one by a_j·‖d_j‖, which is ours: whether decoder rows have one length.

    Returns:
        A note where they have it only nearly.

    Raises:
        UserError: They do not; `field` is what says that activations are ranked as they are.
    """
    norm_F = decoder_FMD.flatten(1).norm(dim=1)
    spread = float((norm_F.max() - norm_F.min()) / norm_F.mean().clamp_min(_SMALLEST))
    if spread <= _EQUAL:
        return ()
    if spread <= _NEARLY:
        return (
            f"The lengths of its decoder rows differ by {spread:.1g}: where two activations are nearer to each other "
            "than that, another one of them may count among the top k than in its own library.",
        )
    raise UserError(
        f"The dictionary keeps the top k activations whatever the lengths of their decoder rows ({field}), which "
        f"differ by {spread:.0%} here: that ranking cannot be expressed."
    )


def raw_weights(dictionary: Dictionary) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(W_e, b_e, d, b_d) of the same dictionary without a scale: raw activations in, raw reconstruction out."""
    scale_M1 = dictionary.scale_M[:, None].detach()
    return (
        dictionary.encoder_FMD.detach() * scale_M1,
        dictionary.encoder_bias_F.detach(),
        dictionary.decoder_FMD.detach() / scale_M1,
        dictionary.decoder_bias_MD.detach() / scale_M1,
    )


def refuse_writing(dictionary: Dictionary, layout: str, kinds: tuple[str, ...], n_sites: str) -> None:
    """Refuse a dictionary whose kind or number of sites a layout has no place for.

    Args:
        dictionary: What is to be written.
        layout: Name of the layout.
        kinds: Sparsities that it has.
        n_sites: "one site" or "several sites".
    """
    spec = dictionary.spec
    if (spec.n_sites == 1) != (n_sites == "one site"):
        raise UserError(f"The layout {layout} is for dictionaries with {n_sites}, and this one has {spec.n_sites}.")
    if spec.sparsity not in kinds:
        raise UserError(f"The layout {layout} has no {spec.sparsity} dictionaries, only {', '.join(kinds)}.")
