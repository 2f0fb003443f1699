"""How the learning rate, the number of active latents and the sparsity penalty change over training."""

from typing import Literal

from pydantic import Field

from diffing.core.config import Strict

_MANY_STEPS = 20_000
_LARGEST_LR = 3e-3


class TrainingSpec(Strict):
    """How a dictionary is trained.

    Args:
        n_steps: Batches.
        lr: Peak learning rate of Adam; None: 2e-4 · √(2¹⁴ / F) (Gao et al. 2024, section 2.3), of fewer than 20,000
            steps √(20,000 / steps) times that, at most 3e-3.
        warmup: Share of the steps over which the learning rate rises from 0.
        decay: Share of the steps, at the end, over which it falls to 0.
        clip: Largest norm of the gradient.
        k_start: Active latents per token at the first step; falls to k over `k_anneal`. None: k from the start.
        k_anneal: Share of the steps over which it falls.
        aux_weight: Weight of AuxK.
        k_aux: Dead latents that rebuild the residual, per token; None: half the width.
        n_dead: Tokens after which a latent that never was active counts as dead; None: a twentieth of the budget, at
            most 10 million.
        penalty: Weight of the sparsity penalty (`l1`, `jumprelu`).
        penalty_warmup: Share of the steps over which it rises from 0.
        encode_dtype: Of the encoding product: rounding it only affects which latents are candidates.
    """

    n_steps: int = Field(ge=1)
    lr: float | None = Field(default=None, gt=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    decay: float = Field(default=0.2, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    k_start: int | None = Field(default=None, ge=1)
    k_anneal: float = Field(default=0.1, ge=0, le=1)
    aux_weight: float = Field(default=1 / 32, ge=0)
    k_aux: int | None = Field(default=None, ge=1)
    n_dead: int | None = Field(default=None, ge=1)
    penalty: float = Field(default=0.02, ge=0)
    penalty_warmup: float = Field(default=0.2, ge=0, le=1)
    encode_dtype: Literal["float32", "bfloat16"] = "float32"

    def peak_lr(self, n_latents: int) -> float:
        """The learning rate after warm-up."""
        if self.lr is not None:
            return self.lr
        haste = max(1.0, _MANY_STEPS / self.n_steps) ** 0.5
        return min(_LARGEST_LR, haste * 2e-4 * (2**14 / n_latents) ** 0.5)

    def lr_share(self, step: int) -> float:
        """Learning rate at `step` (from 0) as a share of its peak."""
        up = (step + 1) / max(1.0, self.warmup * self.n_steps)
        down = (self.n_steps - step) / max(1.0, self.decay * self.n_steps)
        return min(1.0, up, down)

    def k_at(self, step: int, k: int) -> float:
        """Active latents per token at `step`."""
        if self.k_start is None:
            return k
        left = max(0.0, 1 - step / max(1.0, self.k_anneal * self.n_steps))
        return k + left * (self.k_start - k)

    def penalty_at(self, step: int) -> float:
        """Weight of the sparsity penalty at `step`."""
        return self.penalty * min(1.0, (step + 1) / max(1.0, self.penalty_warmup * self.n_steps))

    def dead_after(self, batch_rows: int) -> int:
        """Tokens of silence after which a latent is dead."""
        return self.n_dead if self.n_dead is not None else max(1, min(10**7, self.n_steps * batch_rows // 20))
