"""The text whose tokens both models know, for methods that compare their predictions."""

import numpy as np

from diffing.activations.reading import comparable_sequences
from diffing.analysis.context import RunContext
from diffing.core.errors import UserError
from diffing.data.token_table import TokenTable
from diffing.data.tokens import Corpus


def comparable_corpus(context: RunContext) -> tuple[Corpus, list[str]]:
    """The corpus without sequences that hold tokens only one of the vocabularies knows, and sentences on that.

    Raises:
        UserError: None is left.
    """
    corpus, pair = context.corpus, context.pair
    chosen, left_out = comparable_sequences(corpus, pair)
    if pair.vocabulary.shared_ids is None or chosen is None:
        return corpus, []
    good = tuple(corpus.sequences[i] for i in chosen)
    note = (
        f"vocabularies differ: compared on the {len(pair.vocabulary.shared_ids):,} ids whose strings agree, "
        "both distributions renormalised"
    )
    return Corpus(corpus.datasets, good, corpus.fingerprint, corpus.notes, corpus.n_documents), [note, *left_out]


def compared_tokens(tokens: TokenTable, context: RunContext) -> np.ndarray:
    """Which tokens count in statistics of predictions, (N,) bool: no leading BOS, and no template tokens on request.

    Raises:
        UserError: None is left.
    """
    bos = context.tokenizer.bos_token_id
    kept_N = tokens.kept(bos if isinstance(bos, int) else None, 0, context.skip_template_tokens)
    if not kept_N.any():
        raise UserError(
            "No token is left to compare; lower the number of masked tokens (data.skip_template_tokens=false)."
        )
    return kept_N


def compared_ids(context: RunContext, width: int) -> np.ndarray:
    """Vocabulary ids of the columns of logits that were cut to what both models know.

    Args:
        context: Of the run.
        width: Columns there are.
    """
    shared = context.pair.vocabulary.shared_ids
    return np.arange(width) if shared is None else shared.cpu().numpy()
