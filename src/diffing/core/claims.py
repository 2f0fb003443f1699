"""Claims: what of a result's evidence stands out from the same method's evidence on a null pair.

They are kept in `calibration.json` beside `evidence.json`, which stays as it was measured, and name the bytes of the
evidence they were made for, so that claims about an older one are not taken for claims about this one.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffing.core.errors import UserError
from diffing.core.evidence import Evidence
from diffing.core.files import finite, of_kind, versioned_json, write_json

NAME = "calibration.json"
SCHEMA = 1
_REMEDY = "delete it and run the null pair again"


@dataclass(frozen=True)
class NullRun:
    """The null that claims were made against.

    Args:
        null_pair: Its kind: generic, seeds or dtype.
        label: Its variant, which also says how it was scaled.
        fingerprint: Of its run.
        folder: Its run folder, relative to the result's.
        second_folder: That of the other null that tokens were judged by; None: there was one null.
    """

    null_pair: str
    label: str
    fingerprint: str
    folder: str
    second_folder: str | None = None


@dataclass(frozen=True)
class ListClaims:
    """Claims for a list of evidence, and how they came about.

    Args:
        flags: One for each item; None where nothing can be said.
        n_tested: Scores of the result that were judged.
        n_null: Scores of the null that judged them.
        n_claimed: Claims among all that were judged, listed or not.
        threshold: Lowest score that is claimed; None without claims.
        p_values: Rank against the null of each item, as a p-value; None where nothing can be said.
    """

    flags: tuple[bool | None, ...]
    n_tested: int = 0
    n_null: int = 0
    n_claimed: int = 0
    threshold: float | None = None
    p_values: tuple[float | None, ...] = ()

    def p_value(self, place: int) -> float | None:
        """Of the item at a place of the list; None where it has none."""
        return self.p_values[place] if place < len(self.p_values) else None


@dataclass(frozen=True)
class Claims:
    """What of a result's evidence is claimed against a null, item by item, and the null's own values.

    Args:
        level: False discovery rate.
        tokens: Of `Evidence.tokens`.
        token_nulls: Scores of the same tokens on the null.
        examples: Of `Evidence.examples`.
        texts: Of `Evidence.texts`.
        scalars: Of `Evidence.scalars`.
        scalar_names: Their names.
        scalar_nulls: Values of the same scalars on the null.
    """

    level: float
    tokens: ListClaims
    token_nulls: tuple[float | None, ...]
    examples: ListClaims
    texts: ListClaims
    scalars: tuple[bool | None, ...]
    scalar_names: tuple[str, ...]
    scalar_nulls: tuple[float | None, ...]


def with_claims(evidence: Evidence, claims: Claims) -> Evidence:
    """Evidence whose items say what is claimed; null values are the judging null's where it has them."""
    tokens = zip(evidence.tokens, claims.tokens.flags, claims.token_nulls, strict=True)
    scalars = zip(evidence.scalars, claims.scalars, claims.scalar_nulls, strict=True)
    return Evidence(
        tokens=tuple(
            dataclasses.replace(t, claimed=c, null_score=t.null_score if n is None else n) for t, c, n in tokens
        ),
        examples=_claimed(evidence.examples, claims.examples),
        texts=_claimed(evidence.texts, claims.texts),
        scalars=tuple(dataclasses.replace(s, claimed=c, null=s.null if n is None else n) for s, c, n in scalars),
    )


def _claimed(items: tuple[Any, ...], claims: ListClaims) -> tuple[Any, ...]:
    return tuple(dataclasses.replace(i, claimed=c) for i, c in zip(items, claims.flags, strict=True))


@dataclass(frozen=True)
class Calibration:
    """Claims, and the null they were made against."""

    null: NullRun
    claims: Claims


def write_calibration(folder: Path, calibration: Calibration, evidence_digest: str) -> None:
    """Write `calibration.json` into a result's folder.

    Args:
        folder: The result's.
        calibration: What to write.
        evidence_digest: SHA-256 of the evidence that is judged.
    """
    values = dataclasses.asdict(calibration)
    write_json(folder / NAME, {"schema": SCHEMA, "of": evidence_digest, **finite(values)})


def read_calibration(folder: Path, evidence_digest: str | None) -> Calibration | None:
    """The claims about a result's evidence; None where it was not calibrated, or where other evidence was.

    Raises:
        UserError: The file is corrupt or of a newer schema.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    with versioned_json(path, SCHEMA, _REMEDY) as raw:
        if raw["of"] != evidence_digest:
            return None
        calibration = of_kind(Calibration, raw)
        if unlike := _of_unlike_length(calibration.claims):
            raise ValueError(f"{unlike} are not of one length")
        return calibration


def _of_unlike_length(claims: Claims) -> str | None:
    """Lists that should say something of the same items and do not."""
    alike = {
        "tokens.flags and token_nulls": (claims.tokens.flags, claims.token_nulls),
        "scalars, scalar_names and scalar_nulls": (claims.scalars, claims.scalar_names, claims.scalar_nulls),
        **{
            f"{name}.flags and {name}.p_values": (listed.flags, listed.p_values or listed.flags)
            for name, listed in (("tokens", claims.tokens), ("examples", claims.examples), ("texts", claims.texts))
        },
    }
    return next((name for name, lists in alike.items() if len(set(map(len, lists))) > 1), None)


def refuse_other_items(folder: Path, evidence: Evidence, claims: Claims) -> None:
    """Refuse claims that were read beside evidence of which they cannot be.

    Raises:
        UserError: They are of more or fewer items.
    """
    judged = {
        "tokens": (evidence.tokens, claims.tokens.flags),
        "examples": (evidence.examples, claims.examples.flags),
        "texts": (evidence.texts, claims.texts.flags),
        "scalars": (evidence.scalars, claims.scalars),
    }
    for name, (items, flags) in judged.items():
        if len(items) != len(flags):
            raise UserError(
                f"{folder / NAME} is corrupt (it judges {len(flags)} {name}, the evidence has {len(items)}); {_REMEDY}."
            )
