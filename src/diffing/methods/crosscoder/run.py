"""Trains a crosscoder on both models' activations and tells which latents are whose."""

from diffing.analysis.context import RunContext
from diffing.analysis.latents.run import run_dictionary
from diffing.core.config import parse
from diffing.core.errors import UserError
from diffing.core.method import MethodOutput
from diffing.dictionaries.spec import DictionarySpec
from diffing.methods.crosscoder.config import CrosscoderConfig


def run(config: CrosscoderConfig, context: RunContext) -> MethodOutput:
    """Train or open a crosscoder of the pair at one slot.

    Raises:
        UserError: Options do not fit, or activations are constant or not finite.
    """

    def spec(width: int, n_latents: int) -> DictionarySpec:
        n_set_apart = config.n_shared + 2 * config.n_dedicated
        if n_set_apart > n_latents:
            raise UserError(
                f"diffing.method.n_shared={config.n_shared} and twice n_dedicated={config.n_dedicated} are more than "
                f"the dictionary's {n_latents} latents; lower them, or set diffing.method.n_latents={n_set_apart} or "
                "more."
            )
        values = {
            "n_sites": 2, "width": width, "n_latents": n_latents, "sparsity": config.sparsity, "k": config.k,
            "n_shared": config.n_shared, "shared_ratio": config.shared_ratio, "n_dedicated": config.n_dedicated,
        }  # fmt: skip
        return parse(DictionarySpec, values, "diffing.method")

    return run_dictionary(config, context, "pair", spec, config.norm)
