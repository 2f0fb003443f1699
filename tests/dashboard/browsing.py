"""The dashboard in a Chromium: a server of its own, and pages that remember whatever a user must never see.

The tests, the benchmark of the dashboard and the recipe of its pictures drive it in this way.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as NotThere

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDE, NARROW = 1280, 400
PATIENCE_MS = 120_000

_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
_HERE = ("localhost", "127.0.0.1")
# Streamlit looks for its server below the page's address before it looks at the root, and tells nobody that it did.
_PROBE = re.compile(r"/(overview|result|compare|try_it|chat|steer|amplify)/_stcore/(health|host-config)")
# Whether nothing has gone on for a moment: what was just clicked may not have reached the server yet.
_RESTS = """() => {
    const app = document.querySelector('[data-testid=stApp]'), now = performance.now();
    const rests = app?.dataset.testScriptState === 'notRunning' && app.dataset.testConnectionState === 'CONNECTED'
        && document.querySelector('h1') && !document.querySelector('[data-stale=true], [data-testid=stSkeleton]');
    if (!rests) window.busyAt = now;
    return now - (window.busyAt ??= now) > 150;
}"""
_FITS = """() => [document.scrollingElement, document.querySelector('.stMain')]
    .every(e => e.scrollWidth <= e.clientWidth && e.scrollWidth <= innerWidth)"""
_HEIGHT = "() => document.querySelector('.stMain').scrollHeight"


class Look(NamedTuple):
    """How a page is shown."""

    name: str
    width: int
    scheme: str


LIGHT, SMALL, DARK = Look("1280", WIDE, "light"), Look("400", NARROW, "light"), Look("1280-dark", WIDE, "dark")


def chromium_path() -> str | None:
    """The Chromium to drive: `DIFFING_CHROMIUM`, or the first one on the path; None where there is none."""
    named = os.environ.get("DIFFING_CHROMIUM")
    return next((found for name in ([named] if named else NAMES) if (found := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    path = chromium_path()
    assert path is not None, "There is no Chromium; apt-get install chromium, or set DIFFING_CHROMIUM."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        yield browser
        browser.close()


@dataclass(frozen=True)
class Server:
    """A dashboard that answers at `url`; what it says is in `log`."""

    url: str
    pid: int
    log: Path


@contextmanager
def server(base_dir: Path, folder: Path, script: Path = ROOT / "dashboard.py") -> Iterator[Server]:
    """`streamlit run dashboard.py` on a free port.

    Args:
        base_dir: The output folder it shows.
        folder: Where it is started, and writes its log.
        script: What is run.
    """
    port, log = _free_port(), folder / "server.log"
    command = [
        sys.executable, "-m", "streamlit", "run", str(script), "--server.headless=true",
        f"--server.port={port}", "--", f"infrastructure.storage.base_dir={base_dir}",
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=out, stderr=subprocess.STDOUT)
        try:
            started = Server(f"http://localhost:{port}", process.pid, log)
            _until(lambda: process.poll() is not None or _answers(started.url), "the server answers", 60)
            assert process.poll() is None, log.read_text()
            yield started
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def environment() -> dict[str, str]:
    """Of a subprocess: this checkout; one thread, since threads that wait for each other crawl on a busy machine."""
    more = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **more}


@dataclass
class Tab:
    """A page of the browser, and everything that went wrong in it.

    Args:
        page: The page.
        url: Of the server.
        faults: Console errors, exceptions, requests to other hosts, so far.
    """

    page: Page
    url: str
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.faults.append(f"exception in the page: {error}"))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.on("websocket", lambda socket: self._asked(socket.url))

    def open(self, path: str = "") -> None:
        """Go to an address below the server and wait until the page is whole."""
        self.page.goto(f"{self.url}/{path}")
        self.settle()

    def reload(self) -> None:
        """As the browser's button does."""
        self.page.reload()
        self.settle()

    def settle(self) -> None:
        """Wait until the page is drawn and nothing of it is being computed; it must be without fault."""
        self.page.evaluate("() => { window.busyAt = performance.now() }")
        self.page.wait_for_function(_RESTS)
        self.check()

    def check(self) -> None:
        """Nothing happened that a user must never see."""
        said = self.page.locator(".stException, .stAlert:has-text('A fault of ours')").all_inner_texts()
        faults = [*self.faults, *said]
        assert not faults, "\n".join(faults)

    def choose(self, label: str, option: str) -> None:
        """An option of a selector."""
        offered = self.page.get_by_role("option", name=option, exact=True)
        for _ in range(3):
            self.page.get_by_role("combobox", name=label, exact=True).click()
            with suppress(NotThere):
                offered.wait_for(timeout=10_000)
                break  # a list that is opened while the page is being drawn is closed by that
        offered.click()
        self.settle()

    def add(self, label: str, option: str) -> None:
        """One more option of a selector of several, whose list stays open until it is left."""
        offered = self.page.get_by_role("option", name=option, exact=True)
        for _ in range(3):
            self.choose(label, option)
            with suppress(NotThere):
                offered.wait_for(state="detached", timeout=5_000)
                break  # a click that comes while the list takes the focus chooses nothing
        self.page.keyboard.press("Tab")
        self.settle()

    def show(self, name: str, group: str | None = None) -> None:
        """One of the choices that stand side by side; `group` where several offer the same."""
        place = self.page.get_by_role("radiogroup", name=group, exact=True) if group else self.page
        radio = place.get_by_role("radio", name=name, exact=True)
        radio.click()
        expect(radio).to_be_checked(timeout=PATIENCE_MS)
        self.settle()

    def press(self, name: str) -> None:
        """A button."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def says(self, text: str | re.Pattern[str]) -> Locator:
        """Wait until the page shows a text."""
        found = self.page.locator(".stMain").get_by_text(text).first
        expect(found).to_be_visible(timeout=PATIENCE_MS)
        return found

    def pictures(self, folder: Path, name: str, looks: Sequence[Look] = (SMALL, DARK, LIGHT)) -> None:
        """The whole page in several looks; in none must it have to be scrolled sideways. The last one stays."""
        for look in looks:
            self.wear(look)
            height = min(self.page.evaluate(_HEIGHT) + 20, 6000)
            self.page.set_viewport_size({"width": look.width, "height": height})
            self.page.wait_for_timeout(250)  # figures follow the window after a delay of their own
            folder.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=folder / f"{name}-{look.name}.png")
            assert self.fits(), f"{name} in {look.name}: the page is wider than the window"

    def wear(self, look: Look) -> None:
        """Change width and colours."""
        self.page.emulate_media(color_scheme=look.scheme)  # type: ignore[arg-type]
        self.page.set_viewport_size({"width": look.width, "height": 900})
        self.settle()

    def fits(self) -> bool:
        """Whether the page need not be scrolled sideways."""
        return self.page.evaluate(_FITS)

    def _heard(self, message: ConsoleMessage) -> None:
        where = message.location.get("url", "")
        if message.type == "error" and not (where.startswith(self.url) and _PROBE.fullmatch(where[len(self.url) :])):
            self.faults.append(f"console: {message.text} {where}")

    def _asked(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.hostname not in _HERE:
            self.faults.append(f"a request to another host: {url}")


def tab(browser: Browser, url: str, look: Look = LIGHT, **device: Any) -> Tab:
    """A new tab, with a memory of its own; `device` as Playwright describes one."""
    size = {"width": look.width, "height": 900}
    context = browser.new_context(**{"viewport": size, "color_scheme": look.scheme, **device})
    return Tab(context.new_page(), url)


def _until(holds: Callable[[], bool], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"Not within {seconds:g} s: {what}."
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/_stcore/health", timeout=2) as reply:
            return reply.status == 200
    except (URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
