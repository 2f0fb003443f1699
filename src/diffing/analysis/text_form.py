"""The outer form of texts: how much they repeat themselves, how much of them is in capitals."""

from collections.abc import Sequence

_RUN = 3


def repetition(ids: Sequence[int], run: int = _RUN) -> float:
    """Share of a text's runs of `run` tokens that stood in it before; 0 where there is no run.

    Source: 1 − distinct-n; Li et al., A Diversity-Promoting Objective Function (2016), section 5.
    """
    runs = [tuple(ids[i : i + run]) for i in range(len(ids) - run + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def capitals(text: str) -> tuple[int, int]:
    """Capital letters of a text, and letters that have a case."""
    n_upper = sum(c.isupper() for c in text)
    return n_upper, n_upper + sum(c.islower() for c in text)
