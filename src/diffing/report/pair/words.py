"""The summary of a pair in sentences, each made from numbers of its results."""

import math
from collections.abc import Sequence
from typing import Any

from diffing.core.result import Result
from diffing.display.calibrated import NULL_PAIRS
from diffing.display.numbers import number
from diffing.display.token_marks import visible
from diffing.report.pair.findings import Finding
from diffing.report.pair.gathering import PairResults

_MOST_WORDS = 12
_MOST_NUMBERS = 4


def summary(pair: PairResults, found: Sequence[Finding]) -> tuple[str, ...]:
    """What was found, how sure it is, and what cannot be said; the first sentence says what was compared."""
    compared = _compared(pair)
    if pair.null_pair != "none":
        return (compared, *_of_null(pair))
    judged = [r for r in pair.results if r.calibration() is not None]
    if not judged:
        return compared, _uncalibrated(pair.results), _ranked(found)
    claiming = [r for r in judged if n_claimed(r)]
    sentences = [compared]
    if not claiming:
        sentences.append(
            f"Nothing was found: of {_methods(judged)} none claims anything against {_nulls(judged)}. "
            + sensitivity_words(pair, judged)
        )
    else:
        silent = [r for r in judged if r not in claiming]
        sentences.append(
            f"{_methods(claiming)} {_verb(claiming, 'claim')} something that {_nulls(claiming)} does not bring forth"
            + (f"; {_methods(silent)} {_verb(silent, 'claim')} nothing." if silent else ".")
        )
        sentences += _words(found)
        sentences += _numbers(claiming)
    rest = [r for r in pair.results if r not in judged]
    return (*sentences, *([_uncalibrated(rest)] if rest else []))


def n_claimed(result: Result) -> int:
    """How many items of any kind a result claims."""
    calibration = result.calibration()
    if calibration is None:
        return 0
    claims = calibration.claims
    return claims.tokens.n_claimed + claims.examples.n_claimed + claims.texts.n_claimed + sum(map(bool, claims.scalars))


def sensitivity_words(pair: PairResults, results: Sequence[Result]) -> str:
    """How faint a change these methods have been seen to find on this base."""
    known = [(r.method, pair.sensitivity[r.method]) for r in results if r.method in pair.sensitivity]
    if not known:
        return (
            "How faint a change they would have found was not measured on this base and output folder; "
            "pipeline.mode=benchmark measures it on a base that has organisms of several strengths, as the embedded "
            "one has."
        )
    by_rung: dict[str | None, list[str]] = {}
    for method, measured in known:
        by_rung.setdefault(measured.faintest, []).append(method)
    said = [
        f"{_listed(methods)} found a change as faint as {rung}"
        if rung
        else f"{_listed(methods)} found none of {_listed(tuple(pair.sensitivity[methods[0]].by_rung))}"
        for rung, methods in by_rung.items()
    ]
    rest = [r.method for r in results if r.method not in pair.sensitivity]
    said += [f"not measured for {_listed(rest)}"] if rest else []
    return f"Sensitivity reached, by the benchmark: {'; '.join(said)}."


def _compared(pair: PairResults) -> str:
    facts = pair.results[0].manifest["pair"]
    tokens = max((r.manifest["data"].get("n_tokens") or 0 for r in pair.results), default=0)
    read = f", on up to {number(tokens)} tokens of text" if tokens else ""
    methods = _methods(pair.results)
    if pair.null_pair != "none":
        return f"A null: {NULL_PAIRS.get(pair.null_pair, pair.null_pair)}, looked at by {methods}{read}."
    return f"{facts['finetuned_id']} against its base {facts['base_id']}, looked at by {methods}{read}."


def _of_null(pair: PairResults) -> tuple[str, ...]:
    if pair.null_pair == "identical":
        moved = [(r, s) for r in pair.results for s in r.summary if _has_moved(s)]
        if moved:
            said = "; ".join(
                f"{r.method}: {s['name']} is {number(s['value'])} {s['unit']}".strip() for r, s in moved[:3]
            )
            return (
                "Nothing was found, as nothing differs: what is not 0 here comes of the order in which sums are taken "
                f"({said}). " + sensitivity_words(pair, pair.results),
            )
        return (
            "Nothing was found: every headline number is what identical models give. "
            + sensitivity_words(pair, pair.results),
        )
    return (
        "Nothing was planted in this pair, and nothing in it is claimed: its rankings show what a method says where "
        "there is nothing to find. " + sensitivity_words(pair, pair.results),
    )


def _has_moved(scalar: dict) -> bool:
    at_rest = 1.0 if "agreement" in scalar["name"] else 0.0
    return scalar["value"] is not None and abs(scalar["value"] - at_rest) > 0


def _uncalibrated(results: Sequence[Result]) -> str:
    return (
        f"No null pair was run for {_methods(results)}: what {'it ranks' if len(results) == 1 else 'they rank'} cannot "
        "be told from what any finetune brings; run these methods with null_pair=generic and null_pair=generic_other."
    )


def _ranked(found: Sequence[Finding]) -> str:
    shared = [f for f in found if len(f.supports) > 1 and _is_word(f)]
    if not shared:
        return "No word is high in the rankings of two methods."
    return f"Words that are high in the rankings of two or more methods: {_list_words(shared)}."


def _words(found: Sequence[Finding]) -> list[str]:
    several = [f for f in found if len(f.claimed_by) > 1 and _is_word(f)]
    single = [f for f in found if len(f.claimed_by) == 1 and _is_word(f)]
    said = []
    if several:
        said.append(f"Words that two or more methods claim: {_list_words(several)}.")
    if single:
        lone = "Words that one method alone claims" if several else "Words that are claimed, each by one method"
        said.append(f"{lone}: {_list_words(single)}.")
    return said or ["No words are claimed."]


def _is_word(finding: Finding) -> bool:
    """Punctuation is in the table of findings and says little in a sentence."""
    return any(c.isalnum() for c in finding.forms[0])


def _list_words(found: Sequence[Finding]) -> str:
    shown = ", ".join(visible(f.forms[0]) for f in found[:_MOST_WORDS])
    return shown if len(found) <= _MOST_WORDS else f"{shown} and {number(len(found) - _MOST_WORDS)} more"


def _numbers(results: Sequence[Result]) -> list[str]:
    """The first claimed number of each method; of many methods those that are farthest from their null."""
    claimed = [(r.method, s) for r in results if (s := next((s for s in r.summary if s["claimed"]), None)) is not None]
    shown = sorted(claimed, key=lambda of: -_times_the_null(of[1]))[:_MOST_NUMBERS]
    said = [f"In numbers: {'; '.join(_number(method, s) for method, s in shown)}."] if shown else []
    rest = [method for method, _ in claimed if method not in dict(shown)]
    return [f"{said[0]} Those of {_listed(rest)} are in their chapters."] if rest else said


def _number(method: str, scalar: dict[str, Any]) -> str:
    unit = f" {scalar['unit']}" if scalar["unit"] else ""
    interval = f" [{number(scalar['low'])}, {number(scalar['high'])}]"
    null = "" if scalar["null"] is None else f", {number(scalar['null'])} under the null"
    return f"{scalar['name']} is {number(scalar['value'])}{unit}{interval}{null} ({method})"


def _times_the_null(scalar: dict[str, Any]) -> float:
    return abs(scalar["value"]) / abs(scalar["null"]) if scalar["null"] else math.inf


def _nulls(results: Sequence[Result]) -> str:
    kinds = dict.fromkeys(c.null.null_pair for r in results if (c := r.calibration()) is not None)
    return " and ".join(f"the null ({NULL_PAIRS.get(k, k)})" for k in kinds)


def _methods(results: Sequence[Result]) -> str:
    return _listed([r.method for r in results])


def _verb(results: Sequence[Result], verb: str) -> str:
    return f"{verb}s" if len(results) == 1 else verb


def _listed(names: Sequence[str]) -> str:
    *most, last = list(names) or [""]
    return f"{', '.join(most)} and {last}" if most else last
