"""Scores one result against what is known of its organism, and counts what it claims."""

from dataclasses import dataclass

import numpy as np

from diffing.analysis.calibration import Ranking
from diffing.core.claims import Claims, ListClaims, with_claims
from diffing.core.result import Result
from diffing.core.seeds import generator
from diffing.core.specs import ExpectedSpec
from diffing.evaluation.scores import Score, document_score, share_score, token_score
from diffing.evaluation.truth import TRAINING, Truth, shows


@dataclass(frozen=True)
class Count:
    """How many of a kind are claimed, of how many that were judged."""

    n_claimed: int
    n_tested: int


@dataclass(frozen=True)
class Counts:
    """What a result claims, by kind of evidence; None where it was not judged or has none of the kind."""

    tokens: Count | None
    examples: Count | None
    texts: Count | None
    numbers: Count | None


@dataclass(frozen=True)
class Detection:
    """How well a result shows what was trained in.

    Args:
        tokens: Average precision of its ranking of tokens for the domain tokens.
        documents: AUROC of its ranking of documents, training text against generic text of the same kind.
        excess: The same of each document's share of all scores, less its share in the null: what any finetune does to a
            text counts for nothing.
        texts: Share of its texts that show what is expected, of those that a model wrote.
        right: Share of its claimed tokens that are domain tokens, of those it lists; its chance is the share of domain
            tokens among the tokens it ranks.
    """

    tokens: Score
    documents: Score
    excess: Score
    texts: Score
    right: Score


def detection(
    result: Result,
    judge: Result | None,
    claims: Claims | None,
    truth: Truth | None,
    expected: ExpectedSpec | None,
    seed: int,
) -> Detection:
    """Score a result.

    Args:
        result: Of an organism, or of a null that read the same text.
        judge: The null's result; None: nothing can be taken off.
        claims: What it claims; None where it was not judged.
        truth: What its training text is full of; None: tokens and documents are not scored.
        expected: What texts show; None: texts are not scored.
        seed: Of bootstraps and of random sets.
    """
    rng = generator(seed, "benchmark", result.method)
    return Detection(
        tokens=Score(None) if truth is None else _tokens(result, truth, rng),
        documents=Score(None) if truth is None else _documents(result, truth, rng),
        excess=Score(None) if truth is None or judge is None else _excess(result, judge, truth, rng),
        texts=Score(None) if expected is None else _texts(result, expected),
        right=Score(None) if truth is None or claims is None else _right(result, claims, truth),
    )


def counts(claims: Claims) -> Counts:
    """How many claims there are of each kind."""
    flags = [f for f in claims.scalars if f is not None]
    return Counts(
        _count(claims.tokens), _count(claims.examples), _count(claims.texts),
        Count(sum(flags), len(flags)) if flags else None,
    )  # fmt: skip


def _count(claims: ListClaims) -> Count | None:
    return Count(claims.n_claimed, claims.n_tested) if claims.n_tested else None


def token_scores(result: Result, n_vocabulary: int) -> np.ndarray | None:
    """Score of every token of the vocabulary, NaN where there is none; None where the method ranks no tokens."""
    ranking = Ranking.of(result)
    if ranking is None:
        return None
    scores_V = np.full(n_vocabulary, np.nan)
    within = ranking.ids_V < n_vocabulary
    scores_V[ranking.ids_V[within]] = ranking.scores_V[within]
    return scores_V


def _tokens(result: Result, truth: Truth, rng: np.random.Generator) -> Score:
    scores_V = token_scores(result, len(truth.counts_V))
    return Score(None) if scores_V is None else token_score(scores_V, truth.ids_R, truth.counts_V, rng)


def _documents(result: Result, truth: Truth, rng: np.random.Generator) -> Score:
    scores = _document_scores(result, truth)
    return Score(None) if scores is None else _separated(scores, rng)


def _excess(result: Result, judge: Result, truth: Truth, rng: np.random.Generator) -> Score:
    mine, theirs = _document_scores(result, truth), _document_scores(judge, truth)
    if mine is None or theirs is None:
        return Score(None)
    totals = [sum(s for s in side.values() if s > 0) for side in (mine, theirs)]
    if min(totals) <= 0:
        return Score(None)
    return _separated({d: mine[d] / totals[0] - theirs[d] / totals[1] for d in mine if d in theirs}, rng)


_Document = tuple[str, int]


def _document_scores(result: Result, truth: Truth) -> dict[_Document, float] | None:
    """Scores of the training documents and of the generic ones of the same kind, where they are known."""
    if "document_scores" not in result.tables():
        return None
    rows = result.table("document_scores").to_pylist()
    return {
        (r["dataset"], r["document"]): r["score"]
        for r in rows
        if (r["dataset"] == TRAINING or r["dataset"] in truth.generic) and r["score"] is not None
    }


def _separated(scores: dict[_Document, float], rng: np.random.Generator) -> Score:
    is_training = np.array([dataset == TRAINING for dataset, _ in scores], dtype=bool)
    return document_score(np.array(list(scores.values()), dtype=np.float64), is_training, rng)


def _texts(result: Result, expected: ExpectedSpec) -> Score:
    written = (t for t in result.measured_evidence().texts if t.prompt is not None)
    return share_score([shows(expected, t.text) for t in written])


def _right(result: Result, claims: Claims, truth: Truth) -> Score:
    domain = set(truth.ids_R.tolist())
    claimed = [t for t in with_claims(result.measured_evidence(), claims).tokens if t.claimed]
    if not claimed:
        return Score(None)
    found = share_score([any(i in domain for i in t.token_ids) for t in claimed])
    scores_V = token_scores(result, len(truth.counts_V))
    ranked_V = np.ones(len(truth.counts_V), dtype=bool) if scores_V is None else np.isfinite(scores_V)
    return Score(found.value, found.low, found.high, float(ranked_V[truth.ids_R].sum() / max(ranked_V.sum(), 1)), None)
