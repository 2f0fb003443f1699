"""Texts that several results give as examples."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffing.core.evidence import ExampleEvidence
from diffing.core.result import Result


@dataclass(frozen=True)
class SharedExample:
    """A stretch of text that is among the examples of two or more results.

    Args:
        by_result: Label of each such result, and its example.
        mean_rank: Over these results, from 1.
    """

    by_result: tuple[tuple[str, ExampleEvidence], ...]
    mean_rank: float


def shared_examples(results: Sequence[tuple[str, Result]]) -> list[SharedExample]:
    """Examples that overlap in text and dataset, those in most results first, then by mean rank.

    Results cut their examples around the peaks, so one counts as another's when it holds the other's text or is held
    by it, or when the later half of one begins the other.

    Args:
        results: Label and result of each.
    """
    listed = [(label, result.evidence().examples) for label, result in results]
    found: list[SharedExample] = []
    taken: set[tuple[str, int]] = set()
    for n, (label, examples) in enumerate(listed):
        for rank, example in enumerate(examples, 1):
            if (label, rank) in taken:
                continue
            group = [(label, rank, example)]
            for other, theirs in listed[n + 1 :]:
                match = next(((r, e) for r, e in enumerate(theirs, 1) if _is_same_place(example, e)), None)
                if match is not None and (other, match[0]) not in taken:
                    group.append((other, *match))
            if len(group) > 1:
                taken |= {(name, r) for name, r, _ in group}
                mean = sum(r for _, r, _ in group) / len(group)
                found.append(SharedExample(tuple((name, e) for name, _, e in group), mean))
    return sorted(found, key=lambda s: (-len(s.by_result), s.mean_rank))


def _is_same_place(a: ExampleEvidence, b: ExampleEvidence) -> bool:
    if a.dataset != b.dataset:
        return False
    return a.text in b.text or b.text in a.text or _overlap(a.text, b.text) or _overlap(b.text, a.text)


def _overlap(first: str, second: str) -> bool:
    """Whether the later half of one text is where the other begins."""
    half = len(first) // 2
    at = first.find(second[: max(len(second) // 4, 20)])
    return 0 <= at <= half and second.startswith(first[at:])
