"""Run folders: where a run lives, its state while it runs, its manifest when it is whole.

`manifest.json` is written last; a folder without one is not a result. `state.json` says meanwhile
whether the run is going on, failed, or was cut off.
"""

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from diffing.core.errors import UserError
from diffing.core.files import write_json

SCHEMA = 1
HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 60.0
Status = Literal["done", "running", "failed", "interrupted", "none"]


@dataclass(frozen=True)
class RunKey:
    """Where a run belongs: `results/<model>/<organism>[+<variant>]/<method>/<fingerprint>/`."""

    model: str
    organism: str
    variant: str
    method: str
    fingerprint: str

    def folder(self, base_dir: Path) -> Path:
        """The run's folder below `base_dir`."""
        pair = pair_folder(base_dir, self.model, self.organism, self.variant)
        return pair.joinpath(_safe(self.method), _safe(self.fingerprint))


def pair_folder(base_dir: Path, model: str, organism: str, variant: str) -> Path:
    """Folder of a pair's results below `base_dir`."""
    named = organism if variant == "default" else f"{organism}+{variant}"
    return base_dir.joinpath("results", _safe(model), _safe(named))


def _safe(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "._+-" else "_" for c in name).strip(".")
    return kept[:120] or "_"


class RunState:
    """Keeps `state.json` of a run folder fresh while the run goes on.

    A context manager: entering claims the folder, leaving on an exception records why.

    Args:
        folder: The run folder; the working process holds a lock on `.lock` in it.

    Raises:
        UserError: Another live process is working in the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.json"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._started = time.time()
        self._lock = FileLock(folder / ".lock", timeout=0)

    def __enter__(self) -> "RunState":
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(
                f"Another process is at work in {self.path.parent}; wait for it, or stop it and run again."
            ) from None
        self._write("running", None)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._close(error)
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def _close(self, error: BaseException | None) -> None:
        if error is None:
            self.path.unlink(missing_ok=True)
        elif isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._write("interrupted", "stopped by the user")
        else:
            self._write("failed", " ".join(str(error).split())[:500] or type(error).__name__)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                self._write("running", None)

    def _write(self, status: str, reason: str | None) -> None:
        write_json(
            self.path,
            {
                "schema": SCHEMA,
                "status": status,
                "reason": reason,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "started": self._started,
                "heartbeat": time.time(),
            },
        )


def run_status(folder: Path) -> tuple[Status, str | None]:
    """What state a run folder is in, and the reason of a failure.

    A run whose heartbeat is older than 60 s, or whose process on this host is gone, was interrupted.
    """
    if (folder / "manifest.json").exists():
        return "done", None
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "none", None
    except (json.JSONDecodeError, UnicodeDecodeError):
        return "interrupted", "its state file is not whole"
    if not isinstance(state, dict) or state.get("status") not in ("running", "failed", "interrupted"):
        return "interrupted", "its state file is not whole"
    if state["status"] != "running":
        return state["status"], state.get("reason")
    beat = state.get("heartbeat")
    if not isinstance(beat, (int, float)) or time.time() - beat > STALE_SECONDS or not _alive(state):
        return "interrupted", "it stopped without a word"
    return "running", None


def _alive(state: dict[str, Any]) -> bool:
    if state.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(state["pid"]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, KeyError, ValueError, TypeError):
        return True
    return True
