"""SIGKILL at random moments of a harvest: whole shards or none, no manifest too early, the same bytes at the end."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from workbench import environment, sentences, write_jsonl

N_KILLS = 20
LONGEST = 60.0
SLOTS = ("layer_00/residual", "layer_02/mlp")

# Imports once, then forks a process for each command line that it reads; tells its number, and how it ended.
SERVER = """
import json, os, sys
import transformers, peft
from diffing.cli import main
import diffing.activations.harvest, diffing.pipeline.running, diffing.methods.kl

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 99
        try:
            code = main(json.loads(line))
        finally:
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Harvests:
    """Processes that harvest, one after the other; `folder` is where their only cache lies."""

    def __init__(self, base_dir, args, log):
        self.base_dir, self._args = base_dir, args
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], env=environment(PYTHONDONTWRITEBYTECODE="1"), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1,
        )  # fmt: skip

    def start(self):
        """The number of a process that begins."""
        self._server.stdin.write(json.dumps(self._args) + "\n")
        return int(self._server.stdout.readline())

    def code(self):
        """How the process ended, when it has."""
        return int(self._server.stdout.readline())

    def close(self):
        self._server.stdin.close()
        self._server.wait(30)

    def shards(self):
        return set(self.base_dir.glob("activations/*/*/layer_*/*/shard_*"))

    def claimed(self):
        return set(self.base_dir.glob("activations/*/*/state.json"))


def wait_for_more(found, before, pid):
    """Until `found()` holds something that `before` does not, or the process has ended."""
    until = time.monotonic() + LONGEST
    while time.monotonic() < until and not found() - before and is_running(pid):
        time.sleep(0.001)


def is_running(pid):
    """Whether the process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def contents(folder):
    """Bytes of every file."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_kills_at_random_moments(bench, tmp_path):
    data = write_jsonl(tmp_path / "many.jsonl", sentences(120))
    options = [
        "pipeline.mode=preprocessing", "preprocessing.layers=[0]", "preprocessing.shard_tokens=64",
        "preprocessing.batch_tokens=128", "diffing/method=normdiff", "diffing.method.layers=[2]",
        "diffing.method.sites=[mlp]",
    ]  # fmt: skip
    with open(tmp_path / "log", "w") as log:
        reference = Harvests(tmp_path / "whole", bench.command(tmp_path / "whole", *options, data=data), log)
        pid = reference.start()
        wait_for_more(reference.shards, set(), pid)
        started = time.monotonic()
        assert reference.code() == 0
        took = time.monotonic() - started
        reference.close()
        folder = next((tmp_path / "whole").glob("activations/*/*"))
        whole = contents(folder)
        assert all(f"{slot}/manifest.json" in whole for slot in SLOTS)
        cut = Harvests(tmp_path / "cut", bench.command(tmp_path / "cut", *options, data=data), log)
        counts, places = kill_often(cut, whole, took)
        assert places >= {"unfinished", "nothing new"}
        assert len(counts) >= 5, counts
        cut.start()
        assert cut.code() == 0, (tmp_path / "log").read_text()[-3000:]
        cut.close()
    (ended,) = (tmp_path / "cut").glob("activations/*/*")
    assert ended.relative_to(tmp_path / "cut") == folder.relative_to(tmp_path / "whole")
    assert contents(ended) == whole


def kill_often(cut, whole, took):
    """Numbers of whole shards that kills left behind, and what kinds of places they hit; a harvest that ends in
    time is begun afresh."""
    random_moments = random.Random(0)
    counts, places, n_kills = set(), set(), 0
    while n_kills < N_KILLS:
        before = cut.shards()
        pid = cut.start()
        if n_kills % 4 == 3:
            wait_for_more(cut.claimed, set(), pid)
        else:
            wait_for_more(cut.shards, before, pid)
        time.sleep(random_moments.uniform(0, took / 6))
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)
        code = cut.code()
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            shutil.rmtree(cut.base_dir)
            continue
        n_kills += 1
        counts.add(len(cut.shards()))
        places.add("unfinished" if cut.shards() - before else "nothing new")
        check(cut, whole)
    return counts, places


def check(cut, whole):
    """What a killed process leaves: files of their final names are whole, and a manifest means that all is there."""
    for folder in cut.base_dir.glob("activations/*/*"):
        left = {k: v for k, v in contents(folder).items() if not k.endswith((".tmp", "state.json", ".lock"))}
        for name, value in left.items():
            assert value == whole[name], f"{name} differs after a kill"
        for slot in SLOTS:
            if f"{slot}/manifest.json" in left:
                assert {k for k in whole if k.startswith(slot)} == {k for k in left if k.startswith(slot)}
