"""What of a source of activations a method looks at."""

import numpy as np

from diffing.activations.source import ActivationSource
from diffing.analysis.context import RunContext
from diffing.core.errors import UserError


def covered_tokens(source: ActivationSource) -> np.ndarray:
    """Which rows of the token table were read, (N,) bool."""
    covered_N = np.zeros(len(source.tokens), dtype=bool)
    covered_N[np.concatenate(source.block_tokens)] = True
    return covered_N


def kept_tokens(source: ActivationSource, context: RunContext, purpose: str) -> np.ndarray:
    """Which of them count in statistics, (N,) bool.

    Args:
        source: What is read.
        context: Which positions and template tokens are left out.
        purpose: What they are for, such as "compare".

    Raises:
        UserError: None is left.
    """
    bos = context.tokenizer.bos_token_id
    kept_N = covered_tokens(source) & source.tokens.kept(
        bos if isinstance(bos, int) else None, context.skip_first_tokens, context.skip_template_tokens
    )
    if not kept_N.any():
        raise UserError(
            f"No token is left to {purpose}; lower skip_first_tokens, set data.skip_template_tokens=false, or give "
            "longer texts."
        )
    return kept_N


def refuse_unread(example_layer: int | None, source: ActivationSource) -> None:
    """Refuse a layer for the examples that was not read.

    Raises:
        UserError: It is not among those of the source.
    """
    read = sorted({s.layer for s in source.slots})
    if example_layer is not None and example_layer not in read:
        raise UserError(
            f"diffing.method.example_layer={example_layer} is not among the layers that were read "
            f"({', '.join(map(str, read))}); add it to diffing.method.layers, or choose one of these."
        )
