"""Measures how much of a result comes back: the same method on two disjoint halves of its text, and with another seed.

These runs are results like any other, below `stability/` in the output folder, where no report takes them for the
result itself.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffing.analysis.agreement import overlap_at
from diffing.core.progress import say
from diffing.core.result import Result
from diffing.core.settings import RunConfig
from diffing.core.stability import Comeback, Stability, write_stability
from diffing.pipeline.running import Session, run_settings

FOLDER = "stability"
HEAD = 50
_PART_OF_DOCUMENTS = 5
_KINDS = {"tokens": ("token_scores", ("token_id",)), "documents": ("document_scores", ("dataset", "document"))}


def measure_stability(result: Result, settings: RunConfig, session: Session) -> Stability:
    """Run the result's method again three times, compare, and write `stability.json` beside its evidence.

    Args:
        result: Finished.
        settings: That it was made with.
        session: Holds the pair between runs.

    Raises:
        UserError: A dataset has one document, or a run cannot be made.
    """
    digest = result.manifest.get("files", {}).get("evidence.json", "")
    if (known := result.stability()) is not None and not settings.overwrite:
        return known
    say(f"Stability of {result.method}: two halves of the text, and seed {settings.seed + 1}")
    first, second = (_again(settings, result.method, session, half=half) for half in (1, 2))
    seeded = _again(settings, result.method, session, seed=settings.seed + 1)
    comebacks = [
        *_comeback("tokens", "two halves of the text", first, second),
        *_comeback("tokens", "two seeds", result, seeded),
        *_comeback("documents", "two seeds", result, seeded),
    ]
    stability = Stability(tuple(comebacks), 3, _tokens_back(result, (first, second, seeded)))
    write_stability(result.folder, stability, digest)
    return stability


def _again(
    settings: RunConfig, method: str, session: Session, half: int | None = None, seed: int | None = None
) -> Result:
    storage = settings.infrastructure.storage
    base_dir = str(Path(storage.base_dir) / FOLDER)
    changed = settings.model_copy(
        update={
            "data": settings.data.model_copy(update={"half": half}),
            "seed": settings.seed if seed is None else seed,
            "stability": False,
            "pipeline": settings.pipeline.model_copy(update={"methods": (method,), "mode": "full"}),
            "infrastructure": settings.infrastructure.model_copy(
                update={"storage": storage.model_copy(update={"base_dir": base_dir})}
            ),
        }
    )
    return run_settings(changed, session)[0]


def _comeback(what: str, between: str, a: Result, b: Result) -> list[Comeback]:
    table, _ = _KINDS[what]
    if any(table not in r.tables() for r in (a, b)):
        return []
    first, second = (_ranked(r, what) for r in (a, b))
    if what == "documents":
        common = set(first) & set(second)
        first, second = ([d for d in side if d in common] for side in (first, second))
    names = {item: n for n, item in enumerate(dict.fromkeys([*first, *second]))}
    ids = [np.array([names[i] for i in side], dtype=np.int64) for side in (first, second)]
    k = HEAD if what == "tokens" else max(len(ids[0]) // _PART_OF_DOCUMENTS, 1)
    found = overlap_at(ids[0], ids[1], [k])[k]
    if found.share is None or found.chance is None:
        return []
    return [Comeback(what, between, found.k, found.share, found.chance)]


def _ranked(result: Result, what: str) -> list[tuple[object, ...]]:
    """Items, best first; items of one score in an order that is random and the same for all results."""
    table, key = _KINDS[what]
    rows = [r for r in result.table(table).to_pylist() if r["score"] is not None and np.isfinite(r["score"])]
    place = np.random.default_rng(len(rows)).permutation(len(rows))
    order = sorted(range(len(rows)), key=lambda i: (-rows[i]["score"], place[i]))
    return [tuple(rows[i][k] for k in key) for i in order]


def _tokens_back(result: Result, reruns: Sequence[Result]) -> tuple[int, ...] | None:
    """For each token of the evidence, in how many reruns its rank is at most twice its own, or `HEAD`."""
    if any("token_scores" not in r.tables() for r in (result, *reruns)):
        return None
    ranks = [{item[0]: n for n, item in enumerate(_ranked(r, "tokens"), 1)} for r in reruns]
    return tuple(
        sum(any(of.get(i, np.inf) <= max(HEAD, 2 * place) for i in token.token_ids) for of in ranks)
        for place, token in enumerate(result.measured_evidence().tokens, 1)
    )
