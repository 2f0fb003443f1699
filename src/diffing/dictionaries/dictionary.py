"""The module: encoder, sparsity, decoder, of M activations at once (M = 1: a sparse autoencoder)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from diffing.core.errors import UserError
from diffing.dictionaries.codes import Codes
from diffing.dictionaries.products import SparseDecode, SparseEncode, pair_products
from diffing.dictionaries.selection import above, batch_topk, row_topk
from diffing.dictionaries.spec import DictionarySpec

_CHUNK_BYTES = 2**27


class Dictionary(nn.Module):
    """x̃ ≈ Σ_j a_j d_j + b_d with a = ReLU(W_e (x̃ − b_d) + b_e), sparse.

    x̃^m = s_m · x^m are activations in normalised units; methods that take `x_NMD` take them in these units unless they
    say otherwise. The score of a latent is a_j · Σ_m ‖d_j^m‖ (what it contributes, whatever the scale of its row).

    Args:
        spec: Shape and kind.
        scale_M: s_m by which raw activations are multiplied; None: 1.

    Attributes:
        encoder_FMD: W_e.
        encoder_bias_F: b_e.
        decoder_FMD: Rows d_j^m.
        decoder_bias_MD: b_d.
        scale_M: s_m.
        threshold: θ, the score above which latents are active outside training (`batch_topk`); 0 until trained.
        log_threshold_F: Logarithm of each latent's threshold on a_j (`jumprelu`).
    """

    scale_M: Tensor
    threshold: Tensor
    lives_FM: Tensor

    def __init__(self, spec: DictionarySpec, scale_M: Tensor | None = None) -> None:
        super().__init__()
        f, m, d = spec.n_latents, spec.n_sites, spec.width
        self.spec = spec
        self.encoder_FMD = nn.Parameter(torch.zeros(f, m, d))
        self.encoder_bias_F = nn.Parameter(torch.zeros(f))
        self.decoder_FMD = nn.Parameter(torch.zeros(f, m, d))
        self.decoder_bias_MD = nn.Parameter(torch.zeros(m, d))
        if spec.sparsity == "jumprelu":
            self.log_threshold_F = nn.Parameter(torch.full((f,), -2.0))
        self.register_buffer("scale_M", torch.ones(m) if scale_M is None else scale_M.float().clone())
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("lives_FM", _lives(spec), persistent=False)

    def normalised(self, raw_NMD: Tensor) -> Tensor:
        """Raw activations in normalised units, float32, on the dictionary's device."""
        m, d = self.spec.n_sites, self.spec.width
        if raw_NMD.dim() != 3 or raw_NMD.shape[1:] != (m, d):
            raise UserError(
                f"Activations of shape {tuple(raw_NMD.shape)} do not fit a dictionary of {m} sites of width {d}."
            )
        return raw_NMD.to(self.scale_M.device, torch.float32) * self.scale_M[:, None]

    def raw(self, x_NMD: Tensor) -> Tensor:
        """Back to raw units."""
        return x_NMD / self.scale_M[:, None]

    def norms_FM(self) -> Tensor:
        """‖d_j^m‖."""
        return self.decoder_FMD.norm(dim=2)

    def score_scale_F(self) -> Tensor:
        """What activations are multiplied by to give scores; no gradient."""
        with torch.no_grad():
            scale_F = self.norms_FM().sum(1)
            scale_F[: self.spec.n_shared] /= self.spec.shared_ratio
            return scale_F

    def pre_activations(self, x_NMD: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """W_e (x̃ − b_d) + b_e, (N, F), the product computed in `dtype`."""
        centred_NE = (x_NMD - self.decoder_bias_MD).flatten(1)
        weight_FE = self.encoder_FMD.flatten(1)
        if dtype == torch.float32:
            return torch.addmm(self.encoder_bias_F, centred_NE, weight_FE.T)
        return torch.addmm(self.encoder_bias_F.to(dtype), centred_NE.to(dtype), weight_FE.to(dtype).T)

    def select(self, x_NMD: Tensor, k: float, dtype: torch.dtype = torch.float32) -> tuple[Codes, Tensor, Tensor]:
        """The latents that a training step keeps: (codes that carry gradients, their scores, all scores).

        Only for `batch_topk` and `topk`. With a rounded `dtype` the product only finds candidates: they are ranked by,
        and have, their exact values.

        Args:
            x_NMD: A batch.
            k: Latents per token; fractions are rounded to whole latents of the batch.
            dtype: Of the encoding product.
        """
        n, f = len(x_NMD), self.spec.n_latents
        x_NE, centre_E = x_NMD.flatten(1), self.decoder_bias_MD.flatten()
        weight_FE, scale_F = self.encoder_FMD.flatten(1), self.score_scale_F()
        with torch.no_grad():
            scores_NF = self.pre_activations(x_NMD, dtype).mul_(scale_F.to(dtype))
            centred_NE = x_NE - centre_E

            def exact(flat: Tensor) -> Tensor:
                row_P, latent_P = flat // f, flat % f
                value_P = pair_products(centred_NE, row_P, weight_FE, latent_P) + self.encoder_bias_F[latent_P]
                return value_P * scale_F[latent_P]

            recompute = None if dtype == torch.float32 else exact
            if self.spec.sparsity == "batch_topk":
                flat, score_P = batch_topk(scores_NF, round(k * n), recompute)
            else:
                flat, score_P = row_topk(scores_NF, min(f, max(1, round(k))), recompute)
            row_P, latent_P = flat // f, flat % f
            known_P = score_P.float() / scale_F[latent_P]
        value_P = SparseEncode.apply(x_NE, centre_E, weight_FE, self.encoder_bias_F, (row_P, latent_P), known_P)
        return Codes(row_P, latent_P, value_P, n, f), score_P, scores_NF

    def decode(self, codes: Codes, bias: bool = True) -> Tensor:
        """Σ_j a_j d_j, with b_d unless `bias` is false, (N, M, D); carries gradients."""
        decoder_FE = self.decoder_FMD.flatten(1)
        flat_NE = SparseDecode.apply(codes.value_P, decoder_FE, codes.row_P, codes.latent_P, codes.n_rows)
        made_NMD = flat_NE.unflatten(1, self.decoder_bias_MD.shape)
        return made_NMD + self.decoder_bias_MD if bias else made_NMD

    @torch.no_grad()
    def encode(self, x_NMD: Tensor) -> Codes:
        """The active latents as outside training: the same for a token in whatever batch it comes."""
        parts = [self._encode(x_NMD[rows]) for rows in _chunks(len(x_NMD), self.spec.n_latents)]
        rows = [0]
        for part in parts:
            rows.append(rows[-1] + part.n_rows)
        return Codes(
            torch.cat([p.row_P + first for p, first in zip(parts, rows, strict=False)]),
            torch.cat([p.latent_P for p in parts]),
            torch.cat([p.value_P for p in parts]),
            len(x_NMD),
            self.spec.n_latents,
        )

    def _encode(self, x_NMD: Tensor) -> Codes:
        pre_NF, f = self.pre_activations(x_NMD), self.spec.n_latents
        if self.spec.sparsity == "topk":
            scale_F = self.score_scale_F()
            flat, score_P = row_topk(pre_NF * scale_F, self.spec.k)
            value_P = score_P / scale_F[flat % f]
        else:
            flat, value_P = above(pre_NF, self.latent_thresholds())
        return Codes(flat // f, flat % f, value_P, len(x_NMD), f)

    @torch.no_grad()
    def latent_thresholds(self) -> Tensor:
        """The activation above which each latent is active outside training, (F,); 0 for `topk`, which has none."""
        if self.spec.sparsity == "jumprelu":
            return self.log_threshold_F.exp()
        return self.threshold / self.score_scale_F().clamp_min(1e-30)

    @torch.no_grad()
    def constrain_grads_(self) -> None:
        """Keep gradients within the constraints: tied rows, masked rows, and rows of unit length."""
        grad = self.decoder_FMD.grad
        if grad is None:
            return
        if self.spec.n_shared:
            grad[: self.spec.n_shared] = grad[: self.spec.n_shared].sum(1, keepdim=True)
        if self.spec.n_dedicated:
            for weights in (self.decoder_FMD, self.encoder_FMD):
                assert weights.grad is not None
                weights.grad.mul_(self.lives_FM[:, :, None])
        if self.spec.unit_decoder:
            unit_FD = self.decoder_FMD[:, 0]
            along_F = torch.einsum("fd,fd->f", grad[:, 0], unit_FD)
            grad[:, 0].addcmul_(along_F[:, None], unit_FD, value=-1)

    @torch.no_grad()
    def constrain_(self) -> None:
        """Put decoder rows back to unit length, where that is asked for."""
        if self.spec.unit_decoder:
            self.decoder_FMD.div_(self.decoder_FMD.norm(dim=2, keepdim=True).clamp_min(1e-12))


def _lives(spec: DictionarySpec) -> Tensor:
    """1 where a latent may have weights at a site, (F, M)."""
    lives_FM = torch.ones(spec.n_latents, spec.n_sites)
    first = spec.n_latents - spec.n_sites * spec.n_dedicated
    if spec.n_dedicated:
        lives_FM[first:] = torch.eye(spec.n_sites).repeat_interleave(spec.n_dedicated, 0)
    return lives_FM


def _chunks(n_rows: int, n_latents: int) -> Iterator[slice]:
    """Rows whose (N, F) scores take `_CHUNK_BYTES`."""
    step = max(1, _CHUNK_BYTES // (4 * n_latents))
    for start in range(0, max(n_rows, 1), step):
        yield slice(start, start + step)
