"""A result and its null find each other, whichever is made last; nothing else is taken for a null of it."""

import json

import pytest

import diffing
from diffing.core.claims import NAME
from diffing.core.result import Result
from diffing.models.tiny import save_adapter, tiny_model
from workbench import manifest, run_folder, run_folders


@pytest.fixture(scope="module")
def nulls(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nulls")
    return [str(save_adapter(folder / f"null_{seed}", tiny_model(), seed, scale=0.002)) for seed in (11, 12)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFING_CACHE", str(tmp_path / "cache"))


def null_options(nulls, kind="generic"):
    named = nulls[0] if kind == "generic" else f"[{','.join(nulls)}]"
    return [f"null_pair={kind}", f"organism.null_adapter={named}"]


def judged(out):
    return [p for p in run_folders(out) if (p / NAME).is_file()]


@pytest.mark.parametrize("null_first", [True, False])
def test_a_null_judges_the_run_it_belongs_to(command, bench, nulls, tmp_path, null_first):
    out = tmp_path / "out"
    orders = [bench.command(out), bench.command(out, *null_options(nulls))]
    first, second = orders[::-1] if null_first else orders
    command(first).done()
    assert not judged(out)
    outcome = command(second).done()
    (folder,) = judged(out)
    assert manifest(folder)["config"]["null_pair"] == "none"
    kept = json.loads((folder / NAME).read_text())
    assert kept["null"]["null_pair"] == "generic"
    null_folder = (folder / kept["null"]["folder"]).resolve()
    assert manifest(null_folder)["fingerprint"] == kept["null"]["fingerprint"]
    measured = json.loads((folder / "evidence.json").read_text())
    assert {t["claimed"] for t in measured["tokens"]} == {None}
    result = diffing.open_results(out).find(method="kl", variant="default")[0]
    evidence = result.evidence()
    assert {s.claimed for s in evidence.scalars} <= {True, False}
    assert any(s.claimed for s in evidence.scalars if s.name.startswith("mean KL"))
    null_value = next(s.value for s in Result(null_folder).evidence().scalars if s.name == evidence.scalars[0].name)
    assert evidence.scalars[0].null == null_value
    assert [s["claimed"] for s in result.summary if s["name"] == evidence.scalars[0].name] == [
        evidence.scalars[0].claimed
    ]
    claims = result.calibration().claims
    assert claims.examples.n_tested == len(evidence.examples)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Against a null, the base model with a generic finetune of it" in page
    assert ("Against a null" in outcome.out) == null_first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("again", "said"),
    [([], "Against a null"), (["pipeline.mode=report"], "that the null")],
    ids=["found finished", "report"],
)
def test_claims_that_a_kill_left_undone_are_made_up_for(command, bench, nulls, tmp_path, again, said):
    out = tmp_path / "out"
    command(bench.command(out)).done()
    command(bench.command(out, *null_options(nulls))).done()
    (folder,) = judged(out)
    (folder / NAME).unlink()
    assert said in command(bench.command(out, *again)).done().out
    assert judged(out) == [folder]


@pytest.mark.slow
def test_the_trained_null_is_preferred_to_the_base_itself(command, bench, nulls, tmp_path):
    out = tmp_path / "out"
    command(bench.command(out)).done()
    command(bench.command(out, "null_pair=identical")).done()
    assert not judged(out)
    command(bench.command(out, "null_pair=dtype")).done()
    (folder,) = judged(out)
    assert json.loads((folder / NAME).read_text())["null"]["null_pair"] == "dtype"
    command(bench.command(out, *null_options(nulls, "seeds"))).done()
    assert json.loads((folder / NAME).read_text())["null"]["null_pair"] == "seeds"
    command(bench.command(out, *null_options(nulls))).done()
    command(bench.command(out, "null_pair=dtype", "overwrite=true")).done()
    assert json.loads((folder / NAME).read_text())["null"]["null_pair"] == "generic"


@pytest.mark.slow
def test_two_generic_nulls_judge_tokens_together_whichever_is_last(command, bench, nulls, tmp_path):
    both = f"organism.null_adapter=[{','.join(nulls)}]"
    kept = []
    for n, order in enumerate((("none", "generic", "generic_other"), ("generic_other", "generic", "none"))):
        out = tmp_path / f"out{n}"
        for null in order:
            command(bench.command(out, *([f"null_pair={null}", both] if null != "none" else []))).done()
        (folder,) = judged(out)
        kept.append(json.loads((folder / NAME).read_text()))
        first, second = (manifest((folder / kept[-1]["null"][key]).resolve()) for key in ("folder", "second_folder"))
        assert (first["config"]["null_pair"], second["config"]["null_pair"]) == ("generic", "generic_other")
        assert [m["pair"]["finetuned_id"] for m in (first, second)] == nulls
    assert kept[0]["claims"] == kept[1]["claims"]
    assert kept[0]["claims"]["tokens"]["n_null"] == 2 * kept[0]["claims"]["tokens"]["n_tested"]
    assert "by how far two such finetunes differ" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("other", ["seed=3", "data.max_length=16", "diffing.method.top_k=3"])
def test_a_null_of_other_text_options_or_seed_judges_nothing(command, bench, nulls, tmp_path, other):
    out = tmp_path / "out"
    command(bench.command(out)).done()
    done = command(bench.command(out, *null_options(nulls), other))
    if done.code == 2:
        pytest.fail(done.err)
    assert len(run_folders(out)) == 2
    assert not judged(out)


@pytest.mark.slow
def test_a_null_of_another_base_judges_nothing(command, bench, nulls, tmp_path):
    out = tmp_path / "out"
    command(bench.command(out)).done()
    command(bench.command(out, *null_options(nulls), base=bench.full)).done()
    assert not judged(out)


@pytest.mark.slow
def test_claims_about_older_evidence_are_not_taken_for_new(command, bench, nulls, tmp_path):
    out = tmp_path / "out"
    command(bench.command(out)).done()
    command(bench.command(out, *null_options(nulls))).done()
    (folder,) = judged(out)
    kept = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**kept, "of": "0" * 64}))
    result = diffing.open_results(out).find(method="kl", variant="default")[0]
    assert result.calibration() is None
    assert {t.claimed for t in result.evidence().tokens} == {None}
    command(bench.command(out, *null_options(nulls), "overwrite=true")).done()
    assert result.calibration() is not None


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 1}', '{"schema": 99, "of": ""}'])
def test_a_damaged_calibration_is_named(command, bench, tmp_path, content):
    out = tmp_path / "out"
    command(bench.command(out)).done()
    (run_folder(out) / NAME).write_text(content)
    outcome = command(bench.command(out))
    outcome.sentence(NAME)


@pytest.mark.slow
def test_a_damaged_calibration_is_made_again_and_takes_no_null_from_others(command, bench, nulls, tmp_path):
    out = tmp_path / "out"
    command(bench.command(out)).done()
    command(bench.command(out, finetuned=bench.full)).done()
    command(bench.command(out, *null_options(nulls))).done()
    whole = {folder: (folder / NAME).read_bytes() for folder in judged(out)}
    assert len(whole) == 2
    for folder in whole:
        (folder / NAME).write_text("{")
    command(bench.command(out, *null_options(nulls))).done()
    assert {folder: (folder / NAME).read_bytes() for folder in judged(out)} == whole


@pytest.mark.slow
def test_a_scaled_null_is_a_null_of_its_own(command, bench, nulls, tmp_path):
    out = tmp_path / "out"
    command(bench.command(out, *null_options(nulls))).done()
    command(bench.command(out, *null_options(nulls), "organism.amplification=0.01")).done()
    variants = {manifest(f)["pair"]["variant"] for f in run_folders(out)}
    assert len(variants) == 2
    assert "null-generic" in variants
    command(bench.command(out, "null_pair=identical", "organism.amplification=0.5")).sentence("organism.amplification")


def test_nulls_without_adapters_say_what_to_name(command, bench, nulls, tmp_path):
    out = tmp_path / "out"
    for kind in ("generic", "seeds"):
        command(bench.command(out, f"null_pair={kind}")).sentence(f"null_pair={kind}", "organism.null_adapter=")
    one = f"organism.null_adapter={nulls[0]}"
    command(bench.command(out, "null_pair=seeds", one)).sentence("two adapters", "1 is named")


def test_the_python_api_loads_trained_nulls(bench, nulls):
    pair = diffing.load_pair(str(bench.base), null_pair="generic", null_adapter=nulls[0])
    assert pair.facts["null_pair"] == "generic"
    assert pair.facts["finetuned"]["id"] == nulls[0]
    both = diffing.load_pair(str(bench.base), null_pair="seeds", null_adapter=nulls)
    assert both.facts["base"]["origin"] == "merged"
