"""What every method owes: options as YAML, a run on a tiny pair, evidence, figures, report, silence on a null pair."""

import dataclasses
import json

import pytest
import yaml

import diffing
from diffing.core.blocks import Figure, HeatmapList, Paragraph, Table
from diffing.core.method import MethodConfig, MethodSpec, load_method, method_names
from diffing.core.tables import read_table
from workbench import ROOT, python, sentences

PACKAGE = ROOT / "src" / "diffing"
SCORES = {
    "token_scores": ["token_id", "token", "score", "stderr", "null_score"],
    "document_scores": ["dataset", "document", "score"],
}
SHORT_TEXTS = {
    "logit_amplification": 6,
    "weight_amplification": 6,
    "activation_difference_lens": 6,
    "perplexity_diff": 6,
}
pytestmark = pytest.mark.parametrize("name", method_names())


def quickly(name, pair, base_dir):
    """A run at the defaults, but for the length of the texts that a method writes."""
    texts = [row["text"] for row in sentences(8)]
    texts.append(texts[0])
    options = {"max_new_tokens": SHORT_TEXTS[name]} if name in SHORT_TEXTS else {}
    return diffing.run(name, pair, data=texts, base_dir=base_dir, **options)


@pytest.fixture(scope="module")
def results(bench, tmp_path_factory):
    """Each method's result on the tiny pair, and on the base against itself; computed once."""
    base_dir = tmp_path_factory.mktemp("contract")
    pairs, done = {}, {}

    def result(name, null_pair="none"):
        if null_pair not in pairs:
            changed = {"adapter": str(bench.adapter)} if null_pair == "none" else {"null_pair": null_pair}
            pairs[null_pair] = diffing.load_pair(str(bench.base), device_map="cpu", **changed)
        if (name, null_pair) not in done:
            done[name, null_pair] = quickly(name, pairs[null_pair], base_dir)
        return done[name, null_pair]

    return result


def test_the_spec_is_whole(name):
    method = load_method(name)
    assert isinstance(method, MethodSpec)
    assert method.name == name
    assert method.title
    assert method.summary.endswith(".")
    assert issubclass(method.config, MethodConfig)
    assert method.config.__doc__
    assert (PACKAGE / "methods" / name / "README.md").is_file()
    assert (ROOT / "docs" / "methods" / f"{name}.md").is_file()


def test_yaml_and_options_agree(name):
    config = load_method(name).config
    path = PACKAGE / "configs" / "diffing" / "method" / f"{name}.yaml"
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(written) == list(config.model_fields)
    assert config(**written) == config(name=name)


def test_options_are_documented(name):
    text = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    missing = [f for f in load_method(name).config.model_fields if f != "name" and f not in text]
    assert not missing


def test_it_runs_and_writes(name, results):
    result = results(name)
    for file in ("manifest.json", "summary.json", "evidence.json", "report.html"):
        assert (result.folder / file).stat().st_size > 0
    assert result.manifest["method"] == name
    assert result.summary
    assert result.tables()
    assert {s["name"] for s in result.summary} <= {s.name for s in result.evidence().scalars}


def test_rankings_are_written_whole(name, results):
    result = results(name)
    evidence = result.evidence()
    for table, ranked in (("token_scores", evidence.tokens), ("document_scores", evidence.examples)):
        if ranked:
            assert table in result.tables()
        if table in result.tables():
            found = result.table(table)
            assert found.column_names == SCORES[table]
            scores = found["score"].to_pylist()
            assert None not in scores
            if table == "token_scores":
                assert scores == sorted(scores, reverse=True)
                top = {t.token_ids[0]: t.score for t in evidence.tokens if len(t.token_ids) == 1}
                full = dict(zip(found["token_id"].to_pylist(), scores, strict=True))
                assert all(full[i] == pytest.approx(s) for i, s in top.items())


def test_the_measure_of_size_is_a_headline_measure(name, results):
    size = load_method(name).size
    assert not size or any(s["name"].startswith(f"{size} · ") for s in results(name).summary)


def test_examples_point_into_their_texts(name, results):
    for example in results(name).evidence().examples:
        for span in example.spans:
            assert 0 <= span.start < span.end <= len(example.text)


def test_a_text_that_comes_twice_is_no_second_example(name, results):
    told = [(e.text, e.score) for e in results(name).evidence().examples]
    assert len(set(told)) == len(told)


def test_nothing_is_claimed_without_calibration(name, results):
    evidence = results(name).evidence()
    for field in dataclasses.fields(evidence):
        for item in getattr(evidence, field.name):
            assert item.claimed in (True, False, None)


def test_figures_are_those_of_the_section(name, results):
    result, method = results(name), load_method(name)
    blocks = method.section(result).blocks
    shown = [b.name for b in blocks if isinstance(b, Figure)]
    assert set(shown) == set(result.figures())
    assert len(shown) == len(set(shown))
    for block in blocks:
        if isinstance(block, Figure):
            assert block.alt
            assert block.caption
        if isinstance(block, Table):
            assert all(len(row) == len(block.columns) for row in block.rows)
            assert set(block.token_columns) <= set(block.columns)
        if isinstance(block, HeatmapList):
            assert all(v.value is None or v.value <= block.maximum for i in block.items for v in i.tokens)
    assert all(isinstance(b, (Table, Paragraph)) for b in method.headline(result).blocks)


def test_the_report_is_one_page_of_its_own(name, results):
    result = results(name)
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert load_method(name).title in page
    assert '<meta name="viewport"' in page
    assert 'src="http' not in page
    assert "<link" not in page.replace('<link rel="icon" href="data:', "")
    assert "nan" not in json.dumps(result.summary).lower()


def test_nothing_is_found_where_nothing_changed(name, results):
    evidence = results(name, "identical").evidence()
    assert evidence.tokens == ()
    assert evidence.examples == ()
    assert evidence.texts == ()
    assert not any(s.claimed for s in evidence.scalars)


@pytest.mark.slow
def test_a_second_run_is_equal_to_the_bit(name, results, bench, tmp_path):
    pair = diffing.load_pair(str(bench.base), adapter=str(bench.adapter), device_map="cpu")
    again = quickly(name, pair, tmp_path)
    first = results(name)
    assert again.folder.name == first.folder.name
    for table in first.tables():
        assert read_table(again.folder / "tables" / f"{table}.parquet").equals(first.table(table)), table


@pytest.mark.slow
def test_it_draws_a_page_of_its_own(name, results):
    pytest.importorskip("duckdb")
    from streamlit.testing.v1 import AppTest

    def page(name, folder):
        from pathlib import Path

        from diffing.core.method import load_method
        from diffing.core.result import Result

        load_method(name).view(Result(Path(folder)))

    assert load_method(name).view is not None
    for null_pair in ("none", "identical"):
        app = AppTest.from_function(page, default_timeout=60, args=(name, str(results(name, null_pair).folder))).run()
        assert not app.exception, [e.value for e in app.exception]
        (choice,) = [c for c in app.segmented_control if c.key == "part"]
        assert len(choice.options) > 1
        for part in choice.options[1:]:
            assert not app.segmented_control(key="part").set_value(part).run().exception, part
            assert len(app.main) > 2


def test_a_probe_gives_a_value_for_every_token(name, results, bench):
    from diffing.core.probing import TokenValues
    from diffing.core.specs import CorpusSpec
    from diffing.data.documents import documents_from_texts
    from diffing.data.tokens import tokenize_documents

    method = load_method(name)
    if method.probe is None:
        return
    pair = diffing.load_pair(str(bench.base), adapter=str(bench.adapter), device_map="cpu")
    documents = documents_from_texts("text", [sentences(1)[0]["text"]])
    corpus = tokenize_documents({"text": documents}, CorpusSpec(datasets=()), pair.tokenizer, pair.rules)
    found = method.probe(pair, corpus.sequences[0])
    assert found
    assert len({(v.name, v.layer) for v in found}) == len(found)
    for values in found:
        assert isinstance(values, TokenValues)
        assert len(values.values_T) == len(corpus.sequences[0].ids)
        assert any(v for v in values.values_T if v is not None)
        assert values.is_signed or all(v is None or v >= 0 for v in values.values_T)


def test_vectors_are_tensors_of_the_result(name, results):
    method, result = load_method(name), results(name)
    if method.vectors is None:
        return
    vectors = method.vectors(result)
    assert vectors
    assert len({v.tensor for v in vectors}) == len({v.label for v in vectors}) == len(vectors)
    for vector in vectors:
        tensor = result.tensor(vector.tensor)
        assert tensor.ndim == 1
        assert float(tensor.double().norm()) == pytest.approx(vector.norm, rel=1e-5)


@pytest.mark.slow
def test_importing_it_imports_no_other(name):
    code = (
        "import sys; from diffing.core.method import load_method; load_method(sys.argv[1]);"
        "unwanted = ('streamlit', 'wandb', 'hydra');"
        "print(*sorted(m for m in sys.modules if m.startswith('diffing.methods.') or m in unwanted))"
    )
    done = python(code, name)
    assert done.returncode == 0, done.stderr
    others = [m for m in done.stdout.split() if not m.startswith(f"diffing.methods.{name}")]
    assert others == []
