"""Trains a sparse autoencoder on the difference of the models' activations."""

from diffing.analysis.context import RunContext
from diffing.analysis.latents.run import run_dictionary
from diffing.core.config import parse
from diffing.core.method import MethodOutput
from diffing.dictionaries.spec import DictionarySpec
from diffing.methods.sae_difference.config import SaeDifferenceConfig


def run(config: SaeDifferenceConfig, context: RunContext) -> MethodOutput:
    """Train or open an autoencoder of δ = f − b at one slot.

    Raises:
        UserError: Options do not fit, or differences are constant or not finite.
    """

    def spec(width: int, n_latents: int) -> DictionarySpec:
        values = {
            "n_sites": 1, "width": width, "n_latents": n_latents, "sparsity": config.sparsity, "k": config.k,
            "unit_decoder": True,
        }  # fmt: skip
        return parse(DictionarySpec, values, "diffing.method")

    return run_dictionary(config, context, "difference", spec)
