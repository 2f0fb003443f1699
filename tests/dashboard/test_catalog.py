"""Which runs there are and in what state, from made-up folders and from a run whose inputs change afterwards."""

import json
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from diffing.core.method import load_method
from diffing.core.runs import SCHEMA
from diffing.dashboard import catalog as catalog_module
from diffing.dashboard.catalog import Catalog, newest
from workbench import write_jsonl

OPTIONS = {"name": "kl", **load_method("kl").config(name="kl").model_dump(exclude={"name"})}


def manifest(model="tiny", organism="caps", variant="default", method="kl", day=1, **changes):
    """A manifest as a finished run writes it, as far as a list of runs looks at it."""
    content = {
        "schema": SCHEMA,
        "method": method,
        "created": datetime(2026, 1, day, tzinfo=UTC).isoformat(),
        "seed": 0,
        "fingerprint": "ab12",
        "wall_seconds": 1.5,
        "peak_memory_bytes": 1000,
        "facts": {},
        "notes": [],
        "config": {"diffing": {"method": OPTIONS}, "null_pair": "none", "data": {"path": None}},
        "pair": {
            "model": model, "organism": organism, "variant": variant, "base_id": "org/tiny", "finetuned_id": "org/caps",
            "facts": {"base": {"origin": "hub"}, "finetuned": {"origin": "hub"}},
        },
        "data": {"n_tokens": 100, "spec": {"datasets": [{"name": "training", "id": "org/text"}]}},
    }  # fmt: skip
    return {**content, **changes}


def place(base_dir, organism="caps", run="0001", method="kl", model="tiny"):
    folder = base_dir / "results" / model / organism / method / run
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def finished(base_dir, run="0001", scalars=({"name": "mean KL", "value": 0.25, "unit": "nats"},), **values):
    folder = place(base_dir, values.get("organism", "caps"), run, values.get("method", "kl"))
    (folder / "summary.json").write_text(json.dumps({"scalars": scalars}))
    (folder / "manifest.json").write_text(json.dumps(manifest(**values)))
    return folder


def with_state(base_dir, run="0001", **changes):
    folder = place(base_dir, run=run)
    state = {
        "status": "running", "reason": None, "pid": os.getpid(), "host": socket.gethostname(), "heartbeat": time.time()
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps({**state, **changes}))
    return folder


def only(base_dir):
    (entry,) = Catalog(base_dir).entries()
    return entry


def dead_pid():
    done = subprocess.Popen([sys.executable, "-c", "pass"])
    done.wait()
    return done.pid


def test_a_finished_run(tmp_path):
    folder = finished(tmp_path, organism="caps", day=3)
    entry = only(tmp_path)
    assert (entry.id, entry.folder, entry.status, entry.reason) == ("tiny/caps/kl/0001", folder, "done", None)
    assert (entry.model, entry.organism, entry.variant, entry.method) == ("tiny", "caps", "default", "kl")
    assert entry.headline == ("mean KL", 0.25, "nats")
    assert (entry.n_tokens, entry.seed) == (100, 0)
    assert 0 <= entry.when - datetime(2026, 1, 3, tzinfo=UTC).timestamp() < 1
    assert (entry.base_id, entry.finetuned_id, entry.training_id) == ("org/tiny", "org/caps", "org/text")
    assert entry.is_readable
    assert entry.label == "caps"


@pytest.mark.parametrize(
    ("state", "status", "reason"),
    [
        ({}, "running", None),
        ({"host": "another-machine"}, "running", None),
        ({"status": "failed", "reason": "The disk is full."}, "failed", "The disk is full."),
        ({"status": "interrupted", "reason": "stopped by the user"}, "interrupted", "stopped by the user"),
        ({"heartbeat": time.time() - 300}, "interrupted", "it stopped without a word"),
        ({"host": "another-machine", "heartbeat": time.time() - 61}, "interrupted", "it stopped without a word"),
        ({"heartbeat": None}, "interrupted", "it stopped without a word"),
        ({"status": "odd"}, "interrupted", "its state file is not whole"),
    ],
)
def test_a_run_without_a_manifest(state, status, reason, tmp_path):
    with_state(tmp_path, **state)
    entry = only(tmp_path)
    assert (entry.status, entry.reason, entry.is_readable) == (status, reason, False)


def test_a_process_that_is_gone_was_interrupted(tmp_path):
    with_state(tmp_path, pid=dead_pid())
    assert only(tmp_path).status == "interrupted"


def test_a_state_file_that_is_cut_off(tmp_path):
    folder = with_state(tmp_path)
    os.truncate(folder / "state.json", 20)
    assert only(tmp_path).status == "interrupted"


def test_a_folder_with_neither_is_no_run(tmp_path):
    place(tmp_path)
    assert Catalog(tmp_path).entries() == []
    assert Catalog(tmp_path / "missing").entries() == []


def edited(**changes):
    return json.dumps(manifest(**changes))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (edited()[:200], "is corrupt"),
        ("", "is corrupt"),
        ("[]", "is corrupt"),
        ('{"schema": 1}', "is corrupt"),
        (edited(pair={"model": "tiny"}), "pair.organism"),
        (edited(schema=SCHEMA + 1), f"has schema {SCHEMA + 1}"),
        ("\x00\xff", "is corrupt"),
    ],
)
def test_a_damaged_manifest(content, part, tmp_path):
    (place(tmp_path) / "manifest.json").write_text(content)
    entry = only(tmp_path)
    assert (entry.status, entry.is_readable) == ("damaged", False)
    assert part in entry.reason
    assert (entry.organism, entry.method) == ("caps", "kl")


def test_a_damaged_summary_leaves_the_headline_out(tmp_path):
    folder = finished(tmp_path)
    os.truncate(folder / "summary.json", 5)
    entry = only(tmp_path)
    assert (entry.status, entry.headline) == ("done", None)


def test_a_summary_without_numbers(tmp_path):
    finished(tmp_path, scalars=[])
    assert only(tmp_path).headline is None


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({k: v for k, v in OPTIONS.items() if k != "top_k"}, "top_k is new"),
        ({**OPTIONS, "smoothing": 0.1}, "smoothing is gone"),
    ],
)
def test_options_that_came_or_went_make_a_result_stale(options, part, tmp_path):
    finished(tmp_path, config={"diffing": {"method": options}})
    entry = only(tmp_path)
    assert (entry.status, entry.is_readable) == ("stale", True)
    assert part in entry.reason


def test_a_method_that_is_gone_makes_a_result_stale(tmp_path):
    finished(tmp_path, method="gone")
    assert only(tmp_path).status == "stale"
    assert "gone is not installed" in only(tmp_path).reason


def test_an_older_schema_makes_a_result_stale(tmp_path):
    finished(tmp_path, schema=SCHEMA - 1)
    assert (only(tmp_path).status, f"schema {SCHEMA - 1}" in only(tmp_path).reason) == ("stale", True)


def local(adapter, **changes):
    pair = {**manifest()["pair"], "finetuned_id": str(adapter), "facts": {"finetuned": {"origin": "local"}}}
    return {"pair": pair, "created": datetime.now(UTC).isoformat(timespec="seconds"), **changes}


def later(path, seconds=60):
    at = time.time() + seconds
    os.utime(path, (at, at))


def test_changed_weights_make_a_result_stale(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"a")
    finished(tmp_path, **local(adapter))
    catalog = Catalog(tmp_path)
    assert [e.status for e in catalog.entries()] == ["done"]
    (adapter / "notes.md").write_text("not read by anyone")
    later(adapter / "notes.md")
    assert [e.status for e in catalog.entries()] == ["done"]
    later(adapter / "adapter_model.safetensors")
    (entry,) = catalog.entries()
    assert (entry.status, entry.is_readable) == ("stale", True)
    assert entry.reason == f"Files of the finetuned model {adapter} have changed since this run."


def test_inputs_that_are_gone_leave_a_result_as_it_is(tmp_path):
    finished(tmp_path, **local(tmp_path / "deleted"))
    assert only(tmp_path).status == "done"


@pytest.mark.parametrize("source", ["texts", "texts/some.jsonl"], ids=["folder", "file"])
@pytest.mark.parametrize("name", ["custom", "training", "chats"])
def test_a_changed_text_makes_a_result_stale(name, source, tmp_path):
    (tmp_path / "texts").mkdir()
    file, text = write_jsonl(tmp_path / "texts" / "some.jsonl", [{"text": "a"}]), tmp_path / source
    data = {"n_tokens": 1, "spec": {"datasets": [{"name": "web", "id": "org/web"}, {"name": name, "id": str(text)}]}}
    finished(tmp_path, **local(tmp_path / "deleted", data=data))
    assert only(tmp_path).status == "done"
    later(file)
    assert only(tmp_path).reason == f"Files of the text {text} have changed since this run."


def test_a_real_run_turns_stale_when_its_adapter_changes(copied, bench, tmp_path, runs):
    catalog = Catalog(copied)
    assert {e.status for e in catalog.entries()} == {"done"}
    for method in ("kl", "normdiff"):
        path = copied / "results" / runs("adapter", method) / "manifest.json"
        path.write_text(path.read_text().replace(str(bench.adapter), str(tmp_path / "adapter")))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    later(tmp_path / "adapter" / "adapter_config.json")
    stale = {e.id for e in catalog.entries() if e.status == "stale"}
    assert stale == {runs("adapter", "kl"), runs("adapter", "normdiff")}


def test_newest_first(tmp_path):
    for day in (2, 5, 1, 4):
        finished(tmp_path, run=f"000{day}", day=day)
    with_state(tmp_path, run="0009")
    assert [Path(e.id).name for e in Catalog(tmp_path).entries()] == ["0009", "0005", "0004", "0002", "0001"]


def test_the_newest_that_fits_is_one_that_can_be_read(tmp_path):
    finished(tmp_path, run="0001", day=1)
    finished(tmp_path, run="0002", day=2, seed=1)
    finished(tmp_path, run="0003", day=3, organism="other")
    with_state(tmp_path, run="0009")
    entries = Catalog(tmp_path).entries()
    assert newest(entries, organism="caps").id.endswith("0002")
    assert newest(entries, status="running").id.endswith("0009")
    assert newest(entries, organism="nothing") is None


def test_only_what_changed_is_read_again(tmp_path, monkeypatch):
    folders = [finished(tmp_path, run=f"{i:04}", day=i) for i in range(1, 6)]
    read, result = [], catalog_module.Result
    monkeypatch.setattr(catalog_module, "Result", lambda folder: read.append(folder) or result(folder))
    catalog = Catalog(tmp_path)
    first = catalog.entries()
    assert sorted(read) == folders
    read.clear()
    assert catalog.entries() == first
    assert read == []
    (folders[2] / "manifest.json").write_text(json.dumps(manifest(day=9)))
    assert catalog.entries()[0].folder == folders[2]
    assert read == [folders[2]]
    read.clear()
    (folders[3] / "summary.json").write_text(json.dumps({"scalars": [{"name": "n", "value": 1.5, "unit": ""}]}))
    assert {e.folder: e.headline.value for e in catalog.entries()}[folders[3]] == 1.5
    (folders[0] / "manifest.json").unlink()
    assert folders[0] not in {e.folder for e in catalog.entries()}


def test_a_run_that_ends_is_seen_as_done(tmp_path):
    folder = with_state(tmp_path)
    catalog = Catalog(tmp_path)
    assert catalog.entries()[0].status == "running"
    finished(tmp_path)
    (folder / "state.json").unlink()
    assert catalog.entries()[0].status == "done"


def test_three_hundred_runs(tmp_path):
    for i in range(300):
        finished(tmp_path, run=f"{i:04}", organism=f"o{i % 30}", day=i % 28 + 1)
    catalog = Catalog(tmp_path)
    entries = catalog.entries()
    assert len({e.id for e in entries}) == 300
    start = time.perf_counter()
    assert catalog.entries() == entries
    assert time.perf_counter() - start < 1


ODD = ["caps and spaces", "ünïcode·名前", "a+b", "<b>x</b>", "-rf", "%2e%2e", "a&b=c?d#e", "q'u\"o`te", "*[x]?"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names(name, tmp_path):
    folder = place(tmp_path, name.replace("/", "_"), model=name.replace("/", "_"))
    (folder / "manifest.json").write_text(json.dumps(manifest(organism=name, variant="loud")))
    entry = only(tmp_path)
    assert (entry.status, entry.organism, entry.label) == ("done", name, f"{name} · loud")
    assert tmp_path / "results" / entry.id == folder


def test_files_and_hidden_folders_beside_runs_are_passed_over(tmp_path):
    finished(tmp_path)
    (tmp_path / "results" / "tiny" / "README.md").write_text("notes")
    (tmp_path / "results" / "tiny" / "caps" / ".hydra" / "x").mkdir(parents=True)
    (tmp_path / "results" / "multirun.yaml").write_text("")
    assert len(Catalog(tmp_path).entries()) == 1


def test_runs_of_one_second_are_ordered_by_their_files(tmp_path):
    created = datetime(2026, 1, 3, tzinfo=UTC).timestamp()
    for organism, later in (("a", 0.7), ("b", 0.2)):
        folder = finished(tmp_path, organism=organism, day=3)
        os.utime(folder / "manifest.json", (created + later, created + later))
    assert [e.organism for e in Catalog(tmp_path).entries()] == ["a", "b"]
    os.utime(tmp_path / "results" / "tiny" / "b" / "kl" / "0001" / "manifest.json", (created + 0.9, created + 0.9))
    assert [e.organism for e in Catalog(tmp_path).entries()] == ["b", "a"]
