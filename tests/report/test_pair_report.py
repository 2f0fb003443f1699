"""The report of a pair: what several methods found in one list, agreement by hand, sentences that say what the numbers
say, and `pipeline.mode=report` from the command line.
"""

import json
import math
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
from report_fakes import HOSTILE
from test_report_page import Page

from diffing.core.claims import Calibration, Claims, ListClaims, NullRun, write_calibration
from diffing.core.errors import UserError
from diffing.core.evidence import (
    Evidence,
    ExampleEvidence,
    ScalarEvidence,
    Span,
    TokenEvidence,
    to_json,
    write_evidence,
)
from diffing.core.files import sha256, write_json
from diffing.core.method import method_names
from diffing.core.result import Result
from diffing.core.runs import pair_folder
from diffing.core.sensitivity import Sensitivity, write_sensitivity
from diffing.core.tables import TokenScoreRow, table_of, write_table
from diffing.models.tiny import save_adapter, tiny_model
from diffing.report.pair.findings import HEAD, Support, agreement, findings, shared_texts
from diffing.report.pair.gathering import gather
from diffing.report.pair.words import summary
from workbench import manifest, run_folders

METHODS = ["kl", "weight_spectrum"]
NOT_MEASURED = "How faint a change they would have found was not measured"


def tokens(*ranked: tuple[str, float]) -> tuple[TokenEvidence, ...]:
    return tuple(TokenEvidence(token, (i,), score, score / 10) for i, (token, score) in enumerate(ranked))


KL = Evidence(
    tokens=tokens((" Rome", 0.9), (" sea", 0.5), ("the", 0.4), ("rome", 0.3)),
    examples=(
        ExampleEvidence("we saw Rome today", 2.0, (Span(6, 11, 1.5), Span(0, 2, None)), "chat"),
        ExampleEvidence("the sea", 1.0, (Span(0, 3, 0.7), Span(3, 7, None)), "chat"),
    ),
    scalars=(ScalarEvidence("mean KL", 0.25, 0.2, 0.3, 1e-6, "nats"), ScalarEvidence("top-1 agreement", 0.8)),
)
MINING = Evidence(
    tokens=tokens(("ROME", 7.0), ("The", 5.0), ("Sea", 3.0), ("  ", 2.0), ("tea", 1.0)),
    examples=(ExampleEvidence("she saw Rome today, and more", 4.0, (Span(0, 3, 1.0),), "chat"),),
)
KL_CLAIMS = {"flags": (True, False, False, True), "nulls": (0.05, 0.4, 0.3, None), "scalars": (True, False)}
MINING_CLAIMS = {"flags": (True, False, True, None, False), "nulls": (0.5, 4.5, 0.25, None, None)}
NO_KL_CLAIMS = {"flags": (False,) * 4, "nulls": (None,) * 4, "scalars": (False, False)}
NO_MINING_CLAIMS = {"flags": (False,) * 5, "nulls": (None,) * 5}


def make_result(
    base_dir, method, evidence, ranking=None, claims=None, *, variant="default", null_pair="none", run="ab12",
    weights="w1", created="2025-01-01T00:00:00+00:00", **changes,
) -> Result:  # fmt: skip
    """A result folder of organism `tea` on `tiny`, with the ranking `{token id: score}`, judged when claims are given.

    Args:
        base_dir: Output folder.
        method: Its method.
        evidence: What it found; its scalars are its headline numbers too.
        ranking: Score of each token; None: the method ranks no tokens.
        claims: Flags and null values of its tokens, and flags of its scalars; None: not judged.
        variant: Of the organism.
        null_pair: The null pair that it is of.
        run: Its fingerprint.
        weights: Fingerprint of the pair.
        created: When it was made.
        changes: Other values of its manifest.
    """
    folder = pair_folder(base_dir, "tiny", "tea", variant) / method / run
    write_evidence(folder / "evidence.json", evidence)
    write_json(folder / "summary.json", {"schema": 1, "scalars": to_json(evidence)["scalars"]})
    if ranking is not None:
        rows = [TokenScoreRow(i, f"t{i}", score, None, None) for i, score in ranking.items()]
        write_table(folder / "tables" / "token_scores.parquet", table_of(TokenScoreRow, rows))
    files = {p.relative_to(folder).as_posix(): sha256(p) for p in folder.rglob("*") if p.is_file()}
    content = {
        "schema": 1, "method": method, "fingerprint": run, "created": created, "seed": 0,
        "config": {"null_pair": null_pair}, "versions": {"diffing": "0.1.0"},
        "wall_seconds": 1.5, "peak_memory_bytes": 1000, "facts": {}, "notes": [],
        "pair": {
            "model": "tiny", "organism": "tea", "variant": variant, "fingerprint": weights,
            "base_id": "org/tiny", "finetuned_id": "org/tiny-tea",
        },
        "data": {"n_tokens": 1200, "fingerprint": "d1", "datasets": ["chat"], "spec": {"max_tokens": 1200}},
        "files": files,
    }  # fmt: skip
    write_json(folder / "manifest.json", {**content, **changes})
    if claims is not None:
        write_calibration(folder, _calibration(evidence, **claims), files["evidence.json"])
    return Result(folder)


def _calibration(evidence, flags, nulls, scalars=()) -> Calibration:
    n = len(evidence.examples)
    made = Claims(
        level=0.05,
        tokens=ListClaims(flags, len(flags), len(flags), sum(map(bool, flags))),
        token_nulls=nulls,
        examples=ListClaims((False,) * n, n, n),
        texts=ListClaims(()),
        scalars=scalars,
        scalar_names=tuple(s.name for s in evidence.scalars),
        scalar_nulls=(None,) * len(scalars),
    )
    return Calibration(NullRun("generic", "null-generic", "cd34", "../../../tea+null-generic/kl/cd34"), made)


def gathered(base_dir, variant="default", left_out=()):
    return gather(base_dir, "tiny", "tea", variant, left_out)


def said(base_dir, variant="default") -> tuple[str, ...]:
    pair = gathered(base_dir, variant)
    return summary(pair, findings(pair.results))


def test_findings_merge_forms_and_give_what_each_method_says(tmp_path):
    results = [make_result(tmp_path, "kl", KL, claims=KL_CLAIMS)]
    results.append(make_result(tmp_path, "diff_mining", MINING, claims=MINING_CLAIMS))
    found = {f.forms: f for f in findings(results)}
    assert list(found) == [("Rome", "ROME", "rome"), ("sea", "Sea"), ("The", "the"), ("tea",)]
    assert [f.claimed_by for f in found.values()] == [("kl", "diff_mining"), ("diff_mining",), (), ()]
    assert found["Rome", "ROME", "rome"].supports == (
        Support("kl", 1, 0.9, pytest.approx(0.09), 0.05, True, "ab12"),
        Support("diff_mining", 1, 7.0, pytest.approx(0.7), 0.5, True, "ab12"),
    )
    assert found["sea", "Sea"].supports == (
        Support("diff_mining", 3, 3.0, pytest.approx(0.3), 0.25, True, "ab12"),
        Support("kl", 2, 0.5, pytest.approx(0.05), 0.4, False, "ab12"),
    )
    assert [(s.method, s.rank, s.claimed) for s in found["The", "the"].supports] == [
        ("diff_mining", 2, False),
        ("kl", 3, False),
    ]


def test_findings_without_a_null_are_ordered_by_methods_then_by_rank(tmp_path):
    results = [make_result(tmp_path, "kl", KL), make_result(tmp_path, "diff_mining", MINING)]
    found = findings(results)
    assert [f.forms[0] for f in found] == ["Rome", "The", "sea", "tea"]
    assert {s.claimed for f in found for s in f.supports} == {None}
    assert all(f.claimed_by == () for f in found)


def test_a_claim_below_the_head_is_a_finding_and_other_words_there_are_not(tmp_path):
    evidence = Evidence(tokens=tokens(*((f"w{i}", 100.0 - i) for i in range(HEAD + 10))))
    flags = tuple(i == HEAD + 4 for i in range(HEAD + 10))
    nulls = (None,) * len(flags)
    found = findings([make_result(tmp_path, "kl", evidence, claims={"flags": flags, "nulls": nulls})])
    assert found[0].forms == (f"w{HEAD + 4}",)
    assert found[0].supports[0].rank == HEAD + 5
    assert {f.forms[0] for f in found[1:]} == {f"w{i}" for i in range(HEAD)}


def test_findings_name_examples_in_which_the_word_is_marked(tmp_path):
    results = [make_result(tmp_path, "kl", KL), make_result(tmp_path, "diff_mining", MINING)]
    examples = {f.forms[0]: [(m, e.text) for m, e in f.examples] for f in findings(results)}
    assert examples == {"Rome": [("kl", "we saw Rome today")], "The": [("kl", "the sea")], "sea": [], "tea": []}


def test_texts_that_two_methods_give_are_found(tmp_path):
    results = [
        make_result(tmp_path, "kl", KL),
        make_result(tmp_path, "diff_mining", Evidence(examples=KL.examples[1:])),
    ]
    (shared,) = shared_texts(results)
    assert [(method, e.text) for method, e in shared.by_result] == [("kl", "the sea"), ("diff_mining", "the sea")]
    assert shared.mean_rank == 1.5


def test_agreement_of_whole_rankings_by_hand(tmp_path):
    """The second ranking is the first turned by 20 of 100 places: 30 of 50 shared, 50 · 100/100² by chance."""
    first = {i: -float(i) for i in range(100)}
    second = {i: -float((i - 20) % 100) for i in range(100)}
    results = [make_result(tmp_path, "kl", Evidence(), first), make_result(tmp_path, "diff_mining", Evidence(), second)]
    (pair,) = agreement([*results, make_result(tmp_path, "weight_spectrum", Evidence())])
    assert (pair.first, pair.second) == ("kl", "diff_mining")
    assert pair.share == 30 / 50
    assert pair.chance == 0.5
    assert pair.correlation == pytest.approx(1 - 6 * (80 * 20**2 + 20 * 80**2) / (100 * (100**2 - 1)))


def test_agreement_of_short_rankings_leaves_out_those_that_tell_nothing_apart(tmp_path):
    short = make_result(tmp_path, "kl", Evidence(), {1: 4.0, 2: 3.0, 3: 2.0, 4: 1.0, 9: math.nan})
    other = make_result(tmp_path, "diff_mining", Evidence(), {2: 9.0, 3: 8.0, 4: 7.0, 5: 6.0, 6: 5.0})
    empty = make_result(tmp_path, "normdiff", Evidence(), {})
    tied = make_result(tmp_path, "pca", Evidence(), dict.fromkeys(range(100), 0.0))
    (best,) = agreement([empty, tied, short, other])
    assert (best.first, best.second, best.share, best.chance) == ("kl", "diff_mining", 3 / 4, 4 * 3 / (4 * 5))
    assert best.correlation == pytest.approx(1)


def test_methods_that_agree_beyond_chance_come_first_and_ties_are_broken_alike_each_time(tmp_path):
    ids = range(200)
    results = [
        make_result(tmp_path, "kl", Evidence(), {i: -float(i) for i in ids}),
        make_result(tmp_path, "normdiff", Evidence(), {i: float(i) for i in ids}),
        make_result(tmp_path, "diff_mining", Evidence(), {i: float(i < 50) for i in ids}),
    ]
    once = agreement(results)
    assert [(a.first, a.second, a.share) for a in once] == [
        ("kl", "diff_mining", 1.0),
        ("kl", "normdiff", 0.0),
        ("normdiff", "diff_mining", 0.0),
    ]
    assert agreement(results) == once


def test_summary_of_claims_names_words_and_numbers(tmp_path):
    make_result(tmp_path, "kl", KL, claims=KL_CLAIMS)
    make_result(tmp_path, "diff_mining", MINING, claims=MINING_CLAIMS)
    compared, claiming, *rest = said(tmp_path)
    assert compared == (
        "org/tiny-tea against its base org/tiny, looked at by diff_mining and kl, on up to 1,200 tokens of text."
    )
    against = "the null (the base model with a generic finetune of it)"
    assert claiming == f"diff_mining and kl claim something that {against} does not bring forth."
    assert rest == [
        "Words that two or more methods claim: Rome.",
        "Words that one method alone claims: sea.",
        "In numbers: mean KL is 0.250 nats [0.200, 0.300], 1.00×10⁻⁶ under the null (kl).",
    ]


def test_summary_of_many_methods_has_the_numbers_that_are_farthest_from_their_null(tmp_path):
    names = method_names()[:6]
    for i, name in enumerate(names):
        number = ScalarEvidence("change", 8.0, 7.0, 9.0, [1.0, 4.0, 2.0, 0.0, 8.0, 0.5][i])
        claims = {"flags": (), "nulls": (), "scalars": (True,)}
        make_result(tmp_path, name, Evidence(scalars=(number,)), claims=claims)
    (told,) = (s for s in said(tmp_path) if s.startswith("In numbers"))
    places = [told.index(f"({names[i]})") for i in (3, 5, 0, 2)]
    assert places == sorted(places)
    assert told.endswith(f" Those of {names[1]} and {names[4]} are in their chapters.")


def test_summary_says_who_claims_nothing_and_who_was_not_judged(tmp_path):
    make_result(tmp_path, "kl", KL, claims=KL_CLAIMS)
    make_result(tmp_path, "diff_mining", MINING, claims=NO_MINING_CLAIMS)
    make_result(tmp_path, "normdiff", Evidence())
    _, claiming, words, _, open_ = said(tmp_path)
    assert claiming.startswith("kl claims something that the null ")
    assert claiming.endswith("; diff_mining claims nothing.")
    assert words == "Words that are claimed, each by one method: Rome."
    assert open_.startswith("No null pair was run for normdiff: what it ranks cannot be told ")


def test_summary_of_silent_methods_says_that_nothing_was_found_and_that_sensitivity_is_unknown(tmp_path):
    make_result(tmp_path, "kl", KL, claims=NO_KL_CLAIMS)
    make_result(tmp_path, "diff_mining", MINING, claims=NO_MINING_CLAIMS)
    write_sensitivity(tmp_path / "benchmark" / "quick", "another", [Sensitivity("kl", {"whole": "found"}, "whole")])
    _, nothing = said(tmp_path)
    assert nothing.startswith("Nothing was found: of diff_mining and kl none claims anything against the null ")
    assert NOT_MEASURED in nothing
    assert "pipeline.mode=benchmark" in nothing


def test_summary_of_silent_methods_says_how_faint_a_change_they_find(tmp_path):
    make_result(tmp_path, "kl", KL, claims=NO_KL_CLAIMS)
    make_result(tmp_path, "diff_mining", MINING, claims=NO_MINING_CLAIMS)
    measured = [
        Sensitivity("kl", {"whole": "found", "1 in 4": "found", "1 in 16": "not found"}, "1 in 4"),
        Sensitivity("diff_mining", {"whole": "not found", "1 in 4": "not found"}, None),
    ]
    write_sensitivity(tmp_path / "benchmark" / "quick", "tiny", measured)
    _, nothing = said(tmp_path)
    assert nothing.startswith("Nothing was found: ")
    assert "kl found a change as faint as 1 in 4" in nothing
    assert "diff_mining found none of whole and 1 in 4" in nothing
    assert NOT_MEASURED not in nothing


def test_summary_without_a_null_says_so_and_names_words_that_are_high_in_two_rankings(tmp_path):
    make_result(tmp_path, "kl", KL)
    make_result(tmp_path, "diff_mining", MINING)
    _, open_, ranked = said(tmp_path)
    assert open_.startswith("No null pair was run for diff_mining and kl: what they rank cannot be told ")
    assert "null_pair=generic" in open_
    assert ranked == "Words that are high in the rankings of two or more methods: Rome, The, sea."
    shutil.rmtree(pair_folder(tmp_path, "tiny", "tea", "default") / "diff_mining")
    assert said(tmp_path)[-1] == "No word is high in the rankings of two methods."


def test_words_in_the_summary_hold_nothing_that_a_terminal_obeys_or_that_cannot_be_seen(tmp_path):
    """The summary is printed, and stands in the page outside the tables that mark such characters."""
    evidence = Evidence(tokens=tokens(("a\x1b[31mred", 3.0), ("two\r\nlines", 2.0), ("\u202eevil", 1.0)))
    make_result(tmp_path, "kl", evidence)
    make_result(tmp_path, "diff_mining", evidence)
    words = said(tmp_path)[-1]
    assert "red" in words
    assert "evil" in words
    assert words.isprintable()


def test_summary_of_a_trained_null_says_that_nothing_was_planted(tmp_path):
    make_result(tmp_path, "kl", KL, variant="null-generic", null_pair="generic")
    compared, nothing = said(tmp_path, "null-generic")
    assert compared.startswith("A null: the base model with a generic finetune of it, looked at by kl, ")
    assert nothing.startswith("Nothing was planted in this pair, and nothing in it is claimed")
    assert NOT_MEASURED in nothing


@pytest.mark.parametrize(("value", "moved"), [(0.0, None), (1e-9, "(kl: mean KL is 1.00×10⁻⁹ nats)")])
def test_summary_of_identical_models_says_that_nothing_was_found(tmp_path, value, moved):
    scalars = (ScalarEvidence("mean KL", value, unit="nats"), ScalarEvidence("top-1 agreement", 1.0, unit="share"))
    make_result(tmp_path, "kl", Evidence(scalars=scalars), variant="null-identical", null_pair="identical")
    compared, nothing = said(tmp_path, "null-identical")
    assert compared.startswith("A null: the base model with itself, looked at by kl, ")
    assert nothing.startswith("Nothing was found")
    assert ("every headline number is what identical models give" in nothing) == (moved is None)
    assert moved is None or moved in nothing
    assert NOT_MEASURED in nothing


def test_the_newest_result_of_each_method_is_gathered(tmp_path):
    make_result(tmp_path, "kl", KL, run="old1", created="2025-01-01T00:00:00+00:00")
    newest = make_result(tmp_path, "kl", KL, run="new1", created="2025-01-02T00:00:00+00:00")
    make_result(tmp_path, "kl", KL, run="old2", created="2024-01-01T00:00:00+00:00")
    mining = make_result(tmp_path, "diff_mining", MINING)
    make_result(tmp_path, "kl", KL, variant="other", created="2025-01-03T00:00:00+00:00")
    make_result(tmp_path, "ghost_method", KL)
    pair = gathered(tmp_path)
    assert [r.folder for r in pair.results] == [mining.folder, newest.folder]
    assert pair.not_run == tuple(m for m in method_names() if m not in ("kl", "diff_mining"))
    assert pair.not_installed == ("ghost_method",)
    (note,) = pair.notes
    assert note.startswith("Of these methods on this pair there are 2 results more")
    left = gathered(tmp_path, left_out={newest.folder})
    assert [r.manifest["fingerprint"] for r in left.results] == ["ab12", "old1"]


def test_of_several_pairs_under_one_name_the_one_that_is_asked_for_is_gathered(tmp_path):
    ids = {"model": "tiny", "organism": "tea", "variant": "default", "base_id": "a", "finetuned_id": "b"}
    mine = make_result(tmp_path, "kl", KL, run="mine", pair={**ids, "fingerprint": "w0"})
    other = {**ids, "base_id": "other", "fingerprint": "w9"}
    make_result(tmp_path, "kl", KL, run="new", created="2025-02-01T00:00:00+00:00", pair=other)
    (found,) = gather(tmp_path, "tiny", "tea", "default", sources=("a", "b")).results
    assert found.folder == mine.folder
    (newest,) = gather(tmp_path, "tiny", "tea", "default", sources=("elsewhere", "b")).results
    assert newest.manifest["fingerprint"] == "new"


def test_results_that_are_not_alike_are_noted(tmp_path):
    make_result(tmp_path, "kl", KL, seed=0)
    make_result(tmp_path, "diff_mining", MINING, seed=3, versions={"diffing": "0.2.0"}, git="c0ffee")
    make_result(tmp_path, "weight_spectrum", Evidence(), data={"n_tokens": 0, "fingerprint": "none", "spec": {}})
    notes = gathered(tmp_path).notes
    assert len(notes) == 2
    assert notes[0].startswith("Not all results have the same seed (diff_mining: 3; kl, weight_spectrum: 0)")
    assert notes[1].startswith("Not all results have the same version of diffing (diff_mining: 0.2.0; ")


def test_a_result_whose_options_are_no_longer_those_of_its_method_is_noted(tmp_path):
    options = {"name": "kl", "once_an_option": 1}
    make_result(tmp_path, "kl", KL, config={"null_pair": "none", "diffing": {"method": options}})
    (note,) = gathered(tmp_path).notes
    assert note.startswith("kl is stale: ")
    assert "once_an_option is gone" in note


@pytest.mark.parametrize(("n", "words"), [(1, ": 1 result."), (2, ": 2 results.")])
def test_results_of_other_weights_are_left_out_and_counted(tmp_path, n, words):
    for i in range(n):
        make_result(tmp_path, "diff_mining", MINING, weights="w0", run=f"old{i}", created="2024-01-01T00:00:00+00:00")
    make_result(tmp_path, "kl", KL)
    pair = gathered(tmp_path)
    assert [r.method for r in pair.results] == ["kl"]
    assert "diff_mining" in pair.not_run
    (note,) = pair.notes
    assert note == f"Of other weights under the same name, and left out{words}"
    assert "other weights" in note


def test_a_pair_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match="No finished result of tea on tiny"):
        gathered(tmp_path)


@pytest.fixture(scope="module")
def finished(bench, tmp_path_factory):
    """An output folder with the report of two methods, which it ran first; copied by each test."""
    from diffing.cli import main

    out = tmp_path_factory.mktemp("finished")
    assert main(bench.command(out, f"pipeline.methods=[{','.join(METHODS)}]", "pipeline.mode=report")) == 0
    return out


@pytest.fixture
def out(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFING_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(finished, tmp_path / "out")


def reported(out: Path, organism: str = "adapter") -> dict:
    return json.loads((out / "results" / "base" / organism / "report.json").read_text(encoding="utf-8"))


def by_method(out: Path) -> dict[str, Path]:
    return {manifest(folder)["method"]: folder for folder in run_folders(out)}


def rewrite(folder: Path, name: str, change) -> None:
    """Change a JSON file of a result as if it had been written so."""
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    made = manifest(folder)
    made["files"][name] = sha256(path)
    write_json(folder / "manifest.json", made)


def test_report_runs_methods_and_its_json_says_what_their_results_say(out):
    folder = out / "results" / "base" / "adapter"
    assert {p.name for p in folder.iterdir()} == {*METHODS, "report.html", "report.md", "report.json"}
    made = reported(out)
    assert (made["model"], made["organism"], made["null_pair"]) == ("base", "adapter", "none")
    assert made["not_run"] == [m for m in method_names() if m not in METHODS]
    assert made["notes"] == []
    assert [m["method"] for m in made["methods"]] == METHODS
    ranked = {}
    for method in made["methods"]:
        of_result = manifest(folder / method["folder"])
        assert [of_result[k] for k in ("method", "fingerprint", "created")] == [
            method[k] for k in ("method", "fingerprint", "created")
        ]
        scalars = json.loads((folder / method["folder"] / "summary.json").read_text())["scalars"]
        assert method["summary"] == scalars
        assert (method["null"], method["n_claimed"]) == (None, None)
        ranked[method["method"]] = json.loads((folder / method["folder"] / "evidence.json").read_text())["tokens"]
    assert len(made["findings"]) > HEAD
    for finding in made["findings"]:
        for support in finding["supports"]:
            token = ranked[support["method"]][support["rank"] - 1]
            assert [token[k] for k in ("score", "stderr", "null_score")] == [
                support[k] for k in ("score", "stderr", "null_score")
            ]
            assert token["token"].strip(" ").casefold() == finding["forms"][0].casefold()


def test_page_and_markdown_say_the_summary_and_link_to_the_reports_of_the_methods(out):
    folder = out / "results" / "base" / "adapter"
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    text = (folder / "report.md").read_text(encoding="utf-8")
    for sentence in reported(out)["summary"]:
        assert sentence in page.text
    links = {a["href"] for tag, a in page.tags if tag == "a" and not a["href"].startswith("#")}
    assert links == set(re.findall(r"\]\(([^)]*)\)", text))
    reports = {(folder / unquote(link)).resolve() for link in links}
    assert reports == {(f / "report.html").resolve() for f in run_folders(out)}
    assert all(path.is_file() for path in reports)
    for title in ("Words", "Where methods agree", "What was not looked at", "How this was made"):
        assert f"\n## {title}\n" in text
        assert title in page.text


def test_reporting_again_writes_the_same_bytes(command, bench, out):
    folder = out / "results" / "base" / "adapter"
    before = {p.name: p.read_bytes() for p in folder.glob("report.*")}
    outcome = command(bench.command(out, "pipeline.mode=report")).done()
    assert {p.name: p.read_bytes() for p in folder.glob("report.*")} == before
    assert len(before) == 3
    assert str(folder / "report.html") in outcome.out + outcome.err
    assert reported(out)["summary"][0] in " ".join(outcome.out.split())


def test_hostile_text_of_results_is_text_in_the_report(command, bench, out):
    word = f"{HOSTILE}\r\n\n| a | b |"

    def spoil(evidence):
        evidence["tokens"][0]["token"] = word
        evidence["examples"][0] |= {"text": word, "spans": [[0, len(word), 1.0]], "dataset": HOSTILE}
        evidence["texts"] = [{"text": word, "score": 1.0, "prompt": None, "source": HOSTILE, "claimed": None}]

    kl = by_method(out)["kl"]
    rewrite(kl, "evidence.json", spoil)
    rewrite(kl, "summary.json", lambda summary: summary["scalars"][0].update(name=HOSTILE, unit=HOSTILE))
    command(bench.command(out, "pipeline.mode=report")).done()
    folder = out / "results" / "base" / "adapter"
    html = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"img", "iframe", "object", "embed", "base", "form", "link"}
    assert html.lower().count("<script") == len(page.scripts)
    assert HOSTILE in page.text
    assert word in {form for finding in reported(out)["findings"] for form in finding["forms"]}
    text = (folder / "report.md").read_bytes().decode()
    assert "\\<img src=x" in text
    assert "\r" not in text
    assert not re.search(r"^\| a \| b", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["manifest.json", "summary.json", "evidence.json", "tables/token_scores.parquet"])
@pytest.mark.parametrize(("damaged", "other"), [("kl", "weight_spectrum"), ("weight_spectrum", "kl")])
def test_a_damaged_result_is_left_out_with_a_warning_and_a_note(command, bench, out, damaged, other, name):
    path = by_method(out)[damaged] / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    outcome = command(bench.command(out, "pipeline.mode=report")).done()
    assert str(path) in outcome.err
    made = reported(out)
    assert [m["method"] for m in made["methods"]] == [other]
    assert {s["method"] for f in made["findings"] for s in f["supports"]} == {other}
    (note,) = made["notes"]
    assert note.startswith("Left out as damaged: ")
    assert str(path) in note
    assert damaged not in made["not_run"]
    assert "Left out as damaged" in (out / "results" / "base" / "adapter" / "report.md").read_text(encoding="utf-8")


def test_when_all_results_are_damaged_one_sentence_says_how(command, bench, out):
    paths = [folder / "evidence.json" for folder in run_folders(out)]
    for path in paths:
        path.write_text("{")
    sentence = command(bench.command(out, "pipeline.mode=report")).sentence("evidence.json", "overwrite=true")
    assert any(str(path) in sentence for path in paths)


def test_a_pair_without_results_gives_one_sentence(command, bench, out, tmp_path):
    command(bench.command(tmp_path / "nowhere", "pipeline.mode=report")).sentence(str(tmp_path / "nowhere"), alone=True)
    before = sorted(out.rglob("report.*"))
    outcome = command(bench.command(out, "pipeline.mode=report", finetuned=bench.full))
    outcome.sentence("full on base", "pipeline.methods=quick", alone=True)
    assert sorted(out.rglob("report.*")) == before


def test_a_pair_with_results_of_an_unknown_method_alone_gives_one_sentence(command, bench, out):
    for folder in run_folders(out):
        write_json(folder / "manifest.json", {**manifest(folder), "method": "ghost_method"})
    command(bench.command(out, "pipeline.mode=report")).sentence()


@pytest.mark.slow
def test_a_method_that_fails_is_left_out_with_a_note_and_the_others_are_reported(command, bench, out):
    asked = ["pipeline.mode=report", "pipeline.methods=[perplexity_diff,kl]", "data.max_length=4"]
    before = reported(out)["methods"]
    outcome = command(bench.command(out, *asked)).done()
    assert "perplexity_diff: No document" in outcome.err
    made = reported(out)
    assert [m["method"] for m in made["methods"]] == METHODS
    assert [m["fingerprint"] == b["fingerprint"] for m, b in zip(made["methods"], before, strict=True)] == [False, True]
    (note,) = [n for n in made["notes"] if "perplexity_diff" in n]
    assert note.startswith("perplexity_diff gave no result: No document of custom has a beginning")


@pytest.mark.slow
def test_when_the_only_method_fails_one_sentence_says_that_there_is_no_result(command, bench, tmp_path):
    asked = ["pipeline.mode=report", "pipeline.methods=[perplexity_diff]", "data.max_length=4"]
    command(bench.command(tmp_path / "out", *asked)).sentence("No finished result of adapter on base")


@pytest.mark.slow
def test_the_base_against_itself_is_said_to_show_nothing(command, bench, tmp_path):
    out = tmp_path / "out"
    asked = ["pipeline.mode=report", f"pipeline.methods=[{','.join(METHODS)}]", "null_pair=identical"]
    outcome = command(bench.command(out, *asked)).done()
    made = reported(out, "custom+null-identical")
    assert made["null_pair"] == "identical"
    assert made["summary"][0].startswith("A null: the base model with itself, looked at by kl and weight_spectrum")
    assert made["summary"][1].startswith("Nothing was found")
    assert all(not f["claimed_by"] for f in made["findings"])
    assert "Nothing was found" in outcome.out
    for name in ("report.html", "report.md"):
        assert "Nothing was found" in (out / "results" / "base" / "custom+null-identical" / name).read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(("max_tokens", "told"), [("null", False), ("100000", False), ("9", True)])
def test_a_limit_is_told_where_it_left_text_out(command, bench, tmp_path, max_tokens, told):
    out = tmp_path / "out"
    asked = ["pipeline.mode=report", "pipeline.methods=[kl]", f"data.max_tokens={max_tokens}"]
    command(bench.command(out, *asked)).done()
    text = (out / "results" / "base" / "adapter" / "report.md").read_text(encoding="utf-8")
    assert (f"Of each dataset at most {max_tokens} tokens were read" in text) is told


@pytest.mark.slow
def test_results_of_other_weights_under_the_same_name_are_left_out_with_a_note(command, bench, out, tmp_path):
    for folder in run_folders(out):
        write_json(folder / "manifest.json", {**manifest(folder), "created": "2020-01-01T00:00:00+00:00"})
    other = save_adapter(tmp_path / "adapter", tiny_model(), 5)
    asked = ["pipeline.mode=report", "pipeline.methods=[kl]"]
    command(bench.command(out, *asked, finetuned=other)).done()
    made = reported(out)
    assert [m["method"] for m in made["methods"]] == ["kl"]
    assert "weight_spectrum" in made["not_run"]
    (note,) = made["notes"]
    assert note == "Of other weights under the same name, and left out: 2 results."
    assert str(other) in made["summary"][0]


@pytest.mark.slow
def test_a_null_that_was_run_makes_claims_that_the_report_tells(command, bench, out, tmp_path):
    null = save_adapter(tmp_path / "null", tiny_model(), 11, scale=0.002)
    command(bench.command(out, "null_pair=generic", f"organism.null_adapter={null}")).done()
    command(bench.command(out, "pipeline.mode=report")).done()
    made = reported(out)
    kl, spectrum = made["methods"]
    assert kl["null"]["null_pair"] == "generic"
    assert (out / "results" / "base" / "adapter" / kl["folder"] / kl["null"]["folder"] / "manifest.json").is_file()
    assert kl["n_claimed"] > 0
    assert (spectrum["null"], spectrum["n_claimed"]) == (None, None)
    assert made["summary"][1].startswith("kl claims something that the null (the base model with a generic finetune")
    assert "No null pair was run for weight_spectrum" in made["summary"][-1]
    claimed = {t.token for t in Result(by_method(out)["kl"]).evidence().tokens if t.claimed}
    told = [f for f in made["findings"] if f["claimed_by"]]
    assert all(f["claimed_by"] == ["kl"] for f in told)
    assert {form for f in told for form in f["forms"]} >= {t.strip(" ") or t for t in claimed}
    assert "claimed" in (out / "results" / "base" / "adapter" / "report.md").read_text(encoding="utf-8")
