"""The divergences at every token of one text, for trying a pair out."""

import numpy as np

from diffing.analysis.one_text import corpus_of
from diffing.core.probing import TokenValues
from diffing.data.batches import make_batch
from diffing.data.sequences import TokenSequence
from diffing.methods.kl.config import KLConfig
from diffing.methods.kl.stream import Reader
from diffing.models.pair import ModelPair

_SHOWN = {
    "kl": "KL",
    "reverse_kl": "reverse KL",
    "js": "JS",
    "delta_nll": "ΔNLL",
    "entropy_ft": "entropy, finetuned",
    "entropy_base": "entropy, base",
}
_SIGNED = ("delta_nll",)


def probe(pair: ModelPair, sequence: TokenSequence) -> tuple[TokenValues, ...]:
    """What `tokens.parquet` of a run on this text alone would hold, in nats; each speaks of the prediction made there.

    Raises:
        UserError: The text has tokens that the two vocabularies do not share.
    """
    batch = make_batch(corpus_of(pair, sequence), [0], pad_id=0)
    none_N = np.zeros(len(sequence.ids), dtype=bool)
    reader = Reader(pair, KLConfig().temperature, top_k=1, is_kept=lambda i: none_N)
    (found,) = reader.read(batch)
    columns = found.tokens.values
    return tuple(
        TokenValues(title, "nats", _known(columns[name]), is_signed=name in _SIGNED) for name, title in _SHOWN.items()
    )


def _known(values_T: np.ndarray) -> tuple[float | None, ...]:
    return tuple(v if np.isfinite(v) else None for v in values_T.tolist())
