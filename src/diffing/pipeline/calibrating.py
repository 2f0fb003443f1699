"""Judges finished results against finished nulls: whichever of the two is done last brings them together."""

import os
from pathlib import Path

from diffing.analysis.calibration import Ranking, calibrate
from diffing.core.claims import Calibration, Claims, NullRun, write_calibration
from diffing.core.errors import UserError
from diffing.core.method import load_method
from diffing.core.progress import say, warn
from diffing.core.result import Result, Results
from diffing.report.render import write_report

# Which null judges where several were run: the one that is most like a finetune in which nothing is to be found.
# The base against itself judges nothing: its scores are 0, and rounding alone would be above them.
PREFERENCE = ("generic", "generic_other", "seeds", "dtype")


def calibrate_around(result: Result, base_dir: Path, only_unjudged: bool = False) -> list[Result]:
    """Judge a new result against its nulls; a new null judges the results that share its base, text and options.

    Reports of the results that are judged are written again.

    Args:
        result: Just finished.
        base_dir: Output folder.
        only_unjudged: Leave results alone that are judged already.

    Returns:
        The results that were judged.
    """
    comparable = _comparable(result, base_dir)
    if result.null_pair == "none":
        judged, nulls = [result], comparable
    else:
        judged, nulls = [r for r in comparable if r.null_pair == "none"], [result, *comparable]
    nulls = [r for r in nulls if r.null_pair in PREFERENCE]
    if not nulls:
        return []
    null = min(nulls, key=_preference)
    second = min((n for n in nulls if _are_two_of_a_kind(null, n)), key=_preference, default=None)
    done = []
    for each in judged:
        try:
            if only_unjudged and _is_judged(each):
                continue
            _judge(each, null, second)
            done.append(each)
            say(f"Judged against {null.manifest['pair']['variant']}: {each.folder / 'report.html'}")
        except UserError as error:
            warn(f"{each.folder} could not be judged against {null.folder}: {error}")
    return done


def _is_judged(result: Result) -> bool:
    """Whether it is, in a way that can be read; claims are made again from results, so damaged ones are no loss."""
    try:
        return result.calibration() is not None
    except UserError:
        return False


def _comparable(result: Result, base_dir: Path) -> list[Result]:
    key = result.manifest.get("comparison")
    if key is None:
        return []
    found = Results(base_dir).find(method=result.method)
    return [r for r in found if r.manifest.get("comparison") == key and r.folder.resolve() != result.folder.resolve()]


def _are_two_of_a_kind(null: Result, other: Result) -> bool:
    """Whether both are the base against a generic finetune, each against another, both at full strength."""
    are_whole = not any(_is_scaled(n) for n in (null, other))
    adapters = {n.manifest["pair"]["finetuned_id"] for n in (null, other)}
    return {null.null_pair, other.null_pair} == {"generic", "generic_other"} and are_whole and len(adapters) == 2


def _preference(null: Result) -> tuple[int, bool, bool]:
    stands_in = null.manifest["pair"]["variant"] != f"null-{null.null_pair}"
    return PREFERENCE.index(null.null_pair), _is_scaled(null), stands_in


def _is_scaled(null: Result) -> bool:
    organism = null.manifest["config"].get("organism")
    return isinstance(organism, dict) and organism.get("amplification") is not None


def _judge(result: Result, null: Result, second: Result | None) -> None:
    digest = result.manifest.get("files", {}).get("evidence.json")
    if digest is None:
        return
    claims = claims_against(result, null, second)
    run = NullRun(
        null.null_pair, null.manifest["pair"]["variant"], null.manifest["fingerprint"], _relative(null, result),
        None if second is None else _relative(second, result),
    )  # fmt: skip
    write_calibration(result.folder, Calibration(run, claims), digest)
    write_report(result, load_method(result.method))


def _relative(null: Result, result: Result) -> str:
    return Path(os.path.relpath(null.folder, result.folder)).as_posix()


def claims_against(result: Result, null: Result, second: Result | None = None) -> Claims:
    """What a result claims against a null.

    Args:
        result: Of an organism, or of a null on which false claims are counted.
        null: The same method's on a null pair, same base, text and options.
        second: Another null of the same kind; None: tokens are ranked among those of one null.
    """
    return calibrate(
        result.measured_evidence(), null.measured_evidence(), Ranking.of(result), Ranking.of(null),
        None if second is None else Ranking.of(second), load_method(result.method).size,
    )  # fmt: skip
