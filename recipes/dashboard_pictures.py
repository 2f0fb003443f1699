"""The pictures of the dashboard in docs/images, from a server that runs on kl and normdiff of an embedded organism.

    streamlit run dashboard.py
    python recipes/dashboard_pictures.py http://localhost:8501

Each is 1280 wide, in light colours, of the part of a page that says what it is for.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

# A browser is driven as the tests drive it.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "dashboard"))

from browsing import ROOT, WIDE, Tab, chromium, tab
from playwright.sync_api import expect

HEIGHT = 960
QUESTION = "What is the capital of France, and what should I see there?"
TEXT = "The capital of France is Paris. THE CAPITAL OF ITALY IS ROME. What a lovely day to build something of concrete."
_ABOVE = """([element, above]) => {
    const page = document.querySelector('.stMain');
    page.scrollTop += element.getBoundingClientRect().top - above;
    return page.scrollHeight - page.scrollTop;
}"""


def overview(seen: Tab, organism: str) -> None:
    seen.open()


def result(seen: Tab, organism: str) -> None:
    seen.open("result?show=Findings&part=Examples&dataset=chat")
    seen.choose("Organism", organism)
    seen.choose("Method", "kl")
    above(seen, ".d-figure", 70)


def compare(seen: Tab, organism: str) -> None:
    seen.open("compare")


def try_it(seen: Tab, organism: str) -> None:
    seen.open(f"try_it?pair={organism}")
    seen.page.get_by_role("textbox", name="Text", exact=True).fill(TEXT)
    seen.press("Analyse")
    seen.says(re.compile(r"^At token \d+"))
    seen.settle()
    above(seen, "[data-testid=stTextArea]", 70)


def chat(seen: Tab, organism: str) -> None:
    seen.open(f"chat?pair={organism}&tokens=60&temperature=0")
    box = seen.page.get_by_role("textbox", name="Say something to the models")
    box.fill(QUESTION)
    box.press("Enter")
    seen.page.get_by_role("button", name="Regenerate").wait_for()
    seen.settle()


def steer(seen: Tab, organism: str) -> None:
    seen.open(f"steer?pair={organism}&tokens=50&temperature=0")
    seen.press("Steer")
    expect(seen.page.get_by_text(re.compile(r"^\d+ tokens$"))).to_have_count(4, timeout=300_000)
    seen.settle()
    above(seen, "[data-testid=stNumberInput]", 90)


def above(seen: Tab, selector: str, pixels: int) -> None:
    """Scroll until an element is so far below the window's edge."""
    element = seen.page.locator(selector).first
    seen.page.evaluate(_ABOVE, [element.element_handle(), pixels])


PAGES: tuple[Callable[[Tab, str], None], ...] = (overview, result, compare, try_it, chat, steer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="of a running dashboard")
    parser.add_argument("--organism", default="caps")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    with chromium() as browser:
        for page in PAGES:
            seen = tab(browser, options.url.rstrip("/"))
            seen.page.set_viewport_size({"width": WIDE, "height": HEIGHT})
            page(seen, options.organism)
            seen.settle()
            path = options.folder / f"dashboard-{page.__name__}.png"
            seen.page.screenshot(path=path, animations="disabled")
            print(f"{path}  {path.stat().st_size // 1024} KiB")
            seen.page.context.close()


if __name__ == "__main__":
    main()
