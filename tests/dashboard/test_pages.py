"""Every page with results, without any, and with damaged ones; what the Overview lists; a mistyped option."""

import json
import os
import time

import pytest
from visiting import PAGES, components, fine, sentence, spoken, unescaped, whole

from diffing.dashboard.pages import overview

TITLES = {
    "overview": "What did finetuning change?",
    "compare": "Compare",
    "try_it": "Try a text on both models",
    "chat": "Chat with both models",
    "steer": "Steer both models",
    "amplify": "Try amplification",
}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_with_results(page, visit, results_dir):
    app = fine(visit(results_dir, page))
    assert unescaped(app.title[0].value) == TITLES.get(page, "full against base")
    assert f"Results in {results_dir}" in app.caption[-1].value.replace("\\", "")
    assert "nothing is sent anywhere else" in app.caption[-1].value


@pytest.mark.parametrize(
    ("page", "is_made"), [*((page, False) for page in PAGES), ("overview", True), ("result", True)]
)
def test_a_page_without_results(page, is_made, visit, tmp_path):
    if is_made:
        (tmp_path / "out" / "results").mkdir(parents=True)
    app = fine(visit(tmp_path / "out", page))
    assert app.title
    if page in ("result", "compare"):
        assert "Overview" in app.info[0].value
        assert [n.proto.label for n in app.main if n.type == "page_link"] == ["Overview"]


def test_without_results_the_overview_says_how_to_make_one(visit, tmp_path):
    app = fine(visit(tmp_path / "out"))
    assert app.code[0].value == "python main.py"
    assert str(tmp_path / "out") in spoken(app)
    assert app.button(key="run_start").label == "Run the embedded pair"
    assert f"infrastructure.storage.base_dir={tmp_path}/out" in app.code[1].value
    assert "model=smollm2_135M organism=caps diffing/method=kl" in app.code[1].value
    assert not (tmp_path / "out").exists()


def test_the_command_of_the_form_follows_its_fields(visit, tmp_path):
    app = visit(tmp_path / "out", "overview", "model.dtype=bfloat16", "seed=4", "organism=caps")
    app.selectbox(key="run_method").set_value("normdiff")
    app.number_input(key="run_tokens").set_value(700)
    words = fine(app.run()).code[1].value.split()
    assert words[:2] == ["python", "main.py"]
    assert {"model.dtype=bfloat16", "seed=4", "diffing/method=normdiff", "data.max_tokens=700"} <= set(words)
    assert words.count("organism=caps") == 1


@pytest.mark.parametrize(
    ("page", "override", "parts"),
    [
        ("overview", "model.dtpye=float32", ["model.dtpye", "model.dtype"]),
        ("steer", "model.dtpye=float32", ["model.dtpye", "model.dtype"]),
        ("overview", "model.dtype=float23", ["model.dtype"]),
        ("overview", "organism=cpas", ["cpas", "caps"]),
        ("overview", "--multirun", ["OPTION=VALUE"]),
        ("overview", "infrastructure.storage.base_dir=", ["base_dir"]),
    ],
)
def test_an_option_that_does_not_fit_is_one_sentence(page, override, parts, visit, tmp_path):
    app = whole(visit(tmp_path, page, override))
    (error,) = app.error
    first, _, second = unescaped(error.value).partition("\n")
    assert all(part in first for part in parts), first
    assert second == "Start the dashboard again without that option."
    assert not app.title


def matrix_of(app):
    """Rows of the Overview's matrix by name, with their cells by column."""
    ((data,),) = components(app, "diffing_matrix")
    return {row["name"]: dict(zip(data["columns"], row["cells"], strict=True)) for row in data["rows"]}


def test_the_matrix_shows_what_the_summaries_say(visit, results_dir, runs):
    found = matrix_of(fine(visit(results_dir)))
    assert set(found) == {"adapter", "full", "custom · null-identical"}
    for organism in ("adapter", "full"):
        for method in ("kl", "normdiff"):
            run = runs(organism, method)
            first = json.loads((results_dir / "results" / run / "summary.json").read_text())["scalars"][0]
            cell = found[organism][method]
            assert (cell["id"], cell["status"], cell["href"]) == (run, "done", f"result?run={run.replace('/', '%2F')}")
            value, unit = cell["text"].split(" ", 1)
            assert (float(value), unit) == (pytest.approx(first["value"], rel=5e-3), first["unit"])
            assert cell["small"][0]["text"] == first["name"]


def test_search_and_filters_of_the_overview(visit, results_dir):
    assert set(matrix_of(visit(results_dir, q="ADAP"))) == {"adapter"}
    only = matrix_of(visit(results_dir, method="kl"))
    assert {column for cells in only.values() for column in cells} == {"kl"}
    app = fine(visit(results_dir, state="failed"))
    assert "No run fits" in app.info[0].value
    assert not components(app, "diffing_matrix")


def test_the_list_is_newest_first(visit, copied):
    manifests = sorted(copied.glob("results/*/*/*/*/manifest.json"))
    for i, path in enumerate(manifests):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "created": f"2026-01-0{(i * 4) % 7 + 1}T00:00:00+00:00", "seed": i}))
    rows = fine(visit(copied, view="list")).dataframe[0].value
    days = [(i * 4) % 7 + 1 for i in range(len(manifests))]
    assert rows["seed"].tolist() == sorted(range(len(manifests)), key=lambda i: -days[i])


def test_clicking_a_cell_opens_its_result(visit, results_dir, runs, monkeypatch):
    app = fine(visit(results_dir))
    run = runs("full", "normdiff")
    monkeypatch.setattr(overview, "matrix", lambda *arguments: run)
    app.run()
    assert app.query_params == {"run": run}
    assert unescaped(fine(app).title[0].value) == "full against base"


def make_failed(folder):
    (folder / "manifest.json").unlink()
    state = {"status": "failed", "reason": "The <b>disk</b> is full.", "heartbeat": time.time(), "pid": os.getpid()}
    (folder / "state.json").write_text(json.dumps(state))


DAMAGES = {
    "truncated manifest": lambda f: os.truncate(f / "manifest.json", 300),
    "empty manifest": lambda f: os.truncate(f / "manifest.json", 0),
    "manifest of a newer version": lambda f: (f / "manifest.json").write_text(
        json.dumps({**json.loads((f / "manifest.json").read_text()), "schema": 99})
    ),
    "no summary": lambda f: (f / "summary.json").unlink(),
    "truncated summary": lambda f: os.truncate(f / "summary.json", 10),
    "no tables": lambda f: [p.unlink() for p in (f / "tables").iterdir()],
    "truncated tables": lambda f: [os.truncate(p, 20) for p in (f / "tables").iterdir()],
    "truncated figures": lambda f: [os.truncate(p, 20) for p in (f / "figures").iterdir()],
    "truncated evidence": lambda f: os.truncate(f / "evidence.json", 10),
    "truncated tensors": lambda f: [os.truncate(p, 10) for p in f.glob("tensors/*")],
    "failed": make_failed,
}


UNREADABLE = ("truncated manifest", "empty manifest", "manifest of a newer version")
SILENT = ("truncated evidence", "truncated tensors")


@pytest.mark.parametrize(("damage", "method"), [(d, ("kl", "normdiff")[i % 2]) for i, d in enumerate(DAMAGES)])
def test_damaged_results_are_said_and_never_shown(damage, method, visit, copied, runs):
    run = runs("full", method)
    DAMAGES[damage](copied / "results" / run)
    matrix = matrix_of(fine(visit(copied)))
    assert matrix["adapter"][method]["status"] == "done"
    assert (matrix["full"][method]["status"] == "damaged") == (damage in UNREADABLE)
    apps = [whole(visit(copied, "result", run=run, show=show)) for show in ("Findings", "Tables")]
    errors = [unescaped(e.value) for app in apps for e in app.error]
    assert bool(errors) == (damage not in SILENT)
    assert all(str(copied) in e or damage == "failed" for e in errors)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated manifest", "no tables", "truncated tensors"])
@pytest.mark.parametrize("page", ["compare", "chat", "steer", "amplify"])
def test_other_pages_go_on_beside_a_damaged_result(damage, page, visit, copied, runs):
    DAMAGES[damage](copied / "results" / runs("full", "normdiff"))
    whole(visit(copied, page, base="base", pair="full", method="normdiff", show="Tokens"))


def test_the_reason_of_a_failure(visit, copied, runs):
    run = runs("full", "kl")
    make_failed(copied / "results" / run)
    sentence(visit(copied, "result", run=run), "It failed", "The <b>disk</b> is full")
    cell = matrix_of(visit(copied))["full"]["kl"]
    assert cell["status"] == cell["text"] == "failed"
    assert {"text": "The <b>disk</b> is full.", "isReason": True} in cell["small"]
