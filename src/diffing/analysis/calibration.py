"""What a method claims, decided against what the same method gives on a null pair.

Scores of the null say how often a score as high comes up where nothing is to be found. A score's p-value is its rank
among them, (1 + number of null scores at least as high) / (1 + number of null scores), and the claims are those that
Benjamini and Hochberg's procedure keeps at a false discovery rate of 5 %. No score has a threshold of its own.

With two nulls of one kind, tokens are judged by their excess over both: by how many times larger a share of the change
goes to a token than there, against how many times larger or smaller the nulls' shares are than each other's. What every
finetune does to a token then counts for nothing, and tokens that no null favours can be told from others that they do.
Ten are the fewest that can be claimed: no p-value is below one over the number of null scores.

Source: Bates, Candès, Lei, Romano and Sesia, Testing for Outliers with Conformal p-values (2023), whose theorem needs
scores of the null and of what is not changed to be exchangeable; Benjamini and Hochberg (1995).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from diffing.analysis.log_odds import benjamini_hochberg
from diffing.core.claims import Claims, ListClaims
from diffing.core.evidence import Evidence, ScalarEvidence
from diffing.core.result import Result

LEVEL = 0.05
FAINT = 0.1  # of a null's change: below it what stands out is rounding: no token, no example is claimed
_ONE_WHERE_IDENTICAL = "agreement"
_OF_TEXT = " · "  # between the name of a measure and the dataset it is of


@dataclass(frozen=True, eq=False)
class Ranking:
    """A method's full ranking of the vocabulary.

    Args:
        ids_V: Token ids.
        scores_V: Their scores; NaN where a token has none.
    """

    ids_V: np.ndarray
    scores_V: np.ndarray

    @classmethod
    def of(cls, result: Result) -> "Ranking | None":
        """The ranking of a result; None where its method ranks no tokens."""
        if "token_scores" not in result.tables():
            return None
        table = result.table("token_scores")
        return cls(table["token_id"].to_numpy(), table["score"].to_numpy().astype(np.float64))

    @property
    def known(self) -> "Ranking":
        """The tokens that have a score."""
        has_V = np.isfinite(self.scores_V)
        return Ranking(self.ids_V[has_V], self.scores_V[has_V])


def null_p_values(scores_N: Float[np.ndarray, " N"], null_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " N"]:
    """Rank of each score among those of the null, as a p-value; higher scores are more telling.

    Args:
        scores_N: To be judged.
        null_M: Of the null; with none every p-value is 1.
    """
    n_as_high_N = len(null_M) - np.searchsorted(np.sort(null_M), scores_N, side="left")
    return (1.0 + n_as_high_N) / (1.0 + len(null_M))


def claims_of(
    scores_N: Float[np.ndarray, " N"], null_M: Float[np.ndarray, " M"], level: float = LEVEL
) -> Bool[np.ndarray, " N"]:
    """Which scores are claimed against those of a null.

    Args:
        scores_N: To be judged; nothing below or at 0 is claimed.
        null_M: Of the null, from as many texts or tokens as could have been ranked there.
        level: False discovery rate.
    """
    return benjamini_hochberg(_p_values(scores_N, null_M), level) & (scores_N > 0)


def _p_values(scores_N: np.ndarray, null_M: np.ndarray) -> np.ndarray:
    """As `null_p_values`; 1 for what may not be claimed, lest it make room for others."""
    return np.where(scores_N > 0, null_p_values(scores_N, null_M), 1.0)


@dataclass(frozen=True, eq=False)
class _Judgement:
    """Tokens that were judged."""

    ids_V: np.ndarray
    scores_V: np.ndarray
    p_V: np.ndarray
    claimed_V: np.ndarray


def excess_claims(mine: Ranking, first: Ranking, second: Ranking, level: float = LEVEL) -> Ranking:
    """Which tokens take a larger share of the change than in two nulls, by more than these differ from each other.

    With s, a and b the logarithms of a token's share in the result and in the nulls, the smaller of s − a and s − b is
    ranked among all b − a and a − b: were the result a null like them, s − a would be distributed as these are. A
    share is a score over the sum of the positive ones; one mean share is added to each, so that tokens of which there
    is next to nothing in either differ by next to nothing.

    Args:
        mine: The result's ranking.
        first: That of a null.
        second: That of another null of the same kind.
        level: False discovery rate.

    Returns:
        The claimed tokens with their scores; a token that a null does not rank has no share of its change.
    """
    judged = _by_excess(mine, first, second, level)
    return Ranking(judged.ids_V[judged.claimed_V], judged.scores_V[judged.claimed_V])


def _by_excess(mine: Ranking, first: Ranking, second: Ranking, level: float = LEVEL) -> _Judgement:
    ids_V = np.union1d(mine.ids_V, np.union1d(first.ids_V, second.ids_V))
    scores_V = _at(mine, ids_V)
    logs = [_log_shares(scores) for scores in (scores_V, _at(first, ids_V), _at(second, ids_V))]
    if any(log is None for log in logs):
        return _Judgement(ids_V, scores_V, np.ones(len(ids_V)), np.zeros(len(ids_V), dtype=bool))
    s_V, a_V, b_V = (log for log in logs if log is not None)
    excess_V = np.where(scores_V > 0, np.minimum(s_V - a_V, s_V - b_V), -np.inf)
    null_2V = np.concatenate([b_V - a_V, a_V - b_V])
    return _Judgement(ids_V, scores_V, _p_values(excess_V, null_2V), claims_of(excess_V, null_2V, level))


def _by_rank(mine: Ranking, theirs: Ranking) -> _Judgement:
    scores_V, null_V = mine.scores_V, theirs.scores_V
    return _Judgement(mine.ids_V, scores_V, _p_values(scores_V, null_V), claims_of(scores_V, null_V))


def _log_shares(scores_V: np.ndarray) -> np.ndarray | None:
    """None where no score is positive."""
    positive_V = np.clip(scores_V, 0, None)
    total = positive_V.sum()
    return np.log(positive_V / total + 1 / len(positive_V)) if total > 0 else None


def _at(ranking: Ranking, ids_V: np.ndarray) -> np.ndarray:
    """Scores of these ids, of which the ranking's own are some; 0 for the others."""
    scores_V = np.zeros(len(ids_V))
    scores_V[np.searchsorted(ids_V, ranking.ids_V)] = ranking.scores_V
    return scores_V


def calibrate(
    found: Evidence, null: Evidence, ranking: Ranking | None, null_ranking: Ranking | None,
    second_ranking: Ranking | None = None,
    size: str = "",
) -> Claims:  # fmt: skip
    """Claims for every item of a result's evidence, and what the null has in its place.

    Args:
        found: The result's.
        null: The same method's on a null pair, same options and text.
        ranking: The result's full ranking of tokens; None where it has none.
        null_ranking: The null's.
        second_ranking: That of another null of the same kind; None: tokens are ranked among the null's alone.
        size: Headline measure that says how much changed; empty: none does.
    """
    is_faint = _is_faint(found, null, size)
    tokens, token_nulls = _tokens(found, ranking, null_ranking, second_ranking, is_faint)
    return Claims(
        level=LEVEL,
        tokens=tokens,
        token_nulls=token_nulls,
        examples=_listed([e.score for e in found.examples], [e.score for e in null.examples], is_faint),
        texts=_listed([t.score for t in found.texts], [t.score for t in null.texts]),
        scalars=tuple(_differs(s, _named(null.scalars, s.name)) for s in found.scalars),
        scalar_names=tuple(s.name for s in found.scalars),
        scalar_nulls=tuple(n.value if (n := _named(null.scalars, s.name)) else None for s in found.scalars),
    )


def _tokens(
    found: Evidence, ranking: Ranking | None, null_ranking: Ranking | None, second_ranking: Ranking | None,
    is_faint: bool,
) -> tuple[ListClaims, tuple[float | None, ...]]:  # fmt: skip
    """A listed token, or several merged into one, is claimed when one of its ids is in the full ranking."""
    if ranking is None or null_ranking is None:
        return ListClaims((None,) * len(found.tokens)), (None,) * len(found.tokens)
    mine, theirs = ranking.known, null_ranking.known
    if second_ranking is not None:
        judged = _by_excess(mine, theirs, second_ranking.known)
        n_null = 2 * len(judged.ids_V)
    else:
        judged = _by_rank(mine, theirs)
        n_null = len(theirs.ids_V)
    claimed_V = judged.claimed_V & (not is_faint)
    claimed_ids = set(judged.ids_V[claimed_V].tolist())
    p_values = dict(zip(judged.ids_V.tolist(), judged.p_V.tolist(), strict=True))
    nulls = dict(zip(theirs.ids_V.tolist(), theirs.scores_V.tolist(), strict=True))
    claims = ListClaims(
        flags=tuple(any(i in claimed_ids for i in t.token_ids) for t in found.tokens),
        n_tested=len(mine.ids_V),
        n_null=n_null,
        n_claimed=len(claimed_ids),
        threshold=float(judged.scores_V[claimed_V].min()) if len(claimed_ids) else None,
        p_values=tuple(min((p_values[i] for i in t.token_ids if i in p_values), default=None) for t in found.tokens),
    )
    return claims, tuple(nulls.get(t.token_ids[0]) if len(t.token_ids) == 1 else None for t in found.tokens)


def _is_faint(found: Evidence, null: Evidence, size: str) -> bool:
    """Whether the measure of size lies, on every text, nearer than a tenth of the null's way to where nothing changed.

    A ranking by shares, or by how much one token has of all the change, says nothing of how much there is to share.
    """
    ways = [
        (abs(s.value - _at_rest(s.name)), abs(n.value - _at_rest(s.name)))
        for s in found.scalars
        if s.name.partition(_OF_TEXT)[0] == size
        and s.value is not None
        and (n := _named(null.scalars, s.name)) is not None
        and n.value is not None
    ]
    known = [(mine, theirs) for mine, theirs in ways if theirs > 0]
    return bool(known) and all(mine < FAINT * theirs for mine, theirs in known)


def _listed(scores: Sequence[float | None], null: Sequence[float | None], is_faint: bool = False) -> ListClaims:
    """The best of equally many texts on both sides: the shorter list goes on with items below any score."""
    known = [s for s in scores if s is not None]
    if not known:
        return ListClaims((None,) * len(scores))
    theirs = [s for s in null if s is not None]
    n = max(len(known), len(theirs))
    scores_N, null_N = (np.array([*s, *[-np.inf] * (n - len(s))]) for s in (known, theirs))
    claimed_N = claims_of(scores_N, null_N) & (not is_faint)
    verdicts = iter(zip(claimed_N.tolist(), _p_values(scores_N, null_N).tolist(), strict=True))
    judged = [(None, None) if s is None else next(verdicts) for s in scores]
    threshold = float(scores_N[claimed_N].min()) if claimed_N.any() else None
    flags, p_values = (tuple(column) for column in zip(*judged, strict=True))
    return ListClaims(flags, len(known), len(theirs), int(claimed_N.sum()), threshold, p_values)


def _named(scalars: Sequence[ScalarEvidence], name: str) -> ScalarEvidence | None:
    return next((s for s in scalars if s.name == name), None)


def _differs(mine: ScalarEvidence, null: ScalarEvidence | None) -> bool | None:
    """Whether the interval lies farther from what identical models give than the null's; None where one is missing."""
    if mine.low is None or mine.high is None or null is None or null.low is None or null.high is None:
        return None
    at_rest = _at_rest(mine.name)
    if mine.low <= at_rest <= mine.high:
        return False
    nearest = min(abs(mine.low - at_rest), abs(mine.high - at_rest))
    return nearest > max(abs(null.low - at_rest), abs(null.high - at_rest))


def _at_rest(name: str) -> float:
    """What identical models give."""
    return 1.0 if _ONE_WHERE_IDENTICAL in name else 0.0
