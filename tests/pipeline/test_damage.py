"""Results that were damaged on disk: a sentence names the file and how to make it anew."""

import json
import shutil

import pytest

import diffing
from workbench import manifest, run_folder


@pytest.fixture(scope="module")
def finished(bench, tmp_path_factory):
    """An output folder with one finished run; copied by each test."""
    from diffing.cli import main

    out = tmp_path_factory.mktemp("finished")
    assert main(bench.command(out)) == 0
    return out


@pytest.fixture
def out(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "out")


def flip(path, at=None):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if at is None else at] ^= 0x40
    path.write_bytes(raw)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 1}', '{"schema": "one"}', "\x00\x01"], ids=repr)
def test_a_corrupt_manifest(command, bench, out, content):
    path = run_folder(out) / "manifest.json"
    path.write_text(content)
    command(bench.command(out)).sentence(str(path), "overwrite=true")
    if content == "{":
        command(bench.command(out, "overwrite=true")).done()
        assert manifest(run_folder(out))["method"] == "kl"
        command(bench.command(out)).done()


@pytest.mark.parametrize(
    "broken", [{"pair": "x"}, {"pair": {}}, {"data": []}, {"versions": "0.1"}, {"notes": None}], ids=repr
)
def test_a_manifest_of_another_shape(command, bench, out, broken):
    path = run_folder(out) / "manifest.json"
    path.write_text(json.dumps({**manifest(run_folder(out)), **broken}))
    command(bench.command(out)).sentence(str(path), "overwrite=true")


def test_a_newer_manifest(command, bench, out):
    path = run_folder(out) / "manifest.json"
    path.write_text(json.dumps({**manifest(run_folder(out)), "schema": 99}))
    command(bench.command(out)).sentence(str(path), "99")


@pytest.mark.parametrize(
    ("name", "how"),
    [("datasets", "truncated"), ("examples", "flipped"), ("risen_fallen", "empty"), ("positions", "flipped")],
)
def test_a_corrupt_table(command, bench, out, name, how):
    path = run_folder(out) / "tables" / f"{name}.parquet"
    if how == "flipped":
        flip(path)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if how == "truncated" else b"")
    command(bench.command(out)).sentence(str(path), "overwrite=true")


def test_a_missing_table(command, bench, out):
    (run_folder(out) / "tables" / "datasets.parquet").unlink()
    command(bench.command(out)).sentence("datasets", "overwrite=true")


@pytest.mark.parametrize("name", ["summary.json", "evidence.json", "figures/distribution.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_other_files_that_a_report_reads(command, bench, out, name, content):
    path = run_folder(out) / name
    path.write_text(content)
    command(bench.command(out, "pipeline.mode=report")).sentence(str(path), "overwrite=true")


def test_a_missing_figure(command, bench, out):
    path = run_folder(out) / "figures" / "distribution.json"
    path.unlink()
    command(bench.command(out, "pipeline.mode=report")).sentence(str(path), "overwrite=true")


def test_a_corrupt_result_does_not_hide_the_others(command, bench, out):
    command(bench.command(out, finetuned=bench.full)).done()
    good, bad = sorted(out.glob("results/*/*/kl/*"), key=lambda p: p.parent.parent.name != "full")
    for content in ("{", json.dumps({**manifest(bad), "pair": "x"}), json.dumps({**manifest(good), "created": 5})):
        (bad / "manifest.json").write_text(content)
        results = diffing.open_results(out)
        assert [r.folder for r in results.find()] == [good]
        (sentence,) = results.broken().values()
        assert str(bad / "manifest.json") in sentence


@pytest.mark.slow
def test_a_corrupt_state_does_not_stop_a_rerun(command, bench, out):
    folder = run_folder(out)
    (folder / "manifest.json").unlink()
    for content in ("{", "[]", "null", '{"status": "running", "heartbeat": "soon"}', "\x00"):
        (folder / "state.json").write_text(content)
        command(bench.command(out)).done()
        (folder / "manifest.json").unlink()


def test_a_partial_folder_that_is_a_file(command, bench, out):
    folder = run_folder(out)
    (folder / "manifest.json").unlink()
    (folder / "partial").write_text("in the way")
    outcome = command(bench.command(out))
    if outcome.code:
        outcome.sentence(str(out))
