"""Places at which means are taken: leading positions, and in chats the tokens before the first reply."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from diffing.data.chats import ROLES
from diffing.data.sequences import TokenSequence
from diffing.data.tokens import Corpus

_ASSISTANT = ROLES.index("assistant")


@dataclass(frozen=True)
class Place:
    """Where in the documents of a dataset.

    Args:
        dataset: Name of the dataset.
        kind: `first`: counted from the start; `reply`: from the first token that the assistant wrote.
        position: From 0 upward, or from −1 downward.
    """

    dataset: str
    kind: Literal["first", "reply"]
    position: int

    @property
    def key(self) -> str:
        """How tensors call it."""
        name = f"position_{self.position}" if self.kind == "first" else f"before_reply_{-self.position}"
        return f"{self.dataset}/{name}"


@dataclass(frozen=True, eq=False)
class Visits:
    """Which documents pass which places.

    Args:
        places: All places that some document has, by dataset, kind and position.
        sequence_M: Sequence of each visit, ascending.
        position_M: Its position in the sequence.
        place_M: Index into `places`.
        corpus: The sequences, cut after their last visited token; those that pass no place are empty.
        notes: Sentences on what is missing.
    """

    places: tuple[Place, ...]
    sequence_M: np.ndarray
    position_M: np.ndarray
    place_M: np.ndarray
    corpus: Corpus
    notes: tuple[str, ...]

    def of(self, sequence: int) -> slice:
        """The visits of one sequence."""
        start, stop = np.searchsorted(self.sequence_M, [sequence, sequence + 1])
        return slice(int(start), int(stop))

    def token_ids(self, place: int) -> np.ndarray:
        """Ids of the tokens that stand at a place."""
        here = self.place_M == place
        pairs = zip(self.sequence_M[here].tolist(), self.position_M[here].tolist(), strict=True)
        return np.array([self.corpus.sequences[s].ids[t] for s, t in pairs], dtype=np.int64)

    def n_prefixes(self, place: int) -> int:
        """Different beginnings up to a place: what stands in a fixed template is one."""
        here = self.place_M == place
        pairs = zip(self.sequence_M[here].tolist(), self.position_M[here].tolist(), strict=True)
        return len({self.corpus.sequences[s].ids[: t + 1].tobytes() for s, t in pairs})


def find_visits(
    corpus: Corpus, sequences: Sequence[int], n_positions: int, n_before_reply: int, cuts: bool
) -> Visits:  # fmt: skip
    """Where the chosen sequences pass places.

    Args:
        corpus: All sequences.
        sequences: Those that count, ascending.
        n_positions: Leading positions.
        n_before_reply: Tokens before the first reply.
        cuts: Whether sequences are cut after their last visited token; states before it do not depend on what follows.
    """
    found = [(s, t, place) for s in sequences for t, place in _places(corpus.sequences[s], n_positions, n_before_reply)]
    order = {name: i for i, name in enumerate(corpus.datasets)}
    kinds = ("first", "reply")
    places = sorted({p for *_, p in found}, key=lambda p: (order[p.dataset], kinds.index(p.kind), p.position))
    number = {place: i for i, place in enumerate(places)}
    sequence_M, position_M = (np.array([v[i] for v in found], dtype=np.int64) for i in (0, 1))
    place_M = np.array([number[p] for *_, p in found], dtype=np.int64)
    last = np.full(len(corpus.sequences), -1)
    np.maximum.at(last, sequence_M, position_M)
    kept = tuple(_cut(s, int(t) + 1) if cuts or t < 0 else s for s, t in zip(corpus.sequences, last, strict=True))
    notes = tuple(_notes(corpus, sequences, places, n_positions, n_before_reply))
    return Visits(tuple(places), sequence_M, position_M, place_M, replace(corpus, sequences=kept), notes)


def reply_start(sequence: TokenSequence) -> int | None:
    """Position of the first token that the assistant wrote; None where it wrote none."""
    written = np.flatnonzero((sequence.roles == _ASSISTANT) & ~sequence.is_template)
    return int(written[0]) if len(written) else None


def _places(sequence: TokenSequence, n_positions: int, n_before_reply: int) -> list[tuple[int, Place]]:
    found = [(t, Place(sequence.dataset, "first", t)) for t in range(min(n_positions, len(sequence.ids)))]
    start = reply_start(sequence)
    if start is not None:
        before = range(max(0, start - n_before_reply), start)
        found += [(t, Place(sequence.dataset, "reply", t - start)) for t in before]
    return found


def _cut(sequence: TokenSequence, n: int) -> TokenSequence:
    return replace(
        sequence, ids=sequence.ids[:n], roles=sequence.roles[:n], is_template=sequence.is_template[:n],
        is_special=sequence.is_special[:n],
    )  # fmt: skip


def _notes(
    corpus: Corpus, sequences: Sequence[int], places: Sequence[Place], n_positions: int, n_before_reply: int
) -> list[str]:
    notes = []
    for name in corpus.datasets:
        mine = [corpus.sequences[s] for s in sequences if corpus.sequences[s].dataset == name]
        reached = 1 + max((p.position for p in places if (p.dataset, p.kind) == (name, "first")), default=-1)
        if mine and reached < n_positions:
            notes.append(f"{name}: no document has more than {reached} tokens, so that later positions are left out.")
        n_silent = sum(reply_start(s) is None for s in mine if (s.roles != 0).any())
        if n_silent and n_before_reply:
            notes.append(
                f"{name}: {n_silent} chats hold no reply of the assistant (within data.max_length); tokens before a "
                "reply are read from the others."
            )
    return notes
