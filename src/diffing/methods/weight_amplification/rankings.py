"""Rankings: tokens that the amplified model predicts where the base does not, and phrases of its texts."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from diffing.analysis.bootstrap import mean_stderr
from diffing.analysis.over_representation import over_represented
from diffing.analysis.phrases import phrases
from diffing.core.tables import TokenScoreRow, table_of
from diffing.methods.weight_amplification.config import WeightAmplificationConfig
from diffing.methods.weight_amplification.gather import Gathered
from diffing.methods.weight_amplification.results import PhraseRow

_LEAST = 2


def token_score_table(data: Gathered, factor: float, ids_V: np.ndarray, names: Mapping[int, str]) -> pa.Table:
    """All compared tokens by their part in the mean KL at a factor of the whole change: the mean of p·log(p/q).

    Args:
        data: All settings.
        factor: Which one is read.
        ids_V: Vocabulary id of each column.
        names: String of each id.
    """
    effect = data.whole(factor).effect
    counts = effect.counts["kl"]
    n_tokens, n_sequences = int(counts.sum()), int((counts > 0).sum())
    score = effect.terms_V / n_tokens
    error = mean_stderr(effect.terms_V, effect.squares_V, n_tokens, n_sequences)
    rows = [
        TokenScoreRow(
            int(ids_V[i]), names[int(ids_V[i])], float(score[i]), None if np.isnan(error[i]) else float(error[i]), None
        )
        for i in np.lexsort((ids_V, -score))
    ]
    return table_of(TokenScoreRow, rows)


def phrase_table(data: Gathered, config: WeightAmplificationConfig) -> pa.Table:
    """Per positive factor, the phrases that stand in more of its texts than of the base's."""
    base = [phrases(t.text, config.longest_phrase) for t in data.whole(0.0).texts]
    rows: list[PhraseRow] = []
    for outcome in data.grid():
        if outcome.setting.factor <= 0 or not outcome.texts:
            continue
        mine = [phrases(t.text, config.longest_phrase) for t in outcome.texts]
        found = [e for e in over_represented(mine, base, _LEAST) if e.z > 0][: config.n_phrases]
        rows += [
            PhraseRow(outcome.setting.factor, rank, e.item, e.n_texts, e.n_against, e.log_odds, e.z, e.p, e.is_over)
            for rank, e in enumerate(found)
        ]
    return table_of(PhraseRow, rows)
