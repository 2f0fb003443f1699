"""Results as a reader finds them: tables, tensors, evidence, settings, run folders."""

import dataclasses
import errno
import json
import math
import os
import threading
import time

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from diffing.core import result as result_module
from diffing.core.config import Strict, fingerprint, parse
from diffing.core.errors import UserError, one_line
from diffing.core.evidence import (
    Evidence,
    ExampleEvidence,
    ScalarEvidence,
    Span,
    TokenEvidence,
    read_evidence,
    write_evidence,
)
from diffing.core.files import atomic_path, cache_dir, disk_errors, read_json, sha256, write_json, write_text
from diffing.core.result import Result, Results
from diffing.core.runs import RunKey, RunState, run_status
from diffing.core.seeds import generator
from diffing.core.settings import PipelineConfig
from diffing.core.specs import DataConfig, is_embedded, is_local
from diffing.core.suggest import did_you_mean, nearest
from diffing.core.tables import read_table, rows_of, table_of, write_table


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    n: int
    value: float | None
    values: tuple[float, ...]
    good: bool


def manifest(**changes):
    return {
        "schema": 1, "method": "m", "config": {}, "data": {"n_tokens": 1, "spec": {}},
        "pair": {"model": "a", "organism": "b", "variant": "default", "base_id": "c", "finetuned_id": "d"},
        "seed": 0, "created": "2025-01-01T00:00:00+00:00",
        "fingerprint": "f", "wall_seconds": 1.5, "peak_memory_bytes": 1000, "facts": {}, "notes": [], **changes,
    }  # fmt: skip


def test_rows_come_back_from_parquet(tmp_path):
    rows = [Row("a", 1, 0.5, (1.0, 2.0), True), Row("é\n", -2, None, (), False)]
    write_table(tmp_path / "t.parquet", table_of(Row, rows))
    read = rows_of(Row, read_table(tmp_path / "t.parquet"))
    assert [dataclasses.replace(r, values=tuple(r.values)) for r in read] == rows
    assert table_of(Row, []).schema == table_of(Row, rows).schema


def test_evidence_comes_back_and_unknown_numbers_are_null(tmp_path):
    path = tmp_path / "evidence.json"
    evidence = Evidence(
        tokens=(TokenEvidence("a", (1, 2), 2.0, math.nan, None, None),),
        examples=(ExampleEvidence("text", 1.0, (Span(0, 2, 0.5), Span(2, 4, math.inf)), "chat", False),),
        scalars=(ScalarEvidence("mean", math.nan),),
    )
    write_evidence(path, evidence)
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert raw["tokens"][0]["stderr"] is None
    assert raw["examples"][0]["spans"] == [[0, 2, 0.5], [2, 4, None]]
    assert raw["scalars"][0]["value"] is None
    assert raw["texts"] == []
    read = read_evidence(path)
    assert read.tokens[0].token_ids == (1, 2)
    assert read.examples[0].spans[0] == Span(0, 2, 0.5)


def test_evidence_holds_at_most_two_hundred(tmp_path):
    write_evidence(tmp_path / "e.json", Evidence(tokens=tuple(TokenEvidence(str(i), (i,), -i) for i in range(300))))
    assert len(read_evidence(tmp_path / "e.json").tokens) == 200


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "tokens": 3}'])
def test_corrupt_evidence_is_a_sentence(tmp_path, content):
    (tmp_path / "evidence.json").write_text(content)
    with pytest.raises(UserError, match=r"evidence\.json.*overwrite=true"):
        read_evidence(tmp_path / "evidence.json")


def test_newer_evidence_is_refused(tmp_path):
    (tmp_path / "evidence.json").write_text('{"schema": 2}')
    with pytest.raises(UserError, match="schema 2"):
        read_evidence(tmp_path / "evidence.json")


def test_a_damaged_tensor_file_is_a_sentence(tmp_path):
    path = tmp_path / "tensors" / "tensors.safetensors"
    path.parent.mkdir()
    save_file({"a": torch.arange(1000.0)}, path)
    write_json(tmp_path / "manifest.json", manifest(files={"tensors/tensors.safetensors": sha256(path)}))
    assert Result(tmp_path).tensors()["a"][3] == 3
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for damaged in (whole[: len(whole) // 2], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"tensors\.safetensors.*overwrite=true"):
            Result(tmp_path).tensors()


def test_a_folder_that_is_no_result(tmp_path):
    with pytest.raises(UserError, match="manifest"):
        Result(tmp_path)


def test_results_newest_first(tmp_path):
    for day in ("03", "01", "02"):
        write_json(tmp_path / "results" / day / "manifest.json", manifest(created=f"2025-01-{day}T00:00:00+00:00"))
    assert [r.folder.name for r in Results(tmp_path).find()] == ["03", "02", "01"]
    assert len(Results(tmp_path)) == 3
    assert [r.folder.name for r in Results(tmp_path / "results" / "01")] == ["01"]


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")
    with pytest.raises(FileNotFoundError), atomic_path(path) as temporary:
        temporary.with_name("missing").rename(temporary)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": math.nan})
    assert path.read_text() == "old"


def test_corrupt_json_is_a_sentence(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"a\.json.*mend it"):
        read_json(tmp_path / "a.json", "mend it")
    with pytest.raises(UserError, match="missing"):
        read_json(tmp_path / "b.json", "mend it")


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.ENAMETOOLONG]
)
def test_what_disks_refuse_is_a_sentence(tmp_path, code):
    with pytest.raises(UserError, match=r"do this\.$"), disk_errors(tmp_path, "do this"):
        raise OSError(code, "refused")


def test_other_errors_pass_the_disk_by(tmp_path):
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path, "do this"):
        raise FileNotFoundError(errno.ENOENT, "a bug of ours")


def test_a_run_folder_is_safe_and_readable(tmp_path):
    key = RunKey("../../etc", "a/b c", "mix:1", "kl", "0" * 16)
    folder = key.folder(tmp_path)
    assert tmp_path in folder.resolve().parents
    assert len(folder.relative_to(tmp_path).parts) == 5
    assert RunKey("m", "o", "default", "kl", "f").folder(tmp_path) == tmp_path / "results" / "m" / "o" / "kl" / "f"
    assert RunKey("m", "o", "v", "kl", "f").folder(tmp_path).parent.parent.name == "o+v"
    assert len(RunKey("x" * 400, "o", "v", "kl", "f").folder(tmp_path).parts[-4]) < 200


def test_different_names_are_different_folders(tmp_path):
    one, two = (RunKey(m, "o", "default", "kl", "f").folder(tmp_path) for m in ("a", "b"))
    assert one != two


def test_the_state_of_a_run(tmp_path):
    assert run_status(tmp_path)[0] == "none"
    with RunState(tmp_path):
        assert run_status(tmp_path)[0] == "running"
    assert run_status(tmp_path)[0] == "none"
    with pytest.raises(ValueError, match="why"), RunState(tmp_path):
        raise ValueError("why\nit failed")
    assert run_status(tmp_path) == ("failed", "why it failed")
    with pytest.raises(KeyboardInterrupt), RunState(tmp_path):
        raise KeyboardInterrupt
    assert run_status(tmp_path)[0] == "interrupted"
    write_json(tmp_path / "manifest.json", {})
    assert run_status(tmp_path) == ("done", None)


def test_no_thread_is_left_behind(tmp_path):
    before = threading.active_count()
    with RunState(tmp_path), pytest.raises(UserError), RunState(tmp_path):
        pass
    assert threading.active_count() == before


def test_fingerprints_do_not_depend_on_order():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": (1, 2), "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({"a": 1}) != fingerprint({"a": True})
    assert fingerprint(PipelineConfig()) == fingerprint(PipelineConfig())
    with pytest.raises(ValueError, match="JSON"):
        fingerprint({"a": math.nan})


class Inner(Strict):
    size: int = 3


class Outer(Strict):
    inner: Inner = Inner()
    name: str


def test_parsing_names_the_option_and_the_remedy():
    with pytest.raises(UserError, match=r"there\.inner\.siz.*there\.inner\.size"):
        parse(Outer, {"name": "x", "inner": {"siz": 2}}, "there")
    with pytest.raises(UserError, match=r"there\.name=VALUE"):
        parse(Outer, {}, "there")
    with pytest.raises(UserError, match=r"there\.inner\.size.*'many'"):
        parse(Outer, {"name": "x", "inner": {"size": "many"}}, "there")
    with pytest.raises(UserError, match="inner"):
        parse(Outer, {"name": "x", "inner": 3})


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        parse(Outer, {"name": "x"}).name = "y"


def test_datasets_as_in_yaml():
    config = parse(DataConfig, {"datasets": {"a": {"id": "x"}, "b": None}})
    assert [(d.name, d.id) for d in config.datasets] == [("a", "x")]
    with pytest.raises(UserError, match="datasets"):
        parse(DataConfig, {"datasets": {"a": {"idd": "x"}}})


def test_draws_are_named():
    assert generator(0, "a").random() == generator(0, "a").random()
    assert len({generator(s, n).random() for s in (0, 1) for n in ("a", "b")}) == 4


def test_nearest_names():
    assert nearest("smollm", ["smollm2_135M", "gpt2", "SmolLM3"])[0] in ("smollm2_135M", "SmolLM3")
    assert "gpt2" in did_you_mean("gpt", ["gpt2", "llama"])
    assert "llama" in did_you_mean("zzz", ["gpt2", "llama"])
    assert did_you_mean("x", [])


def test_where_a_source_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_embedded("embedded:caps")
    assert not is_local("embedded:caps")
    assert is_local("./missing")
    assert is_local("/missing")
    assert is_local("~/missing")
    assert not is_local("org/name")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert is_local("org/name")


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFING_CACHE", str(tmp_path / "a"))
    assert cache_dir() == tmp_path / "a"
    monkeypatch.delenv("DIFFING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_dir() == tmp_path / "b" / "diffing"
    assert not list(tmp_path.iterdir())


def test_one_line():
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 999), 50)) == 50


def test_a_table_that_the_result_lacks(tmp_path):
    write_json(tmp_path / "manifest.json", manifest())
    write_table(tmp_path / "tables" / "here.parquet", pa.table({"a": [1]}))
    with pytest.raises(UserError, match=r"gone.*here"):
        Result(tmp_path).table("gone")


def with_file(folder, name, content):
    """A result of one file that was written some time ago."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    settle(path, 60)
    write_json(folder / "manifest.json", manifest(files={name: sha256(path)}))
    return Result(folder), path


def settle(path, seconds):
    at = time.time() - seconds
    os.utime(path, (at, at))


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that are hashed."""
    names = []

    def counted(path):
        names.append(path.name)
        return sha256(path)

    monkeypatch.setattr(result_module, "sha256", counted)
    return names


def test_the_path_of_a_file(tmp_path):
    result, path = with_file(tmp_path, "tables/tokens.parquet", b"abc")
    assert result.path("tables/tokens.parquet") == path
    with pytest.raises(UserError, match="missing"):
        result.path("tables/gone.parquet")


def test_a_file_is_hashed_once_until_it_changes(tmp_path, hashed):
    result, path = with_file(tmp_path, "tables/tokens.parquet", b"abc")
    for _ in range(3):
        Result(tmp_path).path("tables/tokens.parquet")
    assert hashed == ["tokens.parquet"]
    path.write_bytes(b"abd")
    settle(path, 30)
    for _ in range(2):
        with pytest.raises(UserError, match="corrupt"):
            result.path("tables/tokens.parquet")
    path.write_bytes(b"abc")
    settle(path, 20)
    assert result.path("tables/tokens.parquet") == path
    assert len(hashed) == 3


def test_a_file_that_changed_just_now_is_hashed_every_time(tmp_path, hashed):
    result, path = with_file(tmp_path, "tables/tokens.parquet", b"abc")
    settle(path, 0)
    for _ in range(2):
        result.path("tables/tokens.parquet")
    assert len(hashed) == 2


def test_what_is_remembered_is_bounded():
    assert result_module._remembered_digest.cache_info().maxsize is not None


def test_one_tensor_is_read_alone(tmp_path):
    path = tmp_path / "tensors" / "tensors.safetensors"
    path.parent.mkdir()
    save_file({"a/mean": torch.arange(4.0), "b/mean": torch.ones(2)}, path)
    write_json(tmp_path / "manifest.json", manifest(files={"tensors/tensors.safetensors": sha256(path)}))
    result = Result(tmp_path)
    assert result.tensor("a/mean").tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"no tensor 'zzz': choose from a/mean, b/mean\."):
        result.tensor("zzz")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="corrupt"):
        result.tensor("a/mean")


def test_a_result_without_tensors(tmp_path):
    write_json(tmp_path / "manifest.json", manifest())
    with pytest.raises(UserError, match=r"'a'; it has no tensors\."):
        Result(tmp_path).tensor("a")
