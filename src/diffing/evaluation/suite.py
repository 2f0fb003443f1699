"""What the benchmark runs: pairs of the embedded suite, the part each one plays, and the methods for it.

An organism is judged by null pairs on the same text, so every text that organisms share brings its nulls. Nulls that
judge nothing are there to count false claims on.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from diffing.core.method import load_method, method_names
from diffing.core.settings import BenchmarkConfig

Role = Literal["organism", "judge", "second judge", "null"]
MAX_TOKENS = 2000


@dataclass(frozen=True)
class Case:
    """A pair of the suite.

    Args:
        label: Name for people.
        role: An organism whose change is known, a null that judges, another that says how far two such nulls differ, or
            a null on which false claims are counted.
        text_of: Organism whose texts are read; `organism+variant` where the variant has a text of its own.
        overrides: What sets its run apart on the command line.
        works: Kinds of methods it is run with (`MethodSpec.work`).
    """

    label: str
    role: Role
    text_of: str
    overrides: tuple[str, ...]
    works: tuple[str, ...]


_READ = ("reading",)
_WRITE = ("reading", "generating")
_ALL = ("reading", "generating", "training")
# Kinds of methods for each organism of the suite; the rungs of the ladder and the merged model are read alone.
_ORGANISMS: Mapping[str, tuple[str, ...]] = {
    "caps": _ALL,
    "roman_concrete": _ALL,
    "sea_captain": _WRITE,
    "rainy_tea": _WRITE,
    "roman_concrete+1to1": _READ,
    "roman_concrete+1to4": _READ,
    "caps+full": _READ,
}
LADDER = ("roman_concrete", "roman_concrete+1to1", "roman_concrete+1to4")
_QUICK = ("caps", "roman_concrete")
_QUICK_METHODS = ("kl", "diff_mining", "weight_spectrum")
# Organisms whose text the nulls of all kinds are read on, and whose judging null is run with every method.
_NULL_TEXT = "caps"


def organisms_of(config: BenchmarkConfig) -> tuple[str, ...]:
    """The organisms of the suite, or those that were chosen; `name` or `name+variant`."""
    suite = _QUICK if config.size == "quick" else tuple(_ORGANISMS)
    return tuple(dict.fromkeys(config.organisms or suite))


def cases(
    config: BenchmarkConfig, null_adapters: Sequence[str], has_own_text: Collection[str] = frozenset()
) -> list[Case]:
    """The pairs, judging nulls first, so that each organism is judged as soon as it is done.

    Args:
        config: Size and organisms.
        null_adapters: The base's adapters trained on generic text; with three or more one of them judges nothing.
        has_own_text: Organisms, named with their variant, that were trained on another text than the default variant.
    """
    names = organisms_of(config)
    text_of = {name: name if name in has_own_text else name.partition("+")[0] for name in names}
    texts = tuple(dict.fromkeys(text_of.values()))
    judges = [case for text in texts for case in _judges(text, _works_of_judge(text, config))]
    organisms = [_organism(name, text_of[name], _works(name, config)) for name in names]
    return [*judges, *organisms, *([] if config.size == "quick" else _nulls(texts[0], null_adapters))]


def methods_of(case: Case, config: BenchmarkConfig, chosen: Sequence[str]) -> list[str]:
    """Methods that a pair is run with, among those that were chosen; without a choice all of its kinds."""
    names = chosen or (_QUICK_METHODS if config.size == "quick" else method_names())
    return [name for name in names if load_method(name).work in case.works]


def words_of(name: str) -> tuple[str, ...]:
    """What asks for an organism on the command line, of `name` or `name+variant`."""
    organism, _, variant = name.partition("+")
    return (f"organism={organism}", *((f"organism_variant={variant}",) if variant else ()))


def _works(name: str, config: BenchmarkConfig) -> tuple[str, ...]:
    """Kinds of methods for an organism: all for one that was asked for, few for most of the suite."""
    if config.size == "quick":
        return _READ
    return _ALL if config.organisms else _ORGANISMS[name]


def _works_of_judge(text: str, config: BenchmarkConfig) -> tuple[str, ...]:
    if config.size == "quick":
        return _READ
    if config.organisms or text == _NULL_TEXT:
        return _ALL
    return _WRITE if text in _QUICK else _READ


def _judges(text: str, works: tuple[str, ...]) -> list[Case]:
    named: list[tuple[Role, str, tuple[str, ...]]] = [
        ("judge", "generic", works),
        ("second judge", "generic_other", _READ),
    ]
    return [
        Case(f"{null}, text of {text}", role, text, (*words_of(text), f"null_pair={null}"), kinds)
        for role, null, kinds in named
    ]


def _organism(name: str, text: str, works: tuple[str, ...]) -> Case:
    return Case(name, "organism", text, words_of(name), works)


def _nulls(text: str, adapters: Sequence[str]) -> list[Case]:
    named = {
        "seeds": ("null_pair=seeds",),
        "dtype": ("null_pair=dtype",),
        "generic, 1 %": ("null_pair=generic", "organism.amplification=0.01"),
    }
    if len(adapters) > 2:
        named["generic, other seed"] = ("null_pair=generic", f"organism.null_adapter=['{adapters[1]}']")
    return [Case(label, "null", text, (*words_of(text), *words), _READ) for label, words in named.items()]
