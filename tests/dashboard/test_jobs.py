"""Runs asked for in the browser: real processes, most of them small ones that only pretend to compute."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from visiting import fine, sentence, spoken, unescaped, whole

from diffing.core.errors import UserError
from diffing.dashboard import jobs
from diffing.dashboard.catalog import Catalog
from diffing.dashboard.jobs import cancel, command_of, is_alive, progress, start
from diffing.dashboard.pages import runs as runs_page
from workbench import ROOT

WAIT = """
import pathlib, sys, time
def wait(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.02)
"""
UNTIL_GO = f"{WAIT}wait('go')\n"
BAR = """
from diffing.core.progress import bar, say
say('Reading texts.')
wait('one')
with bar('Reading: both', 200, 'tokens') as advance:
    advance(71)
    wait('two')
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))


@pytest.fixture
def begin(tmp_path):
    """Starts `python -c CODE` as a job; what still runs at the end is ended."""
    begun = []

    def call(code, base_dir=None):
        job = start([sys.executable, "-c", code], "python main.py", base_dir or tmp_path / "out")
        begun.append((job, jobs._children[job.id]))
        return job

    yield call
    for _, child in begun:
        if child.poll() is None:
            child.kill()
        child.wait(10)


@pytest.fixture
def another_server():
    """As if the server that started the jobs were gone: their processes are no children of this one."""
    return jobs._children.clear


def until(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def ended(job):
    until(lambda: progress(job).state != "running")
    return progress(job)


def test_the_lines_of_a_progress_bar_are_read(begin):
    job = begin(WAIT + BAR)
    until(lambda: progress(job).title == "Reading texts.")
    assert progress(job).share is None
    Path("one").touch()
    until(lambda: progress(job).share is not None)
    assert progress(job).title == "Reading: both"
    assert progress(job).share == 0.3
    assert progress(job).state == "running"
    Path("two").touch()
    assert ended(job).state == "done"


def test_before_the_first_line(begin):
    job = begin(UNTIL_GO)
    assert progress(job) == jobs.Progress("running", "Starting …", None, ())
    Path("go").touch()


def test_a_job_that_made_results(begin, tmp_path):
    folders = [tmp_path / "out/results/m/o/kl/0a", tmp_path / "out/results/m/o/normdiff/0b"]
    found = ended(begin("".join(f"print('Report: {f}/report.html')\n" for f in folders)))
    assert (found.state, found.title, found.share, found.results) == ("done", "Done.", 1.0, tuple(folders))


@pytest.mark.parametrize(
    ("code", "title"),
    [
        ("import sys; print('more'); sys.exit('error: Set model.id=DIR: there is none.')", "Set model.id=DIR"),
        ("import sys; print('half way'); sys.exit(3)", "It ended with code 3: half way"),
        ("import sys; sys.exit(1)", "It ended with code 1: it wrote nothing"),
        ("import os; os.kill(os.getpid(), 9)", "It ended with code -9: it wrote nothing"),
    ],
)
def test_a_job_that_failed(code, title, begin):
    found = ended(begin(code))
    assert found.state == "failed"
    assert found.title.startswith(title)


def test_it_is_found_again_by_another_server(begin, another_server, tmp_path):
    job = begin(UNTIL_GO + "print('Report: r/m/o/kl/0a/report.html')")
    another_server()
    (found,) = jobs.jobs(tmp_path / "out")
    assert found == job
    assert progress(found).state == "running"
    Path("go").touch()
    assert ended(found).results == (Path("r/m/o/kl/0a"),)


@pytest.mark.parametrize(
    ("code", "title"),
    [("sys.exit('error: The disk is full.')", "The disk is full."), ("sys.exit(1)", "It ended: it wrote nothing")],
)
def test_another_server_sees_that_it_failed(code, title, begin, another_server):
    job = begin(UNTIL_GO + code)
    another_server()
    Path("go").touch()
    found = ended(job)
    assert (found.state, found.title) == ("failed", title)


@pytest.mark.parametrize("is_same_server", [True, False])
def test_cancelling_is_an_interruption(is_same_server, begin, another_server):
    code = (
        "try:\n    print('begun', flush=True)\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('cleaned up')"
    )
    job = begin("import time\n" + code)
    until(lambda: progress(job).lines == ("begun",))
    if not is_same_server:
        another_server()
    cancel(job)
    found = progress(job)
    assert (found.state, found.lines) == ("cancelled", ("begun", "cleaned up"))
    assert not is_alive(job)


def test_a_job_that_does_not_listen_is_ended_with_its_children(begin, monkeypatch):
    monkeypatch.setattr(jobs, "_GRACE_SECONDS", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code = (
        f"import subprocess, sys\n{deaf}child = subprocess.Popen([sys.executable, '-c', {deaf + 'time.sleep(60)'!r}])\n"
    )
    job = begin(code + "print(child.pid, flush=True)\ntime.sleep(60)")
    until(lambda: progress(job).lines)
    child = int(progress(job).lines[0])
    cancel(job)
    assert progress(job).state == "cancelled"
    until(lambda: not is_running(child))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_another_process_with_its_number_is_left_alone(begin, another_server):
    job = begin("print('error: over.')")
    ended(job)
    another_server()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        path = job.folder / "job.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "pid": stranger.pid}))
        (found,) = jobs.jobs(job.folder.parents[1])
        assert found.pid == stranger.pid
        assert progress(found).state == "failed"
        cancel(found)
        assert stranger.poll() is None
        assert progress(found).state == "failed"
    finally:
        stranger.kill()
        stranger.wait()


def test_cancelling_what_is_over_changes_nothing(begin):
    job = begin("print('Report: r/m/o/kl/0a/report.html')")
    before = ended(job)
    cancel(job)
    assert progress(job) == before
    assert before.state == "done"


def test_no_shell_reads_the_command(tmp_path):
    words = ["$(touch a)", "; touch b", "`touch c`"]
    job = start([sys.executable, "-c", "import sys; print(sys.argv[1:])", *words], "x", tmp_path / "out")
    assert ended(job).lines == (str(words),)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_command_can_be_typed():
    words, shown = command_of(Path("/x/main.py"), ["organism=caps", "model.id=/a b/c", "x=$(y)"])
    assert words == [sys.executable, "/x/main.py", "organism=caps", "model.id=/a b/c", "x=$(y)"]
    assert shlex.split(shown) == ["python", "main.py", *words[2:]]


def test_only_the_end_of_a_long_log_is_read(begin):
    found = ended(begin("for i in range(100_000): print('line', i)\nprint('ü' * 9000)\nprint('last')"))
    assert found.lines[-1] == "last"
    assert sum(map(len, found.lines)) < 10_000


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"infrastructure\.storage\.base_dir"):
        start([sys.executable, "-c", "pass"], "x", tmp_path / "file")


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be started"):
        start([str(tmp_path / "no-python")], "x", tmp_path / "out")


def test_newest_first_and_what_is_not_whole_is_left_out(tmp_path):
    whole = {"command": "c", "started": "2026", "pid": 1}
    for name, content in {
        "20260101-a": json.dumps(whole), "20260301-b": json.dumps(whole), "20260201-c": json.dumps(whole),
        "20260401-d": "{", "20260402-e": '{"pid": 1}', "20260403-f": "[]",
    }.items():  # fmt: skip
        (tmp_path / "dashboard" / name).mkdir(parents=True)
        (tmp_path / "dashboard" / name / "job.json").write_text(content)
    assert [j.id for j in jobs.jobs(tmp_path)] == ["20260301-b", "20260201-c", "20260101-a"]
    assert jobs.jobs(tmp_path / "missing") == []
    assert progress(jobs.jobs(tmp_path)[0]).state == "failed"


def test_the_overview_shows_it_going_on_and_cancels_it(begin, visit, tmp_path):
    job = begin("import time; print('Reading <b>texts</b>: 40 % of 10 tokens', flush=True); time.sleep(60)")
    until(lambda: progress(job).share == 0.4)
    app = fine(visit(tmp_path / "out"))
    (bar,) = app.get("progress")
    assert (bar.value, unescaped(bar.proto.text)) == (40, "Reading <b>texts</b>")
    app.button(key=f"cancel-{job.id}").click()
    assert "Cancelled" in fine(app.run()).warning[0].value
    assert not is_alive(job)


def test_the_overview_says_how_it_ended(begin, visit, tmp_path):
    ended(begin("import sys; sys.exit('error: No *space* is left.')"))
    (error,) = whole(visit(tmp_path / "out")).error
    assert unescaped(error.value).split("\n") == ["python main.py  ", "No *space* is left."]
    run = "tiny/caps/kl/0a"
    ended(begin(f"print('Report: {tmp_path}/out/results/{run}/report.html')"))
    app = visit(tmp_path / "out")
    assert "Done." in unescaped(app.success[0].value)
    assert f"Open {run}" in spoken(app)


def test_the_form_starts_what_it_shows(visit, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(runs_page, "start", lambda *arguments: begun.append(arguments))
    app = visit(tmp_path / "out", "overview", "seed=3")
    app.button(key="run_start").click()
    fine(app.run())
    ((words, shown, base_dir),) = begun
    assert words[:2] == [sys.executable, str(ROOT / "main.py")]
    assert shlex.split(shown)[2:] == words[2:]
    assert "seed=3" in words
    assert base_dir == tmp_path / "out"


def test_an_output_folder_that_cannot_be_written_is_said_on_the_page(visit, tmp_path):
    (tmp_path / "file").write_text("")
    app = visit(tmp_path / "file")
    app.button(key="run_start").click()
    sentence(app.run(), "infrastructure.storage.base_dir")


@pytest.mark.slow
def test_a_real_run_ends_in_the_catalog(bench, tmp_path):
    base_dir = tmp_path / "out"
    overrides = bench.command(base_dir, "diffing/method=kl", "data.max_samples=4")
    job = start(*command_of(ROOT / "main.py", overrides), base_dir)
    until(lambda: progress(job).state != "running", 180)
    found = progress(job)
    assert found.state == "done", found
    (entry,) = Catalog(base_dir).entries()
    assert found.results == (entry.folder,)
    assert (entry.status, entry.method, entry.organism) == ("done", "kl", "adapter")
    assert os.path.samefile(job.folder.parents[1], base_dir)
