"""The Result page: each method's view against its tables, paged tables against pyarrow, links and selectors."""

import base64
import json

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from visiting import Parsed, components, figures, fine, html_of, sentence, shown_number, spoken, token_texts, unescaped

KL_PARTS = ("Numbers", "Tokens", "Examples", "Every token")
NORMDIFF_PARTS = ("Layers", "Tokens", "Examples", "Every token", "Vectors")
PARTS = [("kl", p) for p in KL_PARTS] + [("normdiff", p) for p in NORMDIFF_PARTS]


@pytest.fixture
def folder(results_dir, runs):
    return lambda organism, method: results_dir / "results" / runs(organism, method)


@pytest.fixture
def table(folder):
    return lambda organism, method, name: pq.read_table(folder(organism, method) / "tables" / f"{name}.parquet")


@pytest.fixture
def opened(visit, results_dir, runs):
    """The Result page of a run."""
    return lambda organism, method, **query: fine(visit(results_dir, "result", run=runs(organism, method), **query))


def headline_rows(app):
    """Cells of the table of headline numbers, by measure."""
    rows = next(p.rows for p in map(Parsed, html_of(app)) if p.rows and p.rows[0][0] == "Measure")
    return {row[0]: row[1:] for row in rows[1:]}


@pytest.mark.parametrize("organism", ["full", "custom+null-identical"])
@pytest.mark.parametrize(("method", "part"), PARTS)
def test_every_part_of_every_view(organism, method, part, opened):
    app = opened(organism, method, part=part)
    assert app.query_params.get("part", PARTS[0][1] if method == "kl" else "Layers") == part
    assert len(app.info) == (organism == "custom+null-identical")


@pytest.mark.parametrize("method", ["kl", "normdiff"])
def test_the_headline_numbers_are_those_of_the_summary(method, opened, folder):
    summary = json.loads((folder("full", method) / "summary.json").read_text())["scalars"]
    found = headline_rows(opened("full", method))
    assert list(found) == [s["name"] for s in summary]
    for s in summary:
        value, interval, _, null, unit, _ = found[s["name"]]
        assert shown_number(value) == pytest.approx(s["value"], rel=5e-3)
        assert unit == s["unit"]
        if s["low"] is not None:
            low, high = interval.strip("[]").split(", ")
            assert shown_number(low) == pytest.approx(s["low"], rel=5e-3)
            assert shown_number(high) == pytest.approx(s["high"], rel=5e-3)
        if s["null"]:
            assert shown_number(null) == pytest.approx(s["null"], rel=5e-3)


@pytest.mark.parametrize(("method", "part"), [("kl", "Numbers"), ("normdiff", "Layers")])
def test_the_figures_are_those_that_were_written(method, part, opened, folder):
    stored = [json.loads(p.read_text()) for p in (folder("full", method) / "figures").glob("*.json")]
    shown = figures(opened("full", method, part=part))
    assert len(shown) == len(stored) > 1
    assert sorted(dumped(f["data"]) for f in shown) == sorted(dumped(f["data"]) for f in stored)


def dumped(value):
    """JSON with arrays as lists: plotly packs those that are long."""
    if isinstance(value, dict) and "bdata" in value:
        array = np.frombuffer(base64.b64decode(value["bdata"]), dtype=np.dtype(value["dtype"]))
        shape = [int(n) for n in str(value.get("shape", len(array))).split(",")]
        return dumped(array.reshape(shape).tolist())
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{dumped(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(dumped, value))}]"
    return json.dumps(float(value) if isinstance(value, int) else value)


def test_kl_examples_are_the_rows_of_its_table(opened, table):
    rows = table("full", "kl", "examples").to_pylist()
    for dataset in ("chats", "custom"):
        for ranking, title in (("peak", "largest KL at one token"), ("mean", "largest mean KL")):
            mine = [r for r in rows if (r["dataset"], r["ranking"]) == (dataset, ranking)]
            mine.sort(key=lambda r: r["rank"])
            app = opened("full", "kl", part="Examples", dataset=dataset, ranking=title)
            (data,) = components(app, "diffing_heatmap")
            assert [token_texts(i) for i in data["items"]] == [[*r["tokens"]] for r in mine[:5]]
            first = data["items"][0]
            assert first["at"] == mine[0]["kl"].index(max(mine[0]["kl"]))
            shown = [float(t["lines"][1].split()[1]) for t in first["tokens"]]
            assert shown == [pytest.approx(v, rel=1e-3, abs=1e-6) for v in mine[0]["kl"]]
            assert data["unit"] == "nats"
            assert shown_number(data["ticks"][-1]) == pytest.approx(max(max(r["kl"]) for r in mine), rel=5e-3)


def test_further_examples_are_on_further_pages(opened, table):
    rows = [
        r for r in table("full", "kl", "examples").to_pylist() if (r["dataset"], r["ranking"]) == ("custom", "peak")
    ]
    rows.sort(key=lambda r: r["rank"])
    assert len(rows) == 8
    app = opened("full", "kl", part="Examples", dataset="custom")
    app.number_input(key="kl_examples_page").set_value(2)
    (data,) = components(fine(app.run()), "diffing_heatmap")
    assert [token_texts(i) for i in data["items"]] == [[*r["tokens"]] for r in rows[5:]]
    app.number_input(key="kl_examples_page").set_value(40)
    assert components(fine(app.run()), "diffing_heatmap") == [data]


def test_normdiff_examples_are_the_rows_of_its_table(opened, table):
    rows = table("full", "normdiff", "examples").to_pylist()
    app = opened("full", "normdiff", part="Examples", dataset="custom", ranking="largest ‖δ‖ at one token")
    mine = [r for r in rows if (r["dataset"], r["metric"], r["ranking"]) == ("custom", "norm_diff", "peak")]
    (data,) = components(app, "diffing_heatmap")
    assert [token_texts(i) for i in data["items"]] == [r["tokens"] for r in sorted(mine, key=lambda r: r["rank"])[:5]]


def test_a_null_pair_says_so_and_shows_its_zeros(opened):
    app = opened("custom+null-identical", "kl")
    assert "null pair" in app.info[0].value
    assert shown_number(next(iter(headline_rows(app).values()))[0]) == 0
    assert not [n for n in app.main if n.type == "page_link"]


def page_of(app):
    return app.dataframe[0].value.reset_index(drop=True)


def test_a_page_of_a_table_is_that_slice_of_the_file(opened, table):
    stored = table("full", "kl", "tokens").to_pandas()
    app = opened("full", "kl", show="Tables", table="tokens", table_tokens_size=25)
    assert len(page_of(app)) == 25
    app.number_input(key="table_tokens_page").set_value(3)
    shown = page_of(fine(app.run()))
    for name in ("sequence", "position", "token_id", "kl", "delta_nll", "top1_agree", "role"):
        pd.testing.assert_series_equal(shown[name], stored[name][50:75].reset_index(drop=True), check_dtype=False)
    assert f"Rows 51 to 75 of {len(stored)}" in spoken(app)


def test_the_pages_together_are_the_whole_table_in_order(opened, table):
    stored = table("full", "kl", "tokens").to_pandas()
    app = opened("full", "kl", show="Tables", table="tokens", table_tokens_size=200, table_tokens_order="top1_agree")
    found = []
    for number in range(1, -(-len(stored) // 200) + 1):
        app.number_input(key="table_tokens_page").set_value(number)
        found.append(page_of(fine(app.run())))
    expected = stored.sort_values("top1_agree", ascending=False, kind="stable")
    keys = ["dataset", "sequence", "position"]
    assert pd.concat(found)[keys].to_numpy().tolist() == expected[keys].to_numpy().tolist()


@pytest.mark.parametrize("descending", [True, False])
def test_order_with_nulls_last(descending, opened, table):
    stored = table("full", "kl", "tokens").to_pandas()
    app = opened("full", "kl", show="Tables", table="tokens", table_tokens_order="delta_nll", table_tokens_size=200)
    app.toggle(key="table_tokens_down").set_value(descending)
    expected = stored["delta_nll"].sort_values(ascending=not descending, na_position="last")
    assert page_of(fine(app.run()))["delta_nll"].tolist() == expected[:200].tolist()


def test_filters_and_search(opened, table):
    stored = table("full", "kl", "tokens")
    app = opened("full", "kl", show="Tables", table="tokens", table_tokens_size=200)
    app.multiselect(key="table_tokens_filters").set_value(["role", "kl", "next_token"]).run()
    app.multiselect(key="table_tokens_role").set_value(["user", "text"])
    app.number_input(key="table_tokens_kl_low").set_value(0.5)
    app.number_input(key="table_tokens_kl_high").set_value(2.0)
    app.text_input(key="table_tokens_search").set_value("TH")
    shown = page_of(fine(app.run()))
    texts = [c for c in stored.column_names if c in ("dataset", "token", "next_token", "role")]
    hit = [pc.match_substring(pc.fill_null(pc.utf8_lower(stored[c]), ""), "th") for c in texts]
    keep = pc.and_(pc.greater_equal(stored["kl"], 0.5), pc.less_equal(stored["kl"], 2.0))
    keep = pc.and_(keep, pc.is_in(stored["role"], value_set=pc.cast(["user", "text"], "string")))
    for h in hit[1:]:
        hit[0] = pc.or_(hit[0], h)
    expected = stored.filter(pc.and_(keep, hit[0]))
    assert 0 < len(expected) < 200
    assert shown["kl"].tolist() == expected["kl"].to_pylist()
    assert f"of {len(expected)}" in spoken(app)


def test_a_search_without_a_hit(opened):
    app = opened("full", "kl", show="Tables", table="tokens", table_tokens_search="no such token'; --")
    assert len(page_of(app)) == 0
    assert "Rows 0 to 0 of 0" in spoken(app)


@pytest.mark.slow
def test_every_table_of_both_methods(opened, folder):
    for method in ("kl", "normdiff"):
        for path in sorted((folder("full", method) / "tables").glob("*.parquet")):
            app = opened("full", method, show="Tables", table=path.stem)
            stored = pq.read_table(path)
            assert list(page_of(app).columns) == stored.column_names
            assert len(page_of(app)) == min(50, len(stored))


def test_spaces_and_line_breaks_of_tokens_are_seen(opened):
    app = opened("full", "kl", show="Tables", table="tokens", table_tokens_size=200)
    shown = set(page_of(app)["token"])
    assert "␣the" in shown
    assert "↵" in shown
    assert not any(" " in token or "\n" in token for token in shown)


def test_a_link_opens_its_run(opened, runs):
    for organism, method in (("adapter", "kl"), ("full", "normdiff")):
        app = opened(organism, method)
        assert unescaped(app.title[0].value) == f"{organism} against base"
        assert app.selectbox(key="choose_id").value == runs(organism, method)
        assert app.query_params["run"] == runs(organism, method)


@pytest.mark.parametrize("wanted", ["base/full/kl/0000", "../../etc/passwd", "<b>*x*</b>"])
def test_an_unknown_run_is_said(wanted, visit, results_dir):
    app = fine(visit(results_dir, "result", run=wanted))
    assert unescaped(app.warning[0].value) == f"There is no run {wanted} here; this is the newest one."
    assert app.query_params["run"] != wanted


def test_the_selectors_move_the_address(opened, runs):
    app = opened("full", "normdiff")
    app.selectbox(key="choose_organism").set_value("adapter")
    assert fine(app.run()).query_params["run"] == runs("adapter", "normdiff")
    app.selectbox(key="choose_method").set_value("kl")
    assert fine(app.run()).query_params["run"] == runs("adapter", "kl")
    assert unescaped(app.title[0].value) == "adapter against base"
    app.query_params["run"] = runs("full", "kl")
    assert unescaped(fine(app.run()).title[0].value) == "full against base"
    assert app.selectbox(key="choose_organism").value == "full"


def test_how_it_was_made(opened, folder):
    app = opened("full", "kl", show="How it was made")
    manifest = json.loads((folder("full", "kl") / "manifest.json").read_text())
    assert app.code[0].value == manifest["command"]
    text = " ".join(Parsed(h).text for h in html_of(app))
    assert manifest["pair"]["facts"]["finetuned"]["content_hash"][:12] in text
    assert str(folder("full", "kl")) in text
    assert any("max_token_rows: 2000000" in c.value for c in app.code)
    assert [b.label for b in app.get("download_button")] == ["report.html", "evidence.json", "manifest.json"]


def test_a_result_of_a_method_that_is_not_installed(visit, copied, runs):
    run = runs("full", "kl")
    path = copied / "results" / run / "manifest.json"
    path.write_text(path.read_text().replace('"method": "kl"', '"method": "gone"'))
    (copied / "results/base/full/kl").rename(copied / "results/base/full/gone")
    app = fine(visit(copied, "result", run=run.replace("/kl/", "/gone/")))
    assert "The method gone is not installed" in unescaped(" ".join(w.value for w in app.warning))
    evidence = json.loads((copied / "results" / run.replace("/kl/", "/gone/") / "evidence.json").read_text())
    (data,) = components(app, "diffing_heatmap")
    assert len(data["items"]) == min(5, len(evidence["examples"]))
    assert "".join(token_texts(data["items"][0])) == evidence["examples"][0]["text"]


def test_a_run_that_goes_on(visit, copied, runs):
    run = runs("full", "kl")
    folder = copied / "results" / run
    (folder / "manifest.json").unlink()
    (folder / "state.json").write_text(json.dumps({"status": "failed", "reason": "No *space* left.", "pid": 1}))
    sentence(visit(copied, "result", run=run), "It failed: No *space* left")
