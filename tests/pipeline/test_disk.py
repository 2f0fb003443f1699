"""Disks that refuse: a sentence, exit code 2; afterwards the same command goes through, with finished units kept."""

import errno
import os
import shutil
from pathlib import Path

import pytest

import diffing.core.files
from workbench import (
    assert_same_tables,
    limited,
    manifest,
    run_folder,
    run_folders,
    sentences,
    write_jsonl,
)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(scope="module")
def many(bench, tmp_path_factory):
    """Options for a dozen small units of work."""
    data = write_jsonl(tmp_path_factory.mktemp("many") / "many.jsonl", sentences(30))

    def args(base_dir, *more):
        return bench.command(base_dir, "preprocessing.batch_tokens=64", "data.max_length=24", *more, data=data)

    return args


@pytest.fixture(scope="module")
def untroubled(many, tmp_path_factory):
    """The run folder of a run that nothing disturbed, and how many files it flushed."""
    from diffing.cli import main

    base_dir = tmp_path_factory.mktemp("untroubled")
    with pytest.MonkeyPatch.context() as patch:
        disk = FillingDisk(patch, 10**6)
        assert main(many(base_dir)) == 0
    return run_folder(base_dir), disk.flushed


class FillingDisk:
    """Lets `n` files be flushed, then is full; counts what it let through."""

    def __init__(self, monkeypatch, n, error=errno.ENOSPC):
        self.left, self.error, self.flushed = n, error, 0
        self._flush = os.fsync
        monkeypatch.setattr(diffing.core.files.os, "fsync", self)

    def __call__(self, handle):
        if self.left <= 0:
            raise OSError(self.error, os.strerror(self.error))
        self.left -= 1
        self.flushed += 1
        self._flush(handle)


def files(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("partial/*")}


def written(folder):
    """Files below a folder, leaving out what a crashed write may not leave: temporary names."""
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    assert not [n for n in names if n.endswith(".tmp")]
    return names


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none/here", "/dev/null"])
def test_an_output_folder_that_cannot_be(command, bench, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    target = Path(place) if place.startswith("/") else tmp_path / place
    outcome = command(bench.command(target))
    outcome.sentence(str(target), "infrastructure.storage.base_dir=", alone=True)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_file_inside_the_output_folder_in_the_way(command, bench, out):
    out.mkdir()
    (out / "results").write_text("in the way")
    command(bench.command(out)).sentence(str(out), "infrastructure.storage.base_dir=")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_an_output_folder_without_permission(command, bench, out):
    out.mkdir(mode=0o500)
    command(bench.command(out)).sentence(str(out), "not permitted", "infrastructure.storage.base_dir=", alone=True)


def test_permission_refused(command, bench, out, monkeypatch):
    FillingDisk(monkeypatch, 0, errno.EACCES)
    command(bench.command(out)).sentence(str(out), "not permitted")


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6, 0.9, 1.0])
def test_a_disk_that_fills(command, many, untroubled, out, monkeypatch, share):
    """Full from the first write to the last, which is the manifest's; only what lacks is computed afterwards."""
    whole, total = untroubled
    with monkeypatch.context() as patch:
        FillingDisk(patch, round(share * (total - 1)))
        command(many(out)).sentence(str(out), "disk is full", "infrastructure.storage.base_dir=")
    folder = run_folder(out)
    assert "manifest.json" not in written(folder)
    kept = files(folder)
    assert kept or share < 0.3
    with monkeypatch.context() as patch:
        again = FillingDisk(patch, 10**6)
        outcome = command(many(out)).done()
    assert again.flushed == total - len(kept), "finished units are not computed again"
    assert not kept or "unfinished run" in outcome.err
    assert not (folder / "partial").exists()
    assert not (folder / "state.json").exists()
    assert_same_tables(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.7, 0.9, 1.0])
def test_a_full_disk_loses_no_finished_result(command, many, untroubled, out, monkeypatch, share):
    """`overwrite=true` replaces the old result only by a whole new one."""
    whole, total = untroubled
    (out / "results").parent.mkdir()
    folder = out / whole.relative_to(whole.parents[4])
    shutil.copytree(whole, folder)
    created = manifest(folder)["created"]
    with monkeypatch.context() as patch:
        FillingDisk(patch, round(share * (total - 1)))
        command(many(out, "overwrite=true")).sentence("disk is full")
    assert (folder / "manifest.json").exists()
    assert "Found finished" in command(many(out)).done().err
    assert manifest(folder)["created"] == created
    assert_same_tables(folder, whole)


@pytest.mark.slow
def test_a_limit_on_file_size(bench, out, command):
    """A real refusal by the kernel: the report does not fit."""
    args = bench.command(out)

    done = limited(args, 2**20)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: Cannot write to {out}")
    assert files(run_folders(out)[0])
    command(args).done()
    assert len(run_folders(out)) == 1
