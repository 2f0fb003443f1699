"""Nearest right names for a misspelt one."""

import difflib
from collections.abc import Iterable


def nearest(name: str, candidates: Iterable[str], n: int = 3) -> list[str]:
    """The up to `n` candidates most like `name`, best first; case is ignored."""
    by_lower = {c.lower(): c for c in candidates}
    hits = difflib.get_close_matches(name.lower(), by_lower, n=n, cutoff=0.5)
    return [by_lower[h] for h in hits]


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A clause naming the nearest candidates, or all of them when few and none is near."""
    candidates = list(candidates)
    hits = nearest(name, candidates)
    if hits:
        return f"did you mean {' or '.join(hits)}?"
    if not candidates:
        return "there are none to choose from."
    shown = ", ".join(sorted(candidates)[:12]) + (", …" if len(candidates) > 12 else "")
    return f"choose from {shown}."
