"""Both models' greedy texts after each prompt, and where they first differ."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffing.analysis.context import RunContext
from diffing.core.errors import UserError
from diffing.core.files import read_json, write_json
from diffing.core.progress import bar
from diffing.methods.model_patching.prompts import Opening, by_length
from diffing.models.batch_generation import Prompt, write_texts
from diffing.models.generation import end_ids
from diffing.models.sampling import Sampling

_UNIT_PROMPTS = 64


@dataclass(frozen=True)
class Texts:
    """What both models wrote after one prompt.

    Args:
        opening: The prompt.
        base_ids: The base's new tokens.
        ft_ids: The finetuned model's.
        position: First new token, from 0, at which they differ; None where they do not.
        is_comparable: Whether both models know both tokens there, and all before.
    """

    opening: Opening
    base_ids: tuple[int, ...]
    ft_ids: tuple[int, ...]
    position: int | None
    is_comparable: bool

    @property
    def base_token(self) -> int | None:
        """The base's choice at the divergence."""
        return None if self.position is None else self.base_ids[self.position]

    @property
    def ft_token(self) -> int | None:
        """The finetuned model's choice there."""
        return None if self.position is None else self.ft_ids[self.position]

    @property
    def context_ids(self) -> tuple[int, ...]:
        """All tokens before the divergence: the prompt and what both wrote."""
        return (*self.opening.ids, *self.base_ids[: self.position])


def first_divergence(base_ids: Sequence[int], ft_ids: Sequence[int], known: Collection[int] | None) -> int | None:
    """The first place where two texts hold different tokens, or one that means nothing in one of the vocabularies."""
    for i, (b, f) in enumerate(zip(base_ids, ft_ids, strict=False)):
        if b != f or (known is not None and b not in known):
            return i
    return None


def write_pairs(
    context: RunContext, openings: Sequence[Opening], known: Collection[int] | None, max_new_tokens: int
) -> list[Texts]:
    """Both models' greedy texts, in the order of the prompts; finished units are kept in the scratch folder."""
    order = by_length(openings)
    units = [order[i : i + _UNIT_PROMPTS] for i in range(0, len(order), _UNIT_PROMPTS)]
    written: dict[int, tuple[list[int], list[int]]] = {}
    with bar("model_patching: writing texts", 2 * len(openings) * max_new_tokens, "tokens") as advance:
        for number, unit in enumerate(units):
            path = context.scratch / f"texts_{number:04d}.json"
            found = _stored(path, len(unit))
            if found is None:
                found = _written(context, [openings[i] for i in unit], max_new_tokens, advance)
                write_json(path, found)
            else:
                advance(2 * len(unit) * max_new_tokens)
            written |= dict(zip(unit, zip(found["base"], found["finetuned"], strict=True), strict=True))
    return [_texts(o, *written[i], known) for i, o in enumerate(openings)]


def _texts(opening: Opening, base_ids: list[int], ft_ids: list[int], known: Collection[int] | None) -> Texts:
    at = first_divergence(base_ids, ft_ids, known)
    is_comparable = known is None or at is None or (base_ids[at] in known and ft_ids[at] in known)
    return Texts(opening, tuple(base_ids), tuple(ft_ids), at, is_comparable)


def _written(
    context: RunContext, openings: Sequence[Opening], max_new_tokens: int, advance: Callable[[float], None]
) -> dict[str, list[list[int]]]:
    pair = context.pair
    prompts = [Prompt(o.ids) for o in openings]
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0)
    ends = end_ids(pair.base, pair.rules) | end_ids(pair.finetuned, pair.rules)
    found: dict[str, list[list[int]]] = {}
    for name, handle in (("base", pair.base), ("finetuned", pair.finetuned)):
        counted = _Counted(advance)
        found[name] = [list(c.ids) for c in write_texts(handle, prompts, sampling, ends, counted)]
        advance(len(openings) * max_new_tokens - counted.n)
    return found


class _Counted:
    """Passes numbers on and adds them up: texts that end early have fewer tokens."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        self._advance, self.n = advance, 0

    def __call__(self, n: int) -> None:
        self.n += n
        self._advance(n)


def _stored(path: Path, n: int) -> dict[str, list[list[int]]] | None:
    """Texts of an earlier run; None where there are none or they are not whole."""
    if not path.is_file():
        return None
    try:
        found = read_json(path, "")
    except UserError:
        return None
    is_whole = isinstance(found, dict) and all(len(found.get(k, ())) == n for k in ("base", "finetuned"))
    return found if is_whole else None
