"""Train and validation sequences, for data sets that come without a split."""

import numpy as np

from diffing.core.seeds import generator
from diffing.data.token_table import TokenTable


def validation_sequences(tokens: TokenTable, share: float, seed: int) -> np.ndarray:
    """Which sequences are held out, shape (S,); of each dataset the same share, and documents are never divided.

    Args:
        tokens: The corpus.
        share: Part of each dataset's documents to hold out; at least one where a dataset has two or more.
        seed: Determines the draw; datasets are drawn independently, so that adding one leaves the others' split alone.
    """
    held = np.zeros(tokens.n_sequences, dtype=bool)
    dataset_S = tokens.dataset_N[tokens.starts[:-1]]
    for number, name in enumerate(tokens.datasets):
        mine = np.flatnonzero(dataset_S == number)
        n = round(share * len(mine))
        n = min(max(n, 1), len(mine) - 1) if share > 0 else 0
        if n > 0:
            held[generator(seed, "validation", name).permutation(mine)[:n]] = True
    return held
