"""How faint a change each method still finds, as the benchmark measured it: written beside its leaderboard."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from diffing.core.errors import UserError
from diffing.core.files import of_kind, versioned_json, write_json

NAME = "sensitivity.json"
SCHEMA = 1


@dataclass(frozen=True)
class Sensitivity:
    """How faint a change a method finds.

    Args:
        method: The method.
        by_rung: For each rung that was run, from the strongest to the most diluted, `found`, `not found` or `failed`.
        faintest: The most diluted rung that was found, with all less diluted ones found as well; None: not even the
            undiluted one.
    """

    method: str
    by_rung: Mapping[str, str]
    faintest: str | None


def write_sensitivity(folder: Path, model: str, measured: Sequence[Sensitivity]) -> None:
    """Write `sensitivity.json`.

    Args:
        folder: The leaderboard's.
        model: Base model.
        measured: By method.
    """
    write_json(folder / NAME, {"schema": SCHEMA, "model": model, "methods": [asdict(s) for s in measured]})


def measured_sensitivity(base_dir: Path, model: str) -> dict[str, Sensitivity]:
    """What benchmarks below an output folder say of a base model, by method: the one with most rungs, then the newest.

    A file that cannot be read is passed over: the benchmark says so when it is run again.
    """
    paths = sorted((base_dir / "benchmark").glob(f"*/{NAME}"), key=lambda p: p.stat().st_mtime_ns)
    found: dict[str, Sensitivity] = {}
    for measured in (s for path in paths for s in _read(path, model)):
        before = found.get(measured.method)
        if before is None or len(measured.by_rung) >= len(before.by_rung):
            found[measured.method] = measured
    return found


def _read(path: Path, model: str) -> list[Sensitivity]:
    try:
        with versioned_json(path, SCHEMA, "run pipeline.mode=benchmark again") as raw:
            return of_kind(list[Sensitivity], raw["methods"]) if raw["model"] == model else []
    except UserError:
        return []
