"""Measures how much of a result comes back: the same method on two disjoint halves of its text, and with another seed.

These runs are results like any other, below `stability/` in the output folder, where no report takes them for the
result itself.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffing.analysis.agreement import overlap_at
from diffing.core.errors import UserError
from diffing.core.files import disk_errors
from diffing.core.method import load_method
from diffing.core.progress import say
from diffing.core.result import Result
from diffing.core.settings import RunConfig
from diffing.core.stability import Comeback, Stability, write_stability
from diffing.pipeline.running import REMEDY, Session, run_settings

FOLDER = "stability"
HEAD = 50
_PART_OF_DOCUMENTS = 5
_KINDS = {"tokens": ("token_scores", ("token_id",)), "documents": ("document_scores", ("dataset", "document"))}


def measure_stability(result: Result, settings: RunConfig, session: Session) -> Stability:
    """Run the result's method again, compare, and write `stability.json` beside its evidence.

    A method that reads no text has no halves.

    Args:
        result: Finished.
        settings: That it was made with.
        session: Holds the pair between runs.

    Raises:
        UserError: A dataset has one document, or a run cannot be made.
    """
    if settings.data.half is not None:
        raise UserError(f"data.half={settings.data.half} and stability=true: halves are of the whole text; drop one.")
    digest = result.manifest.get("files", {}).get("evidence.json", "")
    if (known := result.stability()) is not None and not settings.overwrite:
        return known
    say(f"Stability of {result.method}: again on each half of the text, and with seed {settings.seed + 1}")
    halves = (1, 2) if load_method(result.method).reads_corpus else ()
    apart = [_again(settings, result.method, session, half=half) for half in halves]
    seeded = _again(settings, result.method, session, seed=settings.seed + 1)
    comebacks = [
        *(_comeback("tokens", "two halves of the text", *apart) if apart else []),
        *_comeback("tokens", "two seeds", result, seeded),
        *_comeback("documents", "two seeds", result, seeded),
    ]
    reruns = [*apart, seeded]
    stability = Stability(tuple(comebacks), len(reruns), _tokens_back(result, reruns))
    with disk_errors(result.folder, REMEDY):
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
    """For each token of the evidence, in how many reruns its rank is at most twice its own, or `HEAD`.

    Of tokens that were merged into one the best rank counts, in the full rankings.
    """
    if any("token_scores" not in r.tables() for r in (result, *reruns)):
        return None
    own, *others = ({item[0]: n for n, item in enumerate(_ranked(r, "tokens"), 1)} for r in (result, *reruns))

    def best(ranks: dict[object, int], ids: Sequence[int]) -> float:
        return min((ranks[i] for i in ids if i in ranks), default=np.inf)

    return tuple(
        sum(best(of, t.token_ids) <= max(HEAD, 2 * best(own, t.token_ids)) for of in others if t.token_ids)
        for t in result.measured_evidence().tokens
    )
