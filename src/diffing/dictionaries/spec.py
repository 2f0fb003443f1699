"""What a dictionary is: its shape, its sparsity, its variants."""

from typing import Literal

from pydantic import Field, model_validator

from diffing.core.config import Strict

Sparsity = Literal["batch_topk", "topk", "jumprelu", "l1"]


class DictionarySpec(Strict):
    """Shape and kind of a dictionary over M activations of width D at the same token.

    One activation (M = 1) with decoder rows of unit length is a sparse autoencoder; several are a crosscoder, whose
    decoder rows keep their lengths: they tell in which models a latent lives.

    Args:
        n_sites: Activations per token, M: models, or layers.
        width: Numbers per activation, D.
        n_latents: Latents, F.
        sparsity: `batch_topk` keeps the k·B largest scores of a batch, `topk` the k largest of each token, `jumprelu`
            what exceeds a learned threshold, `l1` what the ReLU leaves.
        k: Active latents per token of the first two.
        unit_decoder: Whether decoder rows are kept at length 1.
        n_shared: Designated shared latents: the first ones; one decoder row serves all sites.
        shared_ratio: The score of these is divided by this before selection (under L1 and JumpReLU their penalty is
            multiplied by it).
        n_dedicated: Latents of which each site has this many to itself: the last ones, site by site; encoder and
            decoder are masked at the other sites.
        bandwidth: Width of the kernel through which thresholds of `jumprelu` are learned.
    """

    n_sites: int = Field(ge=1)
    width: int = Field(ge=1)
    n_latents: int = Field(ge=1)
    sparsity: Sparsity = "batch_topk"
    k: int = Field(default=32, ge=1)
    unit_decoder: bool = False
    n_shared: int = Field(default=0, ge=0)
    shared_ratio: float = Field(default=0.15, gt=0, le=1)
    n_dedicated: int = Field(default=0, ge=0)
    bandwidth: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> "DictionarySpec":
        if self.sparsity in ("batch_topk", "topk") and self.k > self.n_latents:
            raise ValueError(f"k={self.k} is more than the {self.n_latents} latents; lower k or take more latents")
        if self.n_shared + self.n_sites * self.n_dedicated > self.n_latents:
            raise ValueError(
                f"{self.n_shared} shared and {self.n_sites}·{self.n_dedicated} dedicated latents are more than the "
                f"{self.n_latents} there are"
            )
        if self.n_sites == 1 and (self.n_shared or self.n_dedicated):
            raise ValueError("shared and dedicated latents need two sites or more")
        if self.unit_decoder and self.n_sites > 1:
            raise ValueError("unit_decoder needs one site: at several the lengths of decoder rows are what is learned")
        return self

    @property
    def is_top(self) -> bool:
        """Whether a number of scores is kept, rather than what exceeds a threshold."""
        return self.sparsity in ("batch_topk", "topk")
