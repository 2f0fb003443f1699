"""The dashboard with 1, 100 and 1,000 runs on disk: first paint, switch of result, memory of the server without models.

Every measurement starts a server of its own, the sizes in turn, so that drift of the machine hits all alike. Times are
taken in the page: from its navigation to the first cell of the matrix, and on the Result page from the key that chooses
an organism to its title and number.
"""

import argparse
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

# Servers and browsers are started as the tests start them.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "dashboard"))

from browsing import ROOT, Server, Tab, chromium, environment, server, tab
from playwright.sync_api import Browser

from diffing.display.numbers import number

SIZES = (1, 100, 1000)
METHODS = ("kl", "normdiff")
PAGES = ("", "?view=list", "result", "result?show=Tables", "compare", "try_it", "chat", "steer")
_NOTE_KEY = """() => { window.chosenAt = null; document.addEventListener('keydown', event => {
    if (event.key === 'Enter') window.chosenAt = performance.now() }, {capture: true}) }"""
_SHOWN = """([title, value]) => document.querySelector('h1')?.innerText.includes(title)
    && document.querySelector('.d-table td.number b')?.innerText === value && performance.now() - window.chosenAt"""


BARE = """import streamlit as st
st.title("Nothing else")
st.html("<a class='cell' href='/'>a link</a>")
"""


class Measured(NamedTuple):
    """Of one server: seconds until it answered, of first paints and switches; MiB resident at the end.

    `cold` is the first page of the server, `warm` a later one; both in a browser that has nothing of it yet, `again` in
    one that has.
    """

    start: float
    cold: float
    warm: list[float]
    again: list[float]
    switch: list[float]
    memory: float


def real_results(base_dir: Path, made: Path | None) -> list[Path]:
    """One small result of each method, from `made` or made anew."""
    if made is None:
        options = ["pipeline.methods=[kl,normdiff]", "data.max_tokens=200"]
        command = [sys.executable, str(ROOT / "main.py"), *options, f"infrastructure.storage.base_dir={base_dir}"]
        subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)
    folder = made or base_dir
    return [next(folder.glob(f"results/*/*/{method}/*/manifest.json")).parent for method in METHODS]


def organisms(n_runs: int) -> Iterator[tuple[str, str]]:
    """Names and variants: every fifth organism is a variant of the one before."""
    for i in range(max(1, n_runs // len(METHODS))):
        yield (f"organism_{i - 1:03d}", "strong") if i % 5 == 4 else (f"organism_{i:03d}", "default")


def value_of(organism: str, variant: str) -> float:
    """A headline number that tells organisms apart."""
    return 1 + int(organism[-3:]) / 100 + (5 if variant == "strong" else 0)


def fill(base_dir: Path, originals: list[Path], n_runs: int) -> None:
    """`n_runs` runs that share the files of the originals, but not their manifest and headline."""
    made = datetime.now(UTC)
    places = [(o, v, original) for o, v in organisms(n_runs) for original in originals][:n_runs]
    for i, (organism, variant, original) in enumerate(places):
        subject = organism if variant == "default" else f"{organism}+{variant}"
        name = hashlib.sha256(f"{subject}/{original.parent.name}".encode()).hexdigest()[:16]
        folder = base_dir / "results" / "smollm2_135M" / subject / original.parent.name / name
        for file in (p for p in original.rglob("*") if p.is_file()):
            to = folder / file.relative_to(original)
            to.parent.mkdir(parents=True, exist_ok=True)
            if file.name not in ("manifest.json", "summary.json"):
                to.hardlink_to(file)
        rewrite(folder, original, organism, variant, name, made - timedelta(minutes=i))


def rewrite(folder: Path, original: Path, organism: str, variant: str, name: str, when: datetime) -> None:
    """Headline and manifest of a copy."""
    summary = json.loads((original / "summary.json").read_text())
    summary["scalars"][0]["value"] = value_of(organism, variant)
    text = json.dumps(summary)
    (folder / "summary.json").write_text(text)
    manifest = json.loads((original / "manifest.json").read_text())
    manifest["fingerprint"], manifest["created"] = name, when.isoformat(timespec="seconds")
    manifest["pair"] |= {"organism": organism, "variant": variant}
    manifest["files"]["summary.json"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def measure(browser: Browser, base_dir: Path, n_runs: int, repeats: int) -> Measured:
    """Start a server, browse, and stop it."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with server(base_dir, Path(folder)) as running:
            up = time.perf_counter() - started
            paints = [first_paints(browser, running.url) for _ in range(1 + repeats)]
            seen = tab(browser, running.url)
            switch = switches(seen, n_runs, repeats)
            for page in PAGES:
                seen.open(page)
            seen.page.context.close()
            return measured(up, paints, switch, running)


def measure_bare(browser: Browser, repeats: int) -> Measured:
    """The same of a page of Streamlit that holds a title and a link: what no page can be quicker than."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "bare.py"
        script.write_text(BARE)
        shutil.copytree(ROOT / ".streamlit", Path(folder) / ".streamlit")
        started = time.perf_counter()
        with server(Path(folder), Path(folder), script) as running:
            up = time.perf_counter() - started
            return measured(up, [first_paints(browser, running.url) for _ in range(1 + repeats)], [], running)


def measured(up: float, paints: list[tuple[float, float]], switch: list[float], running: Server) -> Measured:
    cold, *warm = [first for first, _ in paints]
    return Measured(up, cold, warm, [again for _, again in paints], switch, resident(running.pid))


def first_paints(browser: Browser, url: str) -> tuple[float, float]:
    """Seconds from navigation to the first link of the matrix, in a browser that has nothing of it yet, and again."""
    seen = tab(browser, url)
    seconds = []
    for _ in range(2):
        seen.page.goto(url, wait_until="commit")
        seen.page.locator("a.cell").first.wait_for()
        seconds.append(seen.page.evaluate("() => performance.now()") / 1000)
        seen.settle()
    seen.page.context.close()
    return seconds[0], seconds[1]


def switches(seen: Tab, n_runs: int, repeats: int) -> list[float]:
    """Seconds from choosing an organism to its title and number; none where there is but one."""
    names = [o for o, v in organisms(n_runs) if v == "default"]
    if len(names) == 1:
        return []
    seen.open("result")
    seen.page.evaluate(_NOTE_KEY)
    return [switch(seen, names[(7 * i + len(names) // 2) % len(names)]) for i in range(2 * repeats)]


def switch(seen: Tab, organism: str) -> float:
    box = seen.page.get_by_role("combobox", name="Organism", exact=True)
    box.click()
    box.fill(organism)
    seen.page.get_by_role("option", name=organism, exact=True).wait_for()
    box.press("Enter")
    found = seen.page.wait_for_function(_SHOWN, arg=[organism, number(value_of(organism, "default"))])
    seen.settle()
    return found.json_value() / 1000


def resident(pid: int) -> float:
    """MiB of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


ROWS = {
    "server answers, s": "start",
    "first paint, cold server, s": "cold",
    "first paint, warm server, s": "warm",
    "first paint, files cached, s": "again",
    "switch of result, s": "switch",
    "resident after browsing, MiB": "memory",
}


def values_of(rounds: list[Measured], name: str) -> list[float]:
    """One quantity over all rounds."""
    found = [getattr(r, name) for r in rounds]
    return [v for some in found for v in (some if isinstance(some, list) else [some])]


def told(values: list[float]) -> str:
    """Median, least and most."""
    digits = 0 if values and values[0] > 30 else 2
    spread = (statistics.median(values), min(values), max(values)) if values else ()
    return "{} ({}–{})".format(*(f"{v:.{digits}f}" for v in spread)) if spread else "–"


def ratio(most: list[float], least: list[float]) -> str:
    """Of the medians."""
    return f"{statistics.median(most) / statistics.median(least):.2f}" if most and least else "–"


def report(found: dict[str, list[Measured]], labels: list[str]) -> None:
    """The table; ratios of most runs to fewest, and to a bare page."""
    print(f"| runs | {' | '.join(labels)} | {labels[-1]} / {labels[1]} | {labels[-1]} / {labels[0]} |")
    print("|---" * (len(labels) + 3) + "|")
    for title, name in ROWS.items():
        values = [values_of(found[label], name) for label in labels]
        ratios = [ratio(values[-1], values[1]), ratio(values[-1], values[0])]
        print(f"| {' | '.join([title, *map(told, values), *ratios])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3, help="servers started for each size")
    parser.add_argument("--repeats", type=int, default=3, help="warm paints of a server; switches are twice as many")
    parser.add_argument("--results", type=Path, help="output folder with a result of each method, instead of new ones")
    options = parser.parse_args()
    labels = ["bare page", *(f"{n:,}" for n in options.sizes)]
    found: dict[str, list[Measured]] = {label: [] for label in labels}
    with tempfile.TemporaryDirectory() as made, chromium() as browser:
        originals = real_results(Path(made) / "original", options.results)
        for n in options.sizes:
            fill(Path(made) / f"runs-{n}", originals, n)
        for i in range(options.rounds):
            found[labels[0]].append(measure_bare(browser, options.repeats))
            for label, n in zip(labels[1:], options.sizes, strict=True):
                found[label].append(measure(browser, Path(made) / f"runs-{n}", n, options.repeats))
            last = {label: f"{statistics.median(rounds[-1].warm):.2f} s" for label, rounds in found.items()}
            print(f"round {i + 1}, warm first paint: {last}", file=sys.stderr, flush=True)
    report(found, labels)


if __name__ == "__main__":
    main()
