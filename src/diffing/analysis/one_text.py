"""A corpus of one text, for trying a pair out."""

import numpy as np

from diffing.analysis.token_text import token_string
from diffing.core.errors import UserError
from diffing.data.sequences import TokenSequence
from diffing.data.tokens import Corpus
from diffing.models.pair import ModelPair


def corpus_of(pair: ModelPair, sequence: TokenSequence) -> Corpus:
    """The corpus that holds `sequence` alone, as methods read it.

    Raises:
        UserError: It has tokens that the two vocabularies do not share.
    """
    shared = pair.vocabulary.shared_ids
    if shared is not None:
        foreign = sequence.ids[~np.isin(sequence.ids, shared.cpu().numpy())]
        if len(foreign):
            first = token_string(pair.tokenizer, int(foreign[0]))
            raise UserError(
                f"The text has {len(foreign)} tokens that the two tokenizers do not share, such as {first!r}; "
                "leave them out, or compare models of one tokenizer."
            )
    return Corpus((sequence.dataset,), (sequence,), "", (), {sequence.dataset: 1})
