"""Runs that are stopped: Ctrl-C, SIGKILL, and another process at work in the same folder."""

import json
import signal
import time

import pytest
import torch

from diffing.core.runs import RunState, run_status
from workbench import assert_same_tables, run_folder, sentences, start, write_jsonl


@pytest.fixture(scope="module")
def long(bench, tmp_path_factory):
    """Options of a run that reads for some seconds in many units."""
    data = write_jsonl(tmp_path_factory.mktemp("long") / "long.jsonl", sentences(500))
    more = ["preprocessing.batch_tokens=16", "data.max_length=24", "infrastructure.threads=1"]
    return lambda base_dir: bench.command(base_dir, *more, data=data)


@pytest.fixture(autouse=True, scope="module")
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(long, tmp_path_factory):
    """The run folder of a run that nothing stopped."""
    from diffing.cli import main

    base_dir = tmp_path_factory.mktemp("whole")
    assert main(long(base_dir)) == 0
    return run_folder(base_dir)


def stop_while_reading(args, cwd, how, meanwhile=lambda: None):
    """Start a run, wait until some units are done, and stop it; returns exit code and stderr."""
    process = start(args, cwd)
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "reading both models: 10 %" in line:
            break
    meanwhile()
    process.send_signal(how)
    _, rest = process.communicate(timeout=60)
    return process.returncode, "".join(seen) + rest


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_whole(command, long, whole, tmp_path):
    out = tmp_path / "out"
    second = []
    code, err = stop_while_reading(long(out), tmp_path, signal.SIGINT, lambda: second.append(command(long(out))))
    second[0].sentence("Another process", str(run_folder(out)))
    assert code == 130, err
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("Interrupted")
    assert "same command" in last
    folder = run_folder(out)
    kept = {p.name: p.stat().st_mtime_ns for p in (folder / "partial").iterdir()}
    assert kept
    assert run_status(folder) == ("interrupted", "stopped by the user")
    assert not (folder / "manifest.json").exists()
    outcome = command(long(out)).done()
    assert "Going on" in outcome.err
    assert_same_tables(folder, whole)
    assert not (folder / "state.json").exists()


@pytest.mark.slow
def test_a_killed_run_is_interrupted_and_goes_on(command, long, whole, tmp_path):
    out = tmp_path / "out"
    code, _ = stop_while_reading(long(out), tmp_path, signal.SIGKILL)
    assert code == -signal.SIGKILL
    folder = run_folder(out)
    assert json.loads((folder / "state.json").read_text())["status"] == "running"
    assert run_status(folder)[0] == "interrupted"
    (folder / "partial" / "unit_0000.safetensors").write_bytes(b"cut short")
    outcome = command(long(out)).done()
    assert "Going on" in outcome.err
    assert_same_tables(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("overwrite=true",)], ids=["plain", "overwrite"])
def test_two_processes_on_one_folder(command, bench, tmp_path, more):
    out = tmp_path / "out"
    command(bench.command(out)).done()
    folder = run_folder(out)
    (folder / "manifest.json").unlink()
    (folder / "partial").mkdir()
    (folder / "partial" / "kept").write_text("of the other process")
    with RunState(folder):
        command(bench.command(out, *more)).sentence("Another process", str(folder))
        assert (folder / "partial" / "kept").exists()
        assert run_status(folder)[0] == "running"
    command(bench.command(out, *more)).done()


def test_a_heartbeat_that_stopped(tmp_path):
    state = {"schema": 1, "status": "running", "pid": 1, "host": "another-host", "heartbeat": time.time() - 61}
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert run_status(tmp_path)[0] == "interrupted"
    (tmp_path / "state.json").write_text(json.dumps({**state, "heartbeat": time.time() - 5}))
    assert run_status(tmp_path)[0] == "running"
