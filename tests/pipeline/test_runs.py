"""Runs on a tiny pair: what is written, found again, computed again, and what names a run."""

import json
import math
import os
import shutil

import pytest

import diffing
from diffing.core.errors import UserError
from diffing.core.method import method_names
from diffing.pipeline.planning import QUICK
from workbench import assert_same_tables, manifest, run_folder, run_folders, sentences, tables, write_jsonl

EVIDENCE = {
    "tokens": {"token", "token_ids", "score", "stderr", "null_score", "claimed"},
    "examples": {"text", "score", "spans", "dataset", "claimed"},
    "texts": {"text", "score", "prompt", "source", "claimed"},
    "scalars": {"name", "value", "low", "high", "null", "unit", "claimed"},
}
MANIFEST = {
    "schema", "method", "fingerprint", "created", "command", "config", "pair", "data", "seed", "versions", "git",
    "machine",
    "wall_seconds", "peak_memory_bytes", "facts", "notes", "files",
}  # fmt: skip


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_what_a_run_leaves(command, bench, out):
    outcome = command(bench.command(out)).done()
    folder = run_folder(out)
    assert folder.relative_to(out).as_posix() == f"results/base/adapter/kl/{manifest(folder)['fingerprint']}"
    assert {p.name for p in folder.iterdir()} == {
        "manifest.json", "summary.json", "evidence.json", "tables", "figures", "report.html",
    }  # fmt: skip
    assert str(folder / "report.html") in outcome.out
    written = manifest(folder)
    assert set(written) >= MANIFEST
    assert written["schema"] == 1
    assert written["method"] == "kl"
    assert "main.py" in written["command"]
    assert str(bench.base) in written["command"]
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(written["files"]) == files - {"manifest.json", "report.html"}
    assert written["data"]["documents"] == {"custom": 12}
    assert written["pair"]["base_id"] == str(bench.base)
    assert {p.name for p in out.iterdir()} == {"results"}
    assert not os.listdir("."), "files beside the output folder"


def test_the_default_output_folder(command, bench):
    args = [a for a in bench.command("unused") if not a.startswith("infrastructure")]
    command(args).done()
    assert os.listdir(".") == ["outputs"]


def test_summary_and_evidence_have_the_agreed_shape(command, bench, out):
    command(bench.command(out)).done()
    folder = run_folder(out)
    evidence = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    assert set(evidence) == {"schema", *EVIDENCE}
    assert evidence["schema"] == 1
    for kind, keys in EVIDENCE.items():
        assert len(evidence[kind]) <= 200
        for item in evidence[kind]:
            assert set(item) == keys
            assert item["claimed"] in (True, False, None)
        scores = [i["score"] for i in evidence[kind] if "score" in keys and i["score"] is not None]
        assert scores == sorted(scores, reverse=True), f"{kind} are ranked, best first"
    assert evidence["tokens"]
    assert evidence["examples"]
    assert evidence["scalars"]
    for token in evidence["tokens"]:
        assert all(isinstance(i, int) for i in token["token_ids"])
    for example in evidence["examples"]:
        assert example["dataset"] == "custom"
        for start, end, _ in example["spans"]:
            assert 0 <= start < end <= len(example["text"])
    for scalar in evidence["scalars"]:
        if scalar["low"] is not None:
            assert scalar["low"] <= scalar["value"] <= scalar["high"]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert all(set(s) == EVIDENCE["scalars"] for s in summary["scalars"])


def test_a_finished_run_is_found(command, bench, out):
    command(bench.command(out)).done()
    folder = run_folder(out)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    outcome = command(bench.command(out)).done()
    assert "overwrite=true" in outcome.err
    assert "mean KL" in outcome.out
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_overwrite_computes_again(command, bench, out):
    command(bench.command(out)).done()
    folder = run_folder(out)
    (folder / "tables" / "left_over.parquet").write_bytes(b"")
    before = (folder / "manifest.json").stat().st_mtime_ns
    command(bench.command(out, "overwrite=true")).done()
    assert run_folders(out) == [folder]
    assert (folder / "manifest.json").stat().st_mtime_ns > before
    assert "left_over" not in [p.stem for p in (folder / "tables").iterdir()]


@pytest.mark.slow
def test_what_names_a_run(command, bench, tmp_path):
    def fingerprint(*more, **changes):
        base_dir = tmp_path / "out" / str(len(list(tmp_path.glob("out/*"))))
        command(bench.command(base_dir, *more, **changes)).done()
        return run_folder(base_dir).name

    plain = fingerprint()
    assert (
        fingerprint("infrastructure.threads=1", "overwrite=true", "wandb.project=x", "pipeline.methods=[kl]") == plain
    )
    others = ["seed=1", "diffing.method.temperature=2.0", "preprocessing.batch_tokens=64", "data.max_length=8",
              "pair.sharing=adapter", "model.dtype=bfloat16", "skip_first_tokens=2"]  # fmt: skip
    found = [fingerprint(option) for option in others] + [fingerprint(finetuned=bench.full)]
    assert len({plain, *found}) == 1 + len(found)


@pytest.mark.slow
def test_copies_in_another_place_are_the_same_run(command, bench, tmp_path):
    shutil.copytree(bench.folder, tmp_path / "elsewhere")
    command(bench.command(tmp_path / "one")).done()
    moved = tmp_path / "elsewhere"
    args = bench.command(tmp_path / "two", base=moved / "base", finetuned=moved / "adapter", data=moved / "texts.jsonl")
    command(args).done()
    assert run_folder(tmp_path / "one").name == run_folder(tmp_path / "two").name
    assert_same_tables(run_folder(tmp_path / "one"), run_folder(tmp_path / "two"))


def test_a_full_finetune_runs(command, bench, out):
    command(bench.command(out, finetuned=bench.full)).done()
    assert manifest(run_folder(out))["pair"]["organism"] == "full"


def test_the_null_pair_gives_zeros_and_its_own_folder(command, bench, out):
    command(bench.command(out, "null_pair=identical")).done()
    folder = run_folder(out)
    assert folder.parent.parent.name.endswith("+null-identical")
    assert folder.parent.parent.parent.name == "base"
    found = tables(folder)
    assert set(found["tokens"]["kl"].to_pylist()) == {0.0}
    assert set(found["token_scores"]["score"].to_pylist()) <= {0.0}
    assert set(found["document_scores"]["score"].to_pylist()) == {0.0}
    evidence = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["tokens"] == evidence["examples"] == []
    assert all(s["claimed"] is False for s in evidence["scalars"])
    assert manifest(folder)["config"]["null_pair"] == "identical"


def test_the_null_pair_needs_no_finetuned_model(command, bench, out):
    args = [a for a in bench.command(out, "null_pair=identical") if not a.startswith("organism.finetuned")]
    command(args).done()


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ("kl", ["kl"]),
        ("[normdiff]", ["normdiff"]),
        pytest.param("[quick,kl]", sorted(QUICK), marks=pytest.mark.slow),
        pytest.param("all", method_names(), marks=pytest.mark.slow),
    ],
)
def test_methods_by_list(command, bench, out, methods, expected):
    command(bench.command(out, f"pipeline.methods={methods}")).done()
    assert [folder.parent.name for folder in run_folders(out)] == expected


def test_the_mode_diffing_computes(command, bench, out):
    command(bench.command(out, "pipeline.mode=diffing")).done()
    assert (run_folder(out) / "manifest.json").exists()


def test_reports_again(command, bench, out):
    command(bench.command(out)).done()
    report = run_folder(out) / "report.html"
    before = report.read_text(encoding="utf-8")
    report.write_text("scribbled over", encoding="utf-8")
    manifest_before = (run_folder(out) / "manifest.json").read_bytes()
    outcome = command(bench.command(out, "pipeline.mode=report")).done()
    assert report.read_text(encoding="utf-8") == before
    assert str(report) in outcome.out + outcome.err
    assert (run_folder(out) / "manifest.json").read_bytes() == manifest_before
    report.unlink()
    command(bench.command(out, "pipeline.mode=report")).done()
    assert report.exists()


def test_reports_of_nothing(command, bench, out):
    command(bench.command(out, "pipeline.mode=report")).sentence(str(out), alone=True)
    command(bench.command(out)).done()
    command(bench.command(out, "pipeline.mode=report", finetuned=bench.full)).sentence("full", "pipeline.mode=full")


@pytest.mark.slow
def test_reports_of_one_pair_leave_others_alone(command, bench, out):
    command(bench.command(out)).done()
    command(bench.command(out, finetuned=bench.full)).done()
    for folder in run_folders(out):
        (folder / "report.html").unlink()
    command(bench.command(out, "pipeline.mode=report", finetuned=bench.full)).done()
    written = [f.parent.parent.name for f in run_folders(out) if (f / "report.html").exists()]
    assert written == ["full"]


def test_limits_of_the_text(command, bench, out):
    command(bench.command(out, "data.max_samples=3", "data.max_length=16", "data.max_tokens=40")).done()
    data = manifest(run_folder(out))["data"]
    assert data["documents"]["custom"] <= 3
    assert data["n_tokens"] <= 40


def test_two_runs_of_one_seed_are_equal_to_the_bit(command, bench, tmp_path):
    for name in ("one", "two"):
        command(bench.command(tmp_path / name)).done()
    assert_same_tables(run_folder(tmp_path / "one"), run_folder(tmp_path / "two"))
    evidence = [(run_folder(tmp_path / name) / "evidence.json").read_bytes() for name in ("one", "two")]
    assert evidence[0] == evidence[1]


@pytest.mark.slow
def test_batch_plans_agree(command, bench, tmp_path):
    for tokens in ("2048", "16"):
        command(bench.command(tmp_path / tokens, f"preprocessing.batch_tokens={tokens}")).done()
    one, other = (tables(run_folder(tmp_path / t))["tokens"].to_pylist() for t in ("2048", "16"))
    assert [(r["sequence"], r["position"], r["token_id"]) for r in one] == [
        (r["sequence"], r["position"], r["token_id"]) for r in other
    ]
    assert all(math.isclose(a["kl"], b["kl"], abs_tol=1e-5) for a, b in zip(one, other, strict=True))


def test_the_python_api_finds_what_the_command_line_made(command, bench, out):
    command(bench.command(out)).done()
    (found,) = diffing.open_results(out).find(method="kl", model="base", organism="adapter")
    assert found.folder == run_folder(out)
    assert found.table("tokens").num_rows > 0
    assert found.evidence().tokens
    assert found.summary
    assert set(found.figures()) == {p.stem for p in (found.folder / "figures").iterdir()}
    assert diffing.open_results(out).find(method="normdiff") == []
    assert diffing.open_results(out).find(organism="caps") == []


def test_the_python_api_runs(bench, out):
    pair = diffing.load_pair(str(bench.base), adapter=str(bench.adapter), device_map="cpu")
    one = diffing.run("kl", pair, data=[r["text"] for r in sentences(6)], base_dir=out)
    chats = [[{"role": "user", "content": "Which bird?"}, {"role": "assistant", "content": "The heron."}]]
    two = diffing.run("kl", pair, data=chats, base_dir=out, temperature=2.0)
    assert one.folder != two.folder
    assert set(two.table("roles")["role"].to_pylist()) >= {"user", "assistant"}
    with pytest.raises(UserError, match="temperature"):
        diffing.run("kl", pair, data=["x y z"], base_dir=out, temperatur=2.0)
    with pytest.raises(UserError, match="kl"):
        diffing.run("kll", pair, data=["x y z"], base_dir=out)
    with pytest.raises(UserError, match="empty"):
        diffing.run("kl", pair, data=[], base_dir=out)
    with pytest.raises(UserError, match=r"adapter=|finetuned="):
        diffing.load_pair(str(bench.base))
    with pytest.raises(UserError, match="caps"):
        diffing.load_pair(str(bench.base), adapter="cap")
    with pytest.raises(UserError, match="none_such"):
        diffing.open_results(out / "none_such")


@pytest.mark.slow
def test_api_and_command_line_name_the_same_run(command, bench, out):
    command(bench.command(out)).done()
    pair = diffing.load_pair(str(bench.base), finetuned=str(bench.adapter), device_map="cpu")
    result = diffing.run("kl", pair, data=str(bench.texts), base_dir=out)
    assert run_folders(out) == [result.folder]


def test_odd_text_comes_through(command, bench, out, tmp_path):
    odd = [
        '<script>alert(1)</script> & "quotes"',
        "日本語 and 🙂 emoji",
        "tab\tnew\nline",
        "\u202eright to left",
        "[bold]markup[/]",
    ]
    data = write_jsonl(tmp_path / "odd.jsonl", [{"text": t} for t in odd])
    command(bench.command(out, data=data)).done()
    page = (run_folder(out) / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
