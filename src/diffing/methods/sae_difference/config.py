"""Options of `sae_difference`."""

from diffing.analysis.latents.config import DictionaryConfig


class SaeDifferenceConfig(DictionaryConfig):
    """Options of the sparse autoencoder of activation differences: those of `DictionaryConfig`."""

    name: str = "sae_difference"
