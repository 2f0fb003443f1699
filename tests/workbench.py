"""A tiny pair on disk and the command line as a stranger types it: shared by the tests of cli, pipeline and methods."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TEXT = "the heron stood in a thin line of smoke and rang the bell twice before another answer was needed"
WORDS = TEXT.split()


@dataclass(frozen=True)
class Outcome:
    """Exit code and streams of one command."""

    code: int
    out: str
    err: str

    def sentence(self, *parts: str, code: int = 2, alone: bool = False) -> str:
        """The one `error: …` line; asserts exit code, no traceback, and that it contains `parts`."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err + self.out
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert lines[0].rstrip().endswith((".", "?")), lines[0]
        assert self.err.rstrip().endswith(lines[0]), f"more follows the sentence: {self.err}"
        if alone:
            assert self.err.strip() == lines[0]
        for part in parts:
            assert part in lines[0], f"{part!r} is not in {lines[0]!r}"
        return lines[0]

    def done(self) -> "Outcome":
        """Asserts success."""
        assert self.code == 0, self.err
        assert "error:" not in self.err
        return self


@dataclass(frozen=True)
class Bench:
    """Folders of one tiny base with an adapter and a full finetune, and a text file.

    Args:
        folder: Holds `base`, `adapter`, `full` and `texts.jsonl`.
    """

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def full(self) -> Path:
        return self.folder / "full"

    @property
    def texts(self) -> Path:
        return self.folder / "texts.jsonl"

    def command(self, base_dir: Path, *more: str, **changes: object) -> list[str]:
        """Options that compare the pair; `changes` replace `base`, `finetuned` or `data`."""
        return [
            "model=custom",
            f"model.id={changes.get('base', self.base)}",
            "model.device_map=cpu",
            "organism=custom",
            f"organism.finetuned={changes.get('finetuned', self.adapter)}",
            "data=custom",
            f"data.path={changes.get('data', self.texts)}",
            f"infrastructure.storage.base_dir={base_dir}",
            *more,
        ]


def write_jsonl(path: Path, rows: list[object]) -> Path:
    """Write one JSON value per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sentences(n: int) -> list[dict[str, str]]:
    """`n` different short texts."""
    return [
        {"text": " ".join(WORDS[(i * 7 + k * (i % 5 + 1)) % len(WORDS)] for k in range(9)) + f" {i}."} for i in range(n)
    ]


def environment(**more: str) -> dict[str, str]:
    """Of a subprocess: this checkout, one thread, nothing of the user's."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH",)}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **more}


def start(args: list[str], cwd: Path, **more: str) -> subprocess.Popen[str]:
    """`python main.py ARGS` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *args],
        cwd=cwd, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def limited(args: list[str], n_bytes: int) -> subprocess.CompletedProcess[str]:
    """`python main.py ARGS` in a process whose files the kernel keeps below `n_bytes`."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *args],
        env=environment(PYTHONDONTWRITEBYTECODE="1"), preexec_fn=limit, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def pair_loader(folder_of: Callable[[str], Path], full: bool) -> Callable[..., Any]:
    """Loads a tiny pair once per architecture and kind; `full` is the kind unless it is said."""
    from diffing.models.pair import load_pair
    from diffing.models.tiny import save_pair

    loaded: dict[tuple, Any] = {}

    def load(architecture: str = "llama", full: bool = full, **changes: object) -> Any:
        key = (architecture, full, tuple(sorted(changes.items())))
        if key not in loaded:
            spec = save_pair(folder_of(architecture), architecture, full=full)
            loaded[key] = load_pair(spec.model_copy(update=changes))
        return loaded[key]

    return load


def python(code: str, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -c CODE ARGS` with this checkout's package."""
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300, check=False)


def run_folders(base_dir: Path) -> list[Path]:
    """Run folders below an output folder, finished or not."""
    return sorted(p for p in base_dir.glob("results/*/*/*/*") if p.is_dir())


def run_folder(base_dir: Path) -> Path:
    """The only run folder below an output folder."""
    (folder,) = run_folders(base_dir)
    return folder


def manifest(folder: Path) -> dict:
    """The manifest of a run folder."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def tables(folder: Path) -> dict:
    """All tables of a run folder, read without the package."""
    import pyarrow.parquet as pq

    return {p.stem: pq.read_table(p) for p in sorted((folder / "tables").glob("*.parquet"))}


def assert_same_tables(one: Path, other: Path) -> None:
    """All tables equal to the bit; NaN does not occur in them."""
    ours, theirs = tables(one), tables(other)
    assert list(ours) == list(theirs)
    for name, table in ours.items():
        assert table.equals(theirs[name]), f"table {name} differs"
