"""Options of the dictionary methods."""

from typing import Literal

from pydantic import Field, model_validator

from diffing.core.config import Strict
from diffing.core.errors import UserError
from diffing.core.layers import Layers, Site
from diffing.core.method import MethodConfig, Needs
from diffing.dictionaries.spec import Sparsity

_MOST_EPOCHS = 20
_ENOUGH_TOKENS = 10_000_000


class TrainingOptions(Strict):
    """How the dictionary is trained.

    Args:
        n_tokens: Tokens learned from, repetitions counted; None: each of the text's once, and up to 20 times while
            that is less than 10 million.
        batch_rows: Tokens of a step.
        held_out: Share of each dataset's documents that is only used to measure.
        lr: Peak learning rate; None: 2e-4 · √(2¹⁴ / latents), more for fewer than 20,000 steps, at most 3e-3.
        warmup: Share of the steps over which it rises.
        decay: Share of the steps over which it falls to 0.
        clip: Largest norm of the gradient.
        k_start: Active latents per token at the first step; None: k.
        k_anneal: Share of the steps over which it falls to k.
        aux_weight: Weight of AuxK, by which dead latents rebuild what the others leave.
        k_aux: Dead latents used per token; None: half the width.
        n_dead: Tokens of silence after which a latent is dead; None: a twentieth of `n_tokens`, at most 10 million.
        penalty: Weight of the sparsity penalty; None: 0.2 for l1, 1 for jumprelu.
        penalty_warmup: Share of the steps over which it rises.
        encode_dtype: Of the encoding product; values are exact in either.
        buffer_rows: Tokens whose activations are held in memory; of more text, the size of the shuffling buffer.
        checkpoint_steps: Steps between checkpoints.
        device: auto, cpu, cuda or another of PyTorch's names.
    """

    n_tokens: int | None = Field(default=None, ge=1)
    batch_rows: int = Field(default=1024, ge=1)
    held_out: float = Field(default=0.1, ge=0, lt=1)
    lr: float | None = Field(default=None, gt=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    decay: float = Field(default=0.2, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    k_start: int | None = Field(default=None, ge=1)
    k_anneal: float = Field(default=0.1, ge=0, le=1)
    aux_weight: float = Field(default=1 / 32, ge=0)
    k_aux: int | None = Field(default=None, ge=1)
    n_dead: int | None = Field(default=None, ge=1)
    penalty: float | None = Field(default=None, ge=0)
    penalty_warmup: float = Field(default=0.2, ge=0, le=1)
    encode_dtype: Literal["float32", "bfloat16"] = "float32"
    buffer_rows: int = Field(default=2**18, ge=1)
    checkpoint_steps: int = Field(default=200, ge=1)
    device: str = "auto"

    def budget(self, n_unique: int) -> int:
        """Tokens to learn from when the text has `n_unique`."""
        if self.n_tokens is not None:
            return self.n_tokens
        return max(n_unique, min(_MOST_EPOCHS * n_unique, _ENOUGH_TOKENS))


class DictionaryConfig(MethodConfig):
    """Options of a dictionary method.

    Args:
        layer: Layer to train on: a number, or a share of the depth; None: the middle one of `preprocessing.layers`.
        site: Where in the layer; None: the first of `preprocessing.sites`.
        path: A published dictionary to open instead of training one: a folder, or a hub id.
        revision: Of the hub id.
        n_latents: Latents; None: `expansion` times the width.
        expansion: See `n_latents`.
        k: Active latents per token (`batch_topk`, `topk`).
        outlier_norm: Tokens whose norm is more than so many times the median are left out everywhere (attention sinks
            beyond the first positions); None: none are.
        sparsity: batch_topk, topk, jumprelu or l1.
        training: How it is trained.
        n_seeds: Dictionaries trained, from different initial weights and orders of the data; the second tells which
            latents come back.
        n_examples: Examples kept of each latent: those where it is strongest.
        n_sampled: Examples drawn at random from its others.
        max_example_latents: Latents that have examples and read-outs, the most telling first.
        context_before: Tokens shown before the peak of an example.
        context_after: Tokens shown after it.
        n_lens_tokens: Tokens of a latent's logit-lens read-out.
        n_causal: Latents that are ablated and added in the running model; 0: none.
        n_random_sets: Sets of random latents of matched size that they are compared with.
        causal_tokens: Tokens of each dataset that the models run on, for this and for the loss recovered.
        n_causal_prompts: Held-out documents of each dataset whose openings the models continue with latents held up or
            down; 0: none.
        causal_text_tokens: New tokens of each of these texts.
        save_as: Layouts to save the dictionary in besides our own: saelens, sparsify, crosscoder_learning.
    """

    layer: int | float | None = None
    site: Site | None = None
    path: str | None = None
    revision: str | None = None
    n_latents: int | None = Field(default=None, ge=1)
    expansion: float = Field(default=2, gt=0)
    k: int = Field(default=32, ge=1)
    sparsity: Sparsity = "batch_topk"
    outlier_norm: float | None = Field(default=10, gt=1)
    training: TrainingOptions = TrainingOptions()
    n_seeds: int = Field(default=2, ge=1)
    n_examples: int = Field(default=10, ge=1)
    n_sampled: int = Field(default=10, ge=0)
    max_example_latents: int = Field(default=1024, ge=1)
    context_before: int = Field(default=24, ge=0)
    context_after: int = Field(default=12, ge=0)
    n_lens_tokens: int = Field(default=10, ge=0)
    n_causal: int = Field(default=16, ge=0)
    n_random_sets: int = Field(default=4, ge=2)
    causal_tokens: int = Field(default=1000, ge=1)
    n_causal_prompts: int = Field(default=4, ge=0)
    causal_text_tokens: int = Field(default=32, ge=1)
    save_as: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> "DictionaryConfig":
        if self.n_latents is not None:
            self.refuse_k(self.n_latents)
        return self

    def refuse_k(self, n_latents: int) -> None:
        """Raises UserError: k is more than the dictionary's latents."""
        if self.sparsity in ("batch_topk", "topk") and self.k > n_latents:
            raise UserError(
                f"diffing.method.k={self.k} is more than the dictionary's {n_latents} latents; lower k, or set "
                f"diffing.method.n_latents={self.k} or more."
            )


def needs(config: DictionaryConfig) -> Needs:
    """The activations that `config` asks for."""
    layers: Layers | None = None if config.layer is None else (config.layer,)
    return Needs(layers, layers, None if config.site is None else (config.site,), option="diffing.method.layer")
