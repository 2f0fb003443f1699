"""How strongly tokens rise at every position of one text, for trying a pair out."""

import numpy as np

from diffing.analysis.one_text import corpus_of
from diffing.core.probing import TokenValues
from diffing.data.batches import make_batch
from diffing.data.sequences import TokenSequence
from diffing.methods.diff_mining.config import DiffMiningConfig
from diffing.methods.diff_mining.stream import Miner
from diffing.models.pair import ModelPair


def probe(pair: ModelPair, sequence: TokenSequence) -> tuple[TokenValues, ...]:
    """The mean of the K largest D at each token, in nats.

    Raises:
        UserError: The text has tokens that the two vocabularies do not share.
    """
    config = DiffMiningConfig()
    kept_T = np.ones(len(sequence.ids), dtype=bool)
    miner = Miner(pair, config.top_k, config.floor, config.layer, lambda i: kept_T)
    (mined,) = miner.read(make_batch(corpus_of(pair, sequence), [0], pad_id=0))
    values = tuple(v if np.isfinite(v) else None for v in mined.strength_T.tolist())
    return (TokenValues(f"mean of the {config.top_k} largest D", "nats", values),)
