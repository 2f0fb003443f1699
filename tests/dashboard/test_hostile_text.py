"""Names, tokens and examples that try to be markup, Markdown, formulas, colours or icons are shown as text."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from visiting import PAGES, Parsed, components, fine, html_of, markdown_of, unescaped

from diffing.core.files import sha256

MARK = "zqx"
NAME = (
    "<b>zqx</b> <img src=x onerror=alert(1)> *i* _j_ [zqx](//e.org) ![k](//e.org) `c` $x^2$ :red[zqx] ~~s~~ \\ "
    "\"'&#x41;"
)
TOKEN = f"{NAME}\n# zqx\u202e\u2066</script>"
CONTROLS = ("\u202e", "\u2066")
OUR_TAGS = {
    "a", "b", "br", "code", "dd", "div", "dl", "dt", "figcaption", "figure", "i", "mark", "p", "span", "table", "tbody",
    "td", "th", "thead", "tr",
}  # fmt: skip
OUR_MARKDOWN_TAGS = {"p", "strong", "code", "br"}
OUR_ICONS = {":material/info:", ":material/memory:", ":material/hourglass_empty:"}
DIRECTIVE = re.compile(r"(?<!\\):[a-z_]+(?:\[|/[a-z_]+:|:)")


def rewrite(folder, changed):
    """Every string of a run's tables and evidence that `changed` gives another for; the digests are made anew."""
    for path in (folder / "tables").glob("*.parquet"):
        table = pq.read_table(path)
        columns = [pa.array([changed(name, v) for v in table[name].to_pylist()]) for name in table.column_names]
        kept = [c if pa.types.is_null(c.type) else c.cast(t) for c, t in zip(columns, table.schema.types, strict=True)]
        pq.write_table(pa.table(kept, names=table.column_names), path)
    evidence = json.loads((folder / "evidence.json").read_text())
    for token in evidence["tokens"]:
        token["token"] = TOKEN
    for example in evidence["examples"]:
        example["text"] = TOKEN + example["text"]
        example["spans"] = [[start + len(TOKEN), end + len(TOKEN), v] for start, end, v in example["spans"]]
    (folder / "evidence.json").write_text(json.dumps(evidence))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: sha256(folder / name) for name in manifest["files"]}
    manifest["notes"] = [TOKEN]
    manifest["pair"] |= {"organism": NAME, "variant": f"v {NAME}"}
    manifest["config"]["organism"]["description"] = TOKEN
    (folder / "manifest.json").write_text(json.dumps(manifest))


def hostile(name, value):
    """Datasets and tokens under names of their own."""
    if isinstance(value, list):
        return [hostile(name, v) for v in value]
    if name == "dataset" and value == "custom":
        return NAME
    is_token = name in ("token", "next_token", "tokens", "top_base", "top_ft", "risen", "fallen", "text")
    return TOKEN if is_token and isinstance(value, str) else value


@pytest.fixture
def taken_over(copied, runs):
    for organism in ("adapter", "full"):
        for method in ("kl", "normdiff"):
            rewrite(copied / "results" / runs(organism, method), hostile)
    (copied / "results" / "base").rename(copied / "results" / "b*s*e $m$ [l](x)")
    return copied


def run_of(base_dir, method):
    folder = next(base_dir.glob(f"results/b*/full/{method}/*"))
    return folder.relative_to(base_dir / "results").as_posix()


def check_markdown(text):
    """What CommonMark makes of it is text; nor is anything left of what Streamlit adds to it."""
    read = Parsed(MarkdownIt("commonmark").render(text))
    assert {tag for tag, _ in read.tags} <= OUR_MARKDOWN_TAGS, text
    outside = re.sub(r"(`+) .*? \1", "", text)
    assert not re.search(r"(?<!\\)\$", outside), text
    assert set(DIRECTIVE.findall(outside)) <= OUR_ICONS, text
    assert not re.search(r"(?<!\\)~", outside), text


def check_html(html):
    read = Parsed(html)
    assert {tag for tag, _ in read.tags} <= OUR_TAGS, html
    for _, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "https://huggingface.co/").startswith("https://huggingface.co/")


def check(app):
    """Everything that the page hands to the browser; gives how much of it was hostile."""
    texts = [t for t in markdown_of(app) if MARK in t]
    for text in texts:
        check_markdown(text)
    pages = html_of(fine(app))
    for html in pages:
        check_html(html)
    for data in components(app, "diffing_heatmap"):
        parts = [text for item in data["items"] for token in item["tokens"] for text, _ in token["parts"]]
        assert not [p for p in parts if any(c in p for c in CONTROLS)]
    return len(texts) + sum(MARK in Parsed(h).text for h in pages)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_names_on_every_page(page, visit, taken_over):
    app = visit(taken_over, page, run=run_of(taken_over, "kl"))
    n_hostile = check(app)
    if page == "result":
        assert n_hostile > 3
        assert NAME.replace("\\", "") in unescaped(app.title[0].value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "query"),
    [
        *(("kl", {"part": part}) for part in ("Numbers", "Tokens", "Examples", "Every token")),
        *(("normdiff", {"part": part}) for part in ("Layers", "Tokens", "Examples", "Every token", "Vectors")),
        ("kl", {"show": "Tables", "table": "tokens"}),
        ("kl", {"show": "How it was made"}),
    ],
)
def test_tokens_and_examples_of_a_result(method, query, visit, taken_over):
    app = visit(taken_over, "result", run=run_of(taken_over, method), **query)
    assert check(app) > 0
    for frame in (d.value for d in app.dataframe):
        for name in {"token", "next_token"} & set(frame.columns):
            shown = frame[name].dropna()
            assert not shown.str.contains("|".join(CONTROLS)).any()
            assert shown.str.contains("U+202E", regex=False).all()
    for data in components(app, "diffing_heatmap"):
        tokens = [token for item in data["items"] for token in item["tokens"]]
        assert ["U+202E", True] in tokens[0]["parts"]
        assert "<b>zqx</b>" in "".join(text for text, _ in tokens[0]["parts"])


@pytest.mark.parametrize("show", ["Headline", "Findings", "Tokens", "Documents", "Examples"])
def test_compared_results(show, visit, taken_over):
    assert check(visit(taken_over, "compare", show=show, how="methods on one pair", base="b*s*e $m$ [l](x)")) >= 0


def test_the_list_of_runs(visit, taken_over):
    app = visit(taken_over, view="list")
    check(app)
    assert f"{NAME} · v {NAME}" in set(app.dataframe[0].value["organism"])


def test_hostile_addresses(visit, taken_over):
    for query in ({"run": NAME}, {"show": NAME}, {"part": NAME, "dataset": NAME}):
        check(visit(taken_over, "result", **query))
    check(visit(taken_over, "overview", q=NAME, state=NAME, method=NAME))
    check(visit(taken_over, "chat", pair=NAME, base=NAME, ask=NAME))
    check(visit(taken_over, "try_it", chat='[{"role": "<b>", "content": 1}]', input="chat", text=TOKEN))
