"""Finished results: opening one, and finding them below an output folder."""

import dataclasses
import json
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from diffing.core.claims import Calibration, read_calibration, refuse_other_items, with_claims
from diffing.core.errors import UserError
from diffing.core.evidence import Evidence, ScalarEvidence, read_evidence
from diffing.core.files import of_kind, read_json, sha256, versioned_json
from diffing.core.manifest import REMEDY, read_manifest
from diffing.core.runs import SCHEMA
from diffing.core.stability import Stability, read_stability, refuse_other_tokens
from diffing.core.suggest import did_you_mean
from diffing.core.tables import read_table

if TYPE_CHECKING:
    from torch import Tensor

_TENSORS = "tensors/tensors.safetensors"
_SETTLED_NS = 2 * 10**9
_MOST_REMEMBERED = 4096


class Result:
    """A finished run, read lazily from its folder.

    Args:
        folder: A run folder that holds a `manifest.json`.
        manifest: Given while a run is being written, whose manifest comes last; else read from the folder.

    Raises:
        UserError: There is no manifest, it is corrupt, or it has a newer schema version.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = manifest or read_manifest(self.folder)

    def __repr__(self) -> str:
        return f"Result({self.method}, {str(self.folder)!r})"

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.manifest["method"]

    @property
    def null_pair(self) -> str:
        """The null pair that it is of; `none` for a result of an organism."""
        return self.manifest["config"].get("null_pair", "none")

    @property
    def summary(self) -> list[dict[str, Any]]:
        """Headline scalars: name, value, low, high, null, unit, claimed."""
        with versioned_json(self.path("summary.json"), SCHEMA, REMEDY) as raw:
            scalars = [dataclasses.asdict(s) for s in of_kind(list[ScalarEvidence], raw["scalars"])]
        calibration = self.calibration()
        if calibration is None:
            return scalars
        claims = calibration.claims
        verdicts = zip(claims.scalars, claims.scalar_nulls, strict=True)
        by_name = dict(zip(claims.scalar_names, verdicts, strict=True))
        return [_judged(s, *by_name[s["name"]]) if s["name"] in by_name else s for s in scalars]

    def evidence(self) -> Evidence:
        """What was found, in the shape shared by all methods; with claims once a null pair was run."""
        found, calibration = self.measured_evidence(), self.calibration()
        if calibration is None:
            return found
        refuse_other_items(self.folder, found, calibration.claims)
        return with_claims(found, calibration.claims)

    def measured_evidence(self) -> Evidence:
        """What was found, before any null pair was run."""
        return read_evidence(self.path("evidence.json"))

    def calibration(self) -> Calibration | None:
        """What is claimed against a null pair, and which; None where no null of this run was run."""
        return read_calibration(self.folder, self.manifest.get("files", {}).get("evidence.json"))

    def stability(self) -> Stability | None:
        """How much of it comes back on other text and with another seed; None where `stability=true` was not run."""
        stability = read_stability(self.folder, self.manifest.get("files", {}).get("evidence.json"))
        if stability is not None:
            refuse_other_tokens(self.folder, stability, len(self.measured_evidence().tokens))
        return stability

    def tables(self) -> list[str]:
        """Names of the tables."""
        return self._names("tables", ".parquet")

    def table(self, name: str) -> pa.Table:
        """One table.

        Raises:
            UserError: The result has no such table, or its file is damaged.
        """
        if name not in self.tables():
            raise UserError(f"Result {self.folder} has no table {name!r}; it has {', '.join(self.tables())}.")
        return read_table(self.path(f"tables/{name}.parquet"))

    def tensors(self) -> "dict[str, Tensor]":
        """All saved tensors by name; empty when the method saved none."""
        if not self._names("tensors", ".safetensors"):
            return {}
        from safetensors.torch import load_file

        return load_file(self.path(_TENSORS))

    def tensor(self, name: str) -> "Tensor":
        """One saved tensor; the others are not read.

        Raises:
            UserError: The result has no such tensor, or its file is damaged.
        """
        if not self._names("tensors", ".safetensors"):
            raise UserError(f"Result {self.folder} has no tensor {name!r}; it has no tensors.")
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(_TENSORS), framework="pt") as file:
                names = list(file.keys())
                if name not in names:
                    raise UserError(f"Result {self.folder} has no tensor {name!r}: {did_you_mean(name, names)}")
                return file.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{self.folder / _TENSORS} is corrupt ({error}); {REMEDY}.") from None

    def figures(self) -> dict[str, Any]:
        """Plotly figures by name."""
        from plotly.io import from_json

        return {name: from_json(json.dumps(self.figure_data(name))) for name in self.figure_names()}

    def figure_names(self) -> list[str]:
        """Names of the figures."""
        return self._names("figures", ".json")

    def figure_data(self, name: str) -> Any:
        """One figure as the JSON values that plotly draws.

        Raises:
            UserError: Its file is missing or damaged.
        """
        return read_json(self.path(f"figures/{name}.json"), REMEDY)

    def path(self, name: str) -> Path:
        """Path of a file whose bytes are those that were written.

        Args:
            name: Below the run folder, such as `tables/tokens.parquet`.

        Raises:
            UserError: It is missing or damaged.
        """
        path = self.folder / name
        expected = self.manifest.get("files", {}).get(name)
        if not path.is_file():
            raise UserError(f"File {path} is missing; {REMEDY}.")
        if expected and _digest(path) != expected:
            raise UserError(f"File {path} is corrupt (its bytes are not those that were written); {REMEDY}.")
        return path

    def _names(self, kind: str, suffix: str) -> list[str]:
        """Names of the files of one kind: those the manifest lists, or while the run is being written those there."""
        files = self.manifest.get("files") or [f"{kind}/{p.name}" for p in (self.folder / kind).glob(f"*{suffix}")]
        return sorted(Path(f).stem for f in files if f.startswith(f"{kind}/") and f.endswith(suffix))


def _judged(scalar: dict[str, Any], claimed: bool | None, null: float | None) -> dict[str, Any]:
    """A headline number with its claim; its null value is the judging null's where that has it."""
    return scalar | {"claimed": claimed, "null": scalar["null"] if null is None else null}


def _digest(path: Path) -> str:
    """SHA-256 of a file; computed once for each size and time of change, so that paging through a table is quick.

    A file that changed a moment ago might change again within one tick of the file system's clock: not remembered.
    """
    stat = path.stat()
    if time.time_ns() - stat.st_mtime_ns < _SETTLED_NS:
        return sha256(path)
    return _remembered_digest(path.absolute(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=_MOST_REMEMBERED)
def _remembered_digest(path: Path, size: int, mtime_ns: int) -> str:
    return sha256(path)


class Results:
    """The finished results below an output folder.

    Args:
        base_dir: Output folder (`infrastructure.storage.base_dir`), or any folder that holds results.

    Raises:
        UserError: The folder does not exist.
    """

    def __init__(self, base_dir: str | Path) -> None:
        self.base_dir = Path(base_dir).expanduser()
        if not self.base_dir.is_dir():
            raise UserError(f"There is no output folder {self.base_dir}; `python main.py` makes ./outputs.")

    def __iter__(self) -> Iterator[Result]:
        return iter(self.find())

    def __len__(self) -> int:
        return len(self.find())

    def find(
        self,
        method: str | None = None,
        model: str | None = None,
        organism: str | None = None,
        variant: str | None = None,
    ) -> list[Result]:
        """Readable results that match, newest first; damaged ones are left out (see `broken`)."""
        wanted = {"model": model, "organism": organism, "variant": variant}
        hits = [r for r in self._readable() if method is None or r.method == method]
        hits = [r for r in hits if all(v is None or r.manifest["pair"].get(k) == v for k, v in wanted.items())]
        return sorted(hits, key=lambda r: (r.manifest["created"], str(r.folder)), reverse=True)

    def broken(self, below: Path | None = None) -> dict[Path, str]:
        """Run folders whose manifest cannot be read, all or those below a folder, with one sentence for each."""
        folders = [f for f in self._folders() if below is None or f.is_relative_to(below)]
        return {f: outcome for f in folders if isinstance(outcome := _try_open(f), str)}

    def _readable(self) -> list[Result]:
        return [outcome for outcome in map(_try_open, self._folders()) if isinstance(outcome, Result)]

    def _folders(self) -> list[Path]:
        root = self.base_dir / "results"
        return sorted(p.parent for p in (root if root.is_dir() else self.base_dir).rglob("manifest.json"))


def _try_open(folder: Path) -> "Result | str":
    try:
        return Result(folder)
    except UserError as error:
        return str(error)
