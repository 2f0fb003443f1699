"""The dashboard as a user sees it: a Chromium on results of the embedded pair.

Every test fails on a console error, an exception on the page or a request to another host. Pictures of all pages lie in
`build/screenshots`, or where `DIFFING_SCREENSHOTS` says.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from browsing import LIGHT, NARROW, ROOT, SMALL, Server, Tab, chromium, chromium_path, environment, server, tab
from playwright.sync_api import Browser, Locator, expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PICTURES = Path(os.environ.get("DIFFING_SCREENSHOTS") or ROOT / "build" / "screenshots")
PHONE = "Mozilla/5.0 (Linux; Android 14) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/125.0.0.0 Mobile Safari/537.36"
BRIEF = "pair=caps&tokens=10&temperature=0"
PAGES = {
    "": "What did finetuning change?",
    "result": "against smollm2_135M",
    "compare": "Compare",
    "try_it": "Try a text on both models",
    "chat": "Chat with both models",
    "steer": "Steer both models",
    "amplify": "Try amplification",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests; without one they are skipped, except where CI asks for them."""
    if chromium_path() is None:
        reason = "no Chromium on the path; `apt-get install chromium`, or set DIFFING_CHROMIUM"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"There is {reason}.")
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def base_dir(browser, tmp_path_factory) -> Iterator[Path]:
    """Results of kl and normdiff on both embedded organisms, from few tokens; runs into it end with the tests."""
    folder = tmp_path_factory.mktemp("embedded")
    options = ["--multirun", "organism=caps,roman_concrete", "pipeline.methods=[kl,normdiff]", "data.max_tokens=200"]
    command = [sys.executable, str(ROOT / "main.py"), *options, f"infrastructure.storage.base_dir={folder}/outputs"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield folder / "outputs"
    for pid in processes(folder / "outputs"):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def dashboard(base_dir, tmp_path_factory) -> Iterator[Server]:
    """A server on these results, which must not write a traceback."""
    with server(base_dir, tmp_path_factory.mktemp("server")) as running:
        yield running
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def seen(browser, dashboard) -> Iterator[Tab]:
    """A tab on the dashboard, checked at the end as after every step."""
    opened = tab(browser, dashboard.url)
    yield opened
    opened.check()
    opened.page.context.close()


@pytest.fixture
def kl_run(base_dir) -> str:
    """The id of the run of kl on caps, as links hold it."""
    (folder,) = (base_dir / "results" / "smollm2_135M" / "caps" / "kl").iterdir()
    return quote(folder.relative_to(base_dir / "results").as_posix(), safe="")


def texts_of(found: Locator) -> list[str]:
    return [text.strip() for text in found.all_inner_texts()]


def view_of(seen: Tab) -> str:
    """What the page shows, as a screen reader meets it, without what is told by the clock."""
    return re.sub(r"\d+ \w+ ago|just now", "", seen.page.locator(".stMain").aria_snapshot())


def test_a_tab_notices_what_must_not_be(browser, dashboard):
    noticing = tab(browser, dashboard.url)
    noticing.open()
    noticing.page.route("http://192.0.2.1/**", lambda route: route.fulfill(body=""))
    noticing.page.evaluate("() => fetch('http://192.0.2.1/count', {mode: 'no-cors'})")
    noticing.page.evaluate("() => { console.error('ours'); setTimeout(() => { throw new Error('late') }) }")
    noticing.page.evaluate("() => fetch('/media/nowhere.png')")
    noticing.page.evaluate("() => fetch('/result/_stcore/health')")
    with pytest.raises(AssertionError) as raised:
        noticing.settle()
    said = str(raised.value)
    for part in ("another host: http://192.0.2.1/count", "console: ours", "in the page: late", "media/nowhere.png"):
        assert part in said
    assert "result/_stcore/health" not in said
    noticing.page.context.close()


@pytest.mark.parametrize(("path", "title"), PAGES.items(), ids=[path or "overview" for path in PAGES])
def test_every_page_opens_at_both_widths(seen, path, title):
    seen.open(path)
    expect(seen.page.locator("h1")).to_contain_text(title)
    expect(seen.page).to_have_title(re.compile(r"^(Overview|Result|Compare|Try it|Chat|Steer|Amplify)"))
    seen.wear(SMALL)
    assert seen.fits()
    if path in ("", "result"):
        seen.pictures(PICTURES, path or "overview")


def test_the_pages_are_reached_from_one_another_on_a_phone(browser, dashboard):
    narrow = tab(browser, dashboard.url, SMALL, is_mobile=True, has_touch=True, user_agent=PHONE)
    narrow.open("compare")
    for name, title in (("Steer", "Steer both models"), ("Overview", "What did finetuning change?")):
        narrow.page.get_by_test_id("stExpandSidebarButton").click()
        narrow.page.get_by_test_id("stSidebar").get_by_role("link", name=name, exact=True).click()
        expect(narrow.page.locator("h1")).to_contain_text(title)
        narrow.settle()
    assert narrow.page.evaluate("innerWidth") == NARROW
    assert narrow.fits()
    narrow.page.context.close()


def test_from_the_matrix_to_a_result_and_on_to_others(seen):
    seen.open()
    seen.page.get_by_role("row", name="roman_concrete").locator("a.cell").nth(1).click()
    seen.says(re.compile("^Activation differences"))
    seen.settle()
    assert "roman_concrete%2Fnormdiff" in seen.page.url
    seen.choose("Organism", "caps")
    expect(seen.page.locator("h1")).to_contain_text("caps against")
    seen.choose("Method", "kl")
    seen.says(re.compile("^Per-token KL divergence"))
    assert "caps%2Fkl" in seen.page.url
    seen.page.go_back()
    seen.says(re.compile("^Activation differences"))


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("kl", ("Numbers", "Tokens", "Examples", "Every token")),
        ("normdiff", ("Layers", "Tokens", "Examples", "Every token", "Vectors")),
    ],
)
def test_every_part_of_a_result_is_drawn(seen, method, parts):
    seen.open("result")
    seen.choose("Method", method)
    for part in (*parts, "Tables", "How it was made"):
        seen.show(part)
        seen.pictures(PICTURES, f"result-{method}-{part.lower().replace(' ', '-')}", (SMALL, LIGHT))


def test_arrow_keys_read_a_heat_map(seen, kl_run):
    seen.open(f"result?run={kl_run}&part=Examples")
    example = seen.page.locator(".map").first
    detail, here = example.locator(".detail"), example.locator(".t.at")
    example.locator(".t").first.focus()
    read = [detail.inner_text()]
    for key in ("ArrowRight", "ArrowDown", "End"):
        seen.page.keyboard.press(key)
        expect(detail).not_to_have_text(read[-1])
        expect(here).to_be_focused()
        read.append(detail.inner_text())
    assert len(set(read)) == len(read)
    assert all(re.search(r"\(id \d+\)", line) for line in read)
    seen.page.keyboard.press("Home")
    assert detail.inner_text() == read[0]


def test_a_table_is_filtered_and_the_link_keeps_it(seen, kl_run):
    seen.open(f"result?run={kl_run}&part=Every+token")
    told = seen.page.get_by_text(re.compile(r"^Rows 1 to \d+ of [\d,]+$"))
    whole = told.inner_text()
    seen.show("chat", group="dataset")
    expect(told).not_to_have_text(whole)
    chats = told.inner_text()
    seen.settle()
    seen.add("Columns to filter", "kl")
    seen.page.get_by_role("spinbutton", name="kl at least").fill("1")
    seen.page.keyboard.press("Enter")
    expect(told).not_to_have_text(chats)
    seen.page.keyboard.press("Escape")
    seen.settle()
    seen.reload()
    expect(told).to_have_text(chats)
    assert count(chats) < count(whole)


def count(told: str) -> int:
    """`Rows 1 to 50 of 1,234` → 1234."""
    return int(told.rpartition(" ")[2].replace(",", ""))


def test_compare_shows_every_part_of_two_organisms_and_of_two_methods(seen):
    seen.open("compare")
    for how, parts in (
        ("organisms by one method", ("Headline", "Figures", "Tokens", "Documents", "Examples")),
        ("methods on one pair", ("Headline", "Findings", "Tokens", "Documents", "Examples")),
    ):
        seen.show(how)
        for part in parts:
            seen.show(part)
            seen.pictures(PICTURES, f"compare-{how.partition(' ')[0]}-{part.lower()}", (SMALL, LIGHT))
    seen.show("Headline")
    seen.pictures(PICTURES, "compare")


def test_a_text_is_tried_and_another_token_chosen(seen):
    seen.open("try_it?pair=caps")
    text = "Paris is the capital of France. <b>Rome</b> is the capital of Italy."
    seen.page.get_by_role("textbox", name="Text", exact=True).fill(text)
    seen.press("Analyse")
    heading = seen.says(re.compile(r"^At token \d+"))
    seen.settle()
    tokens = seen.page.locator(".map .t")
    assert "".join(tokens.all_inner_texts()) == text
    expected = seen.page.locator(".d-table td.token")
    before, chosen = texts_of(expected), heading.inner_text()
    other = tokens.nth(3 if "token 3:" not in chosen else 4)
    other.click()
    expect(heading).not_to_have_text(chosen)
    seen.settle()
    assert len(before) == len(texts_of(expected)) > 10
    assert before != texts_of(expected)
    seen.show("relative difference")
    seen.pictures(PICTURES, "try_it")


def test_one_turn_with_both_models(seen):
    seen.open(f"chat?{BRIEF}")
    box = seen.page.get_by_role("textbox", name="Say something to the models")
    box.fill("What is the capital of France? <i>Answer</i> in one word.")
    box.press("Enter")
    seen.page.get_by_role("button", name="Regenerate").wait_for()
    seen.settle()
    for side in ("base", "finetuned"):
        answer = seen.page.get_by_role("group", name=f"Chat message from {side}")
        expect(answer.get_by_text(re.compile(r"^\d+ tokens"))).to_be_visible()
        assert answer.locator(".d-quote").inner_text().strip()
    seen.says("<i>Answer</i> in one word.")
    seen.pictures(PICTURES, "chat")


def test_both_models_are_steered_once(seen):
    seen.open(f"steer?{BRIEF}&strength=2.0")
    seen.press("Steer")
    ends = seen.page.get_by_text(re.compile(r"^\d+ tokens$"))
    expect(ends).to_have_count(4, timeout=120_000)
    seen.settle()
    texts = texts_of(seen.page.locator(".d-quote"))
    assert len(texts) == 4
    assert texts[0] != texts[1]
    assert texts[2] != texts[3]
    seen.pictures(PICTURES, "steer")


def test_an_amplified_text_stands_beside_the_others(seen):
    seen.open(f"amplify?{BRIEF}&overall=2.5")
    seen.press("Write")
    ends = seen.page.get_by_text(re.compile(r"^\d+ tokens$"))
    expect(ends).to_have_count(3, timeout=120_000)
    seen.settle()
    assert len(texts_of(seen.page.locator(".d-quote"))) == 3
    seen.says("organism.amplification=2.5")
    seen.pictures(PICTURES, "amplify")


@pytest.mark.parametrize(
    "path",
    [
        "?view=list&q=caps&method=kl",
        "result?run=KL&part=Examples&dataset=chat&ranking=largest+mean+KL",
        "result?run=KL&show=Tables&table=document_scores&table_document_scores_search=chat",
        "compare?how=methods+on+one+pair&show=Tokens&k=20",
        "try_it?pair=caps&text=The+Pantheon+stands.&first=base&tokens=7",
        "steer?pair=caps&strength=-1.5&where=fading&fade=8&prompt=Mix+the+mortar.",
    ],
)
def test_a_link_shows_the_same_view_again(seen, kl_run, path):
    path = path.replace("run=KL", f"run={kl_run}")
    seen.open(path)
    url, shown = seen.page.url, view_of(seen)
    for part in path.partition("?")[2].split("&"):
        assert part in url, f"the page dropped {part}"
    seen.reload()
    assert seen.page.url == url
    assert view_of(seen) == shown


def test_a_run_is_started_survives_a_reload_and_is_cancelled(seen, base_dir):
    seen.open()
    before = processes(base_dir)
    seen.page.get_by_text("Start a run", exact=True).click()
    seen.settle()
    seen.choose("By method", "kl")
    seen.press("Run it")
    bar = seen.page.get_by_role("progressbar")
    expect(bar).to_be_visible()
    expect(seen.page.get_by_text(re.compile("Loading|Starting|reading both"))).to_be_visible()
    assert len(processes(base_dir)) > len(before)
    seen.reload()
    expect(bar).to_be_visible()
    seen.pictures(PICTURES, "overview-running")
    seen.press("Cancel")
    seen.says("Cancelled; what is whole is kept")
    expect(bar).to_have_count(0)
    assert processes(base_dir) == before
    seen.settle()


def processes(base_dir: Path) -> list[int]:
    """Process ids of runs into this output folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(ROOT / "main.py") in words and any(w.endswith(f"base_dir={base_dir}") for w in words):
            found.append(int(folder.name))
    return sorted(found)
