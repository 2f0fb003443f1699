"""Stability: how much of a result's rankings comes back on other text and with another seed, in `stability.json`."""

from dataclasses import asdict, dataclass
from pathlib import Path

from diffing.core.errors import UserError
from diffing.core.files import of_kind, versioned_json, write_json

NAME = "stability.json"
SCHEMA = 1
_REMEDY = "delete it and run with stability=true again"


@dataclass(frozen=True)
class Comeback:
    """Part of a ranking's head that comes back.

    Args:
        what: `tokens` or `documents`.
        between: `two halves of the text`, or `two seeds`.
        k: Length of the heads.
        share: Part of one head that is in the other.
        chance: The same of random orders.
    """

    what: str
    between: str
    k: int
    share: float
    chance: float


@dataclass(frozen=True)
class Stability:
    """How stable a result is.

    Args:
        comebacks: What was compared.
        n_reruns: Runs that were made for it.
        tokens: For each token of the evidence, in how many of these runs it is ranked about as high again; None: the
            method ranks no tokens.
    """

    comebacks: tuple[Comeback, ...]
    n_reruns: int
    tokens: tuple[int, ...] | None


def write_stability(folder: Path, stability: Stability, evidence_digest: str) -> None:
    """Write `stability.json` into a result's folder; it names the evidence it is for."""
    write_json(folder / NAME, {"schema": SCHEMA, "of": evidence_digest, **asdict(stability)})


def read_stability(folder: Path, evidence_digest: str | None) -> Stability | None:
    """The stability of a result; None where it was not measured, or for other evidence.

    Raises:
        UserError: The file is corrupt or of a newer schema.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    with versioned_json(path, SCHEMA, _REMEDY) as raw:
        return of_kind(Stability, raw) if raw["of"] == evidence_digest else None


def refuse_other_tokens(folder: Path, stability: Stability, n_tokens: int) -> None:
    """Refuse a stability that was read beside evidence of which it cannot be.

    Raises:
        UserError: It speaks of more or fewer tokens.
    """
    if stability.tokens is not None and len(stability.tokens) != n_tokens:
        raise UserError(
            f"{folder / NAME} is corrupt (it speaks of {len(stability.tokens)} tokens, the evidence has {n_tokens}); "
            f"{_REMEDY}."
        )
