"""Runs asked for in the browser: processes of the command line that outlive a reload, and the server.

Each has a folder `<base_dir>/dashboard/<id>/` with `job.json` and the `log` it writes. The process holds a lock on
`alive` as long as it lives, whoever started it: a number that another process got meanwhile cannot be mistaken for it.
"""

import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffing.core.errors import UserError
from diffing.core.files import disk_errors, write_json
from diffing.core.provenance import now

State = Literal["running", "done", "failed", "cancelled"]
_TAIL = 8192
_GRACE_SECONDS = 20.0
_SHARE = re.compile(r"^(?P<title>.+?): (?P<percent>\d{1,3}) %")
_children: dict[str, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Job:
    """A run that was asked for.

    Args:
        folder: Where its files are.
        command: What was started, as it would be typed.
        started: When, UTC, ISO 8601.
        pid: Its process, which leads a group of its own.
    """

    folder: Path
    command: str
    started: str
    pid: int

    @property
    def id(self) -> str:
        """The folder's name."""
        return self.folder.name


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Args:
        state: Whether it goes on, and how it ended.
        title: What it is doing, or how it ended, in one line.
        share: Done part of the current step; None where that is not known.
        lines: The last lines it wrote.
        results: Run folders that it finished or found finished.
    """

    state: State
    title: str
    share: float | None
    lines: tuple[str, ...]
    results: tuple[Path, ...] = ()


def start(command: Sequence[str], shown: str, base_dir: Path) -> Job:
    """Start `command` as a process of its own.

    Args:
        command: Program and arguments; no shell reads them.
        shown: The command as people type it.
        base_dir: Output folder.

    Raises:
        UserError: The output folder cannot be written to, or the program cannot be started.
    """
    folder = base_dir / "dashboard" / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    with disk_errors(folder, "set infrastructure.storage.base_dir=DIR"):
        folder.mkdir(parents=True)
        with open(folder / "alive", "wb") as alive, open(folder / "log", "wb") as log:
            fcntl.flock(alive, fcntl.LOCK_EX)
            try:
                child = subprocess.Popen(
                    list(command), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True, pass_fds=(alive.fileno(),), env={**os.environ, "PYTHONUNBUFFERED": "1"},
                )  # fmt: skip
            except OSError as error:
                raise UserError(f"{command[0]} cannot be started: {error.strerror}; check the installation.") from error
        job = Job(folder, shown, now(), child.pid)
        _children[job.id] = child
        write_json(folder / "job.json", {"command": shown, "started": job.started, "pid": child.pid})
    return job


def jobs(base_dir: Path) -> list[Job]:
    """Jobs below an output folder, newest first; folders that are not whole are left out."""
    found = [_read(p.parent) for p in (base_dir / "dashboard").glob("*/job.json")]
    return sorted((j for j in found if j is not None), key=lambda j: j.id, reverse=True)


def progress(job: Job) -> Progress:
    """How far a job is, from its lock and its log."""
    lines = _last_lines(job.folder / "log")
    if is_alive(job):
        title, share = _step(lines)
        return Progress("running", title, share, lines)
    if (job.folder / "cancelled").exists():
        return Progress(
            "cancelled", "Cancelled; what is whole is kept, the same command goes on from there.", None, lines
        )
    code = _code(job)
    error = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), None)
    if code == 0 or (code is None and error is None and any(line.startswith("Report: ") for line in lines)):
        reports = [line.removeprefix("Report: ") for line in lines if line.startswith("Report: ")]
        return Progress("done", "Done.", 1.0, lines, tuple(Path(r).parent for r in reports))
    return Progress("failed", error or _last_word(lines, code), None, lines)


def is_alive(job: Job) -> bool:
    """Whether the job's process still holds its lock."""
    if (child := _children.get(job.id)) is not None and child.poll() is not None:
        return False
    try:
        with open(job.folder / "alive", "rb") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def cancel(job: Job) -> None:
    """Interrupt a job as Ctrl-C would; one that does not end within 20 s is ended."""
    if not is_alive(job):
        return
    (job.folder / "cancelled").touch()
    for kind, seconds in ((signal.SIGINT, _GRACE_SECONDS), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, kind)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not is_alive(job):
                return
            time.sleep(0.05)


def command_of(entry: Path, overrides: Sequence[str]) -> tuple[list[str], str]:
    """The command line that runs `main.py` with `overrides`: as a process is started, and as it is typed."""
    return (
        [sys.executable, str(entry), *overrides],
        " ".join(["python", "main.py", *map(shlex.quote, overrides)]),
    )


def _read(folder: Path) -> Job | None:
    try:
        raw = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        return Job(folder, str(raw["command"]), str(raw["started"]), int(raw["pid"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _code(job: Job) -> int | None:
    """The exit code, known to the server that started the job."""
    child = _children.get(job.id)
    return None if child is None else child.poll()


def _last_lines(log: Path) -> tuple[str, ...]:
    try:
        with open(log, "rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - _TAIL))
            text = handle.read().decode("utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(line for line in text.splitlines() if line.strip())


def _step(lines: Sequence[str]) -> tuple[str, float | None]:
    """The current step and how much of it is done, from the lines that `core.progress` writes off a terminal."""
    if not lines:
        return "Starting …", None
    found = _SHARE.match(lines[-1])
    if found is None:
        return lines[-1], None
    return found["title"], min(int(found["percent"]), 100) / 100


def _last_word(lines: Sequence[str], code: int | None) -> str:
    said = lines[-1] if lines else "it wrote nothing"
    return f"It ended{f' with code {code}' if code is not None else ''}: {said}"
