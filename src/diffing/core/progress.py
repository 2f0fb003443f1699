"""Progress bars and messages on stderr; fewer lines where the stream is no terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)
_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


@runtime_checkable
class Advance(Protocol):
    """Moves a bar on by `n` units; `note` replaces the text behind it."""

    def __call__(self, n: float = 1, note: str | None = None) -> None:
        """Advance by `n`."""
        ...


@contextmanager
def bar(title: str, total: float, unit: str = "") -> Iterator[Advance]:
    """A progress bar; on a stream that is no terminal, a line at each tenth instead."""
    if console.is_terminal:
        with _live(title, total, unit) as advance:
            yield advance
    else:
        yield _Lines(title, total, unit)


@contextmanager
def _live(title: str, total: float, unit: str) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, note=f"{total:,.0f} {unit}" if unit else "")

        def advance(n: float = 1, note: str | None = None) -> None:
            if note is None:
                progress.update(task, advance=n)
            else:
                progress.update(task, advance=n, note=note)

        yield advance


class _Lines:
    """Prints `title: 30 %` when another tenth is done."""

    def __init__(self, title: str, total: float, unit: str) -> None:
        self.title, self.total, self.unit = title, max(total, 1e-9), unit
        self.done, self.tenth = 0.0, 0

    def __call__(self, n: float = 1, note: str | None = None) -> None:
        self.done += n
        tenth = int(10 * self.done / self.total + 1e-9)
        if tenth > self.tenth:
            self.tenth = tenth
            tail = f" of {self.total:,.0f} {self.unit}" if self.unit else ""
            print(f"{self.title}: {10 * tenth} %{tail}{'  ' + note if note else ''}", file=sys.stderr, flush=True)
            _tell(f"{self.title}: {10 * tenth} %{tail}")


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Within the block, lines said in this thread go to `listener` too."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def say(message: str) -> None:
    """One line on stderr, above any running bar."""
    console.print(message, markup=False)
    _tell(message)


def warn(message: str) -> None:
    """One warning line on stderr."""
    console.print(f"warning: {message}", style="yellow", markup=False)
    _tell(f"warning: {message}")


def _tell(message: str) -> None:
    if (listener := _listener.get()) is not None:
        listener(message)
