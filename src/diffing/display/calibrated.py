"""What is claimed against a null, in one sentence for terminal, report and dashboard."""

from diffing.core.claims import Calibration, ListClaims
from diffing.core.stability import Stability
from diffing.display.numbers import number

NULL_PAIRS = {
    "identical": "the base model with itself",
    "dtype": "the base model with itself in another dtype",
    "generic": "the base model with a generic finetune of it",
    "generic_other": "the base model with a finetune of it on other generic text",
    "seeds": "two generic finetunes that differ by their seed",
}


def judged(calibration: Calibration | None) -> str:
    """How much of a result is claimed, and against what; without a null how to get one."""
    if calibration is None:
        return (
            "Not calibrated: the same command with null_pair=generic (or null_pair=dtype) says what nothing looks like."
        )
    claims = calibration.claims
    parts = [
        _part(claims.tokens, "tokens"),
        _part(claims.examples, "examples"),
        _part(claims.texts, "texts"),
        _scalars(claims.scalars),
    ]
    said = ", ".join(p for p in parts if p)
    null = calibration.null
    against = NULL_PAIRS.get(null.null_pair, null.null_pair) + _scale(null.null_pair, null.label)
    level = f"false discovery rate {100 * claims.level:g}\u00a0%"
    if null.second_folder is not None:
        against += " (tokens: by how far two such finetunes differ)"
    return f"Against a null, {against}: claimed are {said or 'none, as nothing can be judged'} ({level})."


def stable(stability: Stability | None) -> str:
    """How much of a result comes back, in one sentence; empty where it was not measured."""
    if stability is None:
        return ""
    if not stability.comebacks:
        return "Stability: this method ranks nothing that could be compared between runs."
    said = [
        f"{100 * c.share:.0f}\u00a0% of the first {number(c.k)} {c.what} come back between {c.between} "
        f"(by chance {100 * c.chance:.2g}\u00a0%)"
        for c in stability.comebacks
    ]
    return f"Stability: {'; '.join(said)}."


def _part(claims: ListClaims, what: str) -> str:
    return f"{number(claims.n_claimed)} of {number(claims.n_tested)} {what}" if claims.n_tested else ""


def _scalars(flags: tuple[bool | None, ...]) -> str:
    known = [f for f in flags if f is not None]
    return f"{sum(known)} of {len(known)} headline numbers" if known else ""


def _scale(kind: str, label: str) -> str:
    rest = label.removeprefix(f"null-{kind}")
    return f" ({rest})" if rest else ""
