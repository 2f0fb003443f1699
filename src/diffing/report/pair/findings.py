"""Findings across methods: words that several methods rank or claim, texts that several give, agreement of rankings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from diffing.analysis.agreement import overlap_at, rank_correlation
from diffing.analysis.calibration import Ranking
from diffing.analysis.merged_tokens import merge_key
from diffing.analysis.shared_examples import SharedExample, shared_examples
from diffing.core.claims import Calibration
from diffing.core.evidence import ExampleEvidence, TokenEvidence
from diffing.core.result import Result
from diffing.core.stability import Stability

HEAD = 50
_MOST_FORMS = 4
_MOST_EXAMPLES = 3


@dataclass(frozen=True)
class Support:
    """What one method says of a word.

    Args:
        method: Its name.
        rank: Of the word's best token in its evidence, from 1.
        score: Of that token.
        stderr: Its standard error.
        null_score: The same token's under the null.
        claimed: Whether any of the word's tokens is claimed; None while not calibrated.
        run: Fingerprint of the run that says so.
        p: The best of its tokens' ranks against the null, as a p-value; None while not calibrated.
        n_back: In how many of the runs that measured stability it is ranked about as high; None: not measured.
        n_reruns: How many these were.
    """

    method: str
    rank: int
    score: float
    stderr: float | None
    null_score: float | None
    claimed: bool | None
    run: str
    p: float | None = None
    n_back: int | None = None
    n_reruns: int | None = None


@dataclass(frozen=True)
class Finding:
    """A word: tokens that differ in case or leading spaces alone.

    Args:
        forms: Its tokens, the best ranked first.
        supports: Methods that rank it in their head or claim it, the best first.
        examples: Examples of any of these methods that mark it, with the method.
    """

    forms: tuple[str, ...]
    supports: tuple[Support, ...]
    examples: tuple[tuple[str, ExampleEvidence], ...] = ()

    @property
    def claimed_by(self) -> tuple[str, ...]:
        """Methods that claim it."""
        return tuple(s.method for s in self.supports if s.claimed)

    @property
    def order(self) -> tuple[float, ...]:
        """Sorts findings, the strongest first: by methods that claim it, that rank it, and how high these do."""
        reciprocal = sum(1 / s.rank for s in self.supports)
        return -len(self.claimed_by), -len(self.supports), -reciprocal


@dataclass(frozen=True)
class Agreement:
    """Two methods' rankings of tokens side by side.

    Args:
        first: A method.
        second: Another.
        share: Part of the first `HEAD` tokens in common; None for an empty ranking.
        chance: The same of random orders.
        correlation: Spearman's ρ over all tokens that both rank; None where it cannot be said.
    """

    first: str
    second: str
    share: float | None
    chance: float | None
    correlation: float | None


def findings(results: Sequence[Result]) -> list[Finding]:
    """Words that methods rank in their head or claim, the strongest first."""
    words: dict[str, dict[str, list[tuple[int, TokenEvidence]]]] = {}
    for result in results:
        for rank, token in enumerate(result.evidence().tokens, 1):
            if rank <= HEAD or token.claimed:
                words.setdefault(merge_key(token.token), {}).setdefault(result.method, []).append((rank, token))
    examples = [(r.method, e) for r in results for e in r.evidence().examples]
    others = {r.method: _Beside(str(r.manifest.get("fingerprint")), r.calibration(), r.stability()) for r in results}
    found = [_finding(by_method, examples, others) for word, by_method in words.items() if word.strip()]
    return sorted(found, key=lambda f: (*f.order, f.forms))


def _finding(
    by_method: dict[str, list[tuple[int, TokenEvidence]]],
    examples: Sequence[tuple[str, ExampleEvidence]],
    others: "Mapping[str, _Beside]",
) -> Finding:
    found = (_support(m, tokens, others[m]) for m, tokens in by_method.items())
    supports = sorted(found, key=lambda s: (not s.claimed, s.rank))
    ranked = sorted((rank, t.token) for tokens in by_method.values() for rank, t in tokens)
    forms = tuple(dict.fromkeys(token.strip(" ") or token for _, token in ranked))[:_MOST_FORMS]
    marked = [(m, e) for m, e in examples if m in by_method and _marks(e, set(forms))]
    return Finding(forms, tuple(supports), tuple(marked[:_MOST_EXAMPLES]))


class _Beside(NamedTuple):
    """What is known of a result beside its evidence."""

    run: str
    calibration: Calibration | None
    stability: Stability | None


def _support(method: str, tokens: list[tuple[int, TokenEvidence]], beside: _Beside) -> Support:
    rank, best = min(tokens, key=lambda item: item[0])
    flags = [t.claimed for _, t in tokens if t.claimed is not None]
    claimed = any(flags) if flags else None
    run, calibration, stability = beside
    found = Support(method, rank, best.score, best.stderr, best.null_score, claimed, run)
    if calibration is not None:
        known = [p for r, _ in tokens if (p := calibration.claims.tokens.p_value(r - 1)) is not None]
        found = replace(found, p=min(known, default=None))
    if stability is None or stability.tokens is None or rank > len(stability.tokens):
        return found
    return replace(found, n_back=stability.tokens[rank - 1], n_reruns=stability.n_reruns)


def _marks(example: ExampleEvidence, forms: set[str]) -> bool:
    return any(example.text[s.start : s.end].strip(" ") in forms for s in example.spans if s.value)


def agreement(results: Sequence[Result]) -> list[Agreement]:
    """Each two methods that rank tokens, not all alike; those that agree most beyond chance first."""
    rankings = [(r.method, of.known) for r in results if (of := Ranking.of(r)) is not None]
    ranked = [(method, *_ordered(method, known)) for method, known in rankings if len(np.unique(known.scores_V)) > 1]
    pairs = [_agree(a, b) for a, b in combinations(ranked, 2)]
    return sorted(pairs, key=lambda p: -((p.share or 0) - (p.chance or 0)))


def _ordered(method: str, ranking: Ranking) -> tuple[np.ndarray, np.ndarray]:
    """Ids, best first, and their scores; items of one score in a random order, fixed for each method."""
    ids, scores = ranking.ids_V, ranking.scores_V
    shuffled = np.random.default_rng(list(method.encode())).permutation(len(ids))
    order = shuffled[np.argsort(-scores[shuffled], kind="stable")]
    return ids[order], scores[order]


def _agree(a: tuple[str, np.ndarray, np.ndarray], b: tuple[str, np.ndarray, np.ndarray]) -> Agreement:
    overlap = overlap_at(a[1], b[1], [HEAD])[HEAD]
    _, at_a, at_b = np.intersect1d(a[1], b[1], return_indices=True)
    return Agreement(a[0], b[0], overlap.share, overlap.chance, rank_correlation(a[2][at_a], b[2][at_b]))


def shared_texts(results: Sequence[Result]) -> list[SharedExample]:
    """Texts that two or more methods give as examples."""
    return shared_examples([(r.method, r) for r in results])
