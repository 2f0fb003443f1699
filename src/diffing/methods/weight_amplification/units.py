"""Finished settings in the scratch folder, so that an interrupted run goes on."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from diffing.analysis.units import read_arrays, write_arrays
from diffing.core.files import write_json
from diffing.methods.weight_amplification.reading import METRICS, Effect
from diffing.methods.weight_amplification.writing import Written


def stored_effect(path: Path, compute: Callable[[], Effect]) -> tuple[Effect, bool]:
    """The effect that an earlier run left at `path`, else computed and stored there; and whether it was computed."""
    if (found := _read_effect(path)) is not None:
        return found, False
    effect = compute()
    arrays = {f"sums_{m}": effect.sums[m] for m in METRICS} | {f"counts_{m}": effect.counts[m] for m in METRICS}
    arrays |= {"terms": effect.terms_V, "squares": effect.squares_V, "n_bad": np.array([effect.n_bad])}
    write_arrays(path, arrays)
    return effect, True


def _read_effect(path: Path) -> Effect | None:
    if (found := read_arrays(path)) is None:
        return None
    try:
        sums = {m: found[f"sums_{m}"] for m in METRICS}
        counts = {m: found[f"counts_{m}"] for m in METRICS}
        return Effect(sums, counts, found["terms"], found["squares"], int(found["n_bad"][0]))
    except KeyError:
        return None


def stored_texts(path: Path, compute: Callable[[], list[Written] | str]) -> tuple[list[Written] | str, bool]:
    """The same of texts, or of the reason why there are none."""
    if (found := _read_texts(path)) is not None:
        return found, False
    texts = compute()
    write_json(path, texts if isinstance(texts, str) else [asdict(t) for t in texts])
    return texts, True


def _read_texts(path: Path) -> list[Written] | str | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, str) else [Written(**{**t, "ids": tuple(t["ids"])}) for t in found]
    except (OSError, ValueError, TypeError, KeyError):
        return None
