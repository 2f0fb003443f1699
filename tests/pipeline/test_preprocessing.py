"""`pipeline.mode=preprocessing`: what it says, what a cache depends on, damage, a full disk, two processes at once."""

import errno
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from diffing.activations import announcing, writing
from diffing.activations.reading import PairReader
from diffing.activations.shards import ShardWriter
from diffing.core.runs import RunState
from workbench import limited, run_folders, sentences, write_jsonl

MODE = "pipeline.mode=preprocessing"
SMALL = ("preprocessing.shard_tokens=100", "preprocessing.batch_tokens=80")
READ = ("pipeline.mode=diffing", "diffing/method=normdiff", "diffing.method.layers=[1]", *SMALL)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(scope="module")
def harvested(bench, tmp_path_factory):
    """An output folder with a cache of one layer in several shards; copied by each test."""
    from diffing.cli import main

    base_dir = tmp_path_factory.mktemp("harvested") / "out"
    assert main(bench.command(base_dir, MODE, *SMALL)) == 0
    return base_dir


@pytest.fixture
def made(harvested, out):
    """The cache folder of a copy of it in `out`."""
    shutil.copytree(harvested, out)
    return folder_of(out)


def folders(base_dir):
    return sorted(base_dir.glob("activations/*/*"))


def folder_of(base_dir):
    (folder,) = folders(base_dir)
    return folder


def contents(folder):
    """Bytes by file."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def mtimes(folder):
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def flip(path, at=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 0x10
    path.write_bytes(data)


def named_command(sentence):
    """The arguments of the command that a sentence tells the user to run."""
    words = shlex.split(re.search(r"(?:with|by): (.*)\.$", sentence)[1])
    assert words[:2] == ["python", "main.py"]
    return words[2:]


def said_before_the_work(outcome):
    """The announcement; asserts that it stands before the progress of the harvest."""
    lines = outcome.err.splitlines()
    told = next(i for i, line in enumerate(lines) if line.startswith("Harvest of"))
    progress = next((i for i, line in enumerate(lines) if "reading both models" in line), len(lines))
    assert told < progress
    return lines[told]


def test_it_says_what_it_takes_before_it_starts(command, bench, out):
    outcome = command(bench.command(out, MODE, *SMALL)).done()
    line = said_before_the_work(outcome)
    cache = json.loads((folder_of(out) / "cache.json").read_text())
    n_bytes = cache["n_tokens"] * cache["width"] * 4 * 2
    assert cache["n_tokens"] > 200
    for part in (f"{cache['n_tokens']} tokens", f"{n_bytes / 1000:.1f} kB", "minutes", "layer_01/residual"):
        assert part in line
    assert f"{cache['n_shards']} shards" in line
    assert "whole" in outcome.err.splitlines()[-1]


def test_only_what_lacks_is_announced_and_computed(command, bench, out):
    command(bench.command(out, MODE, *SMALL)).done()
    before = mtimes(folder_of(out))
    outcome = command(bench.command(out, MODE, *SMALL, "preprocessing.layers=[0,1]")).done()
    line = said_before_the_work(outcome)
    assert "layer_00/residual" in line
    assert "layer_01" not in line
    assert {k: v for k, v in mtimes(folder_of(out)).items() if k in before} == before


def test_a_second_time_nothing_is_loaded_or_written(command, bench, made, out):
    before = mtimes(made)
    outcome = command(bench.command(out, MODE, *SMALL)).done()
    assert "Loading" not in outcome.err
    assert "Harvest of" not in outcome.err
    assert "layer_01/residual are whole" in outcome.err
    assert mtimes(made) == before
    assert not {"state.json", ".lock"} & {p.name for p in made.iterdir()}


def test_overwrite_ends_with_the_same_bytes(command, bench, made, out):
    before, when = contents(made), mtimes(made)
    assert "Loading" in command(bench.command(out, MODE, *SMALL, "overwrite=true")).done().err
    assert contents(made) == before
    shards = {k for k in before if "shard_" in k}
    assert all(mtimes(made)[k] > when[k] for k in shards)


def test_what_a_method_needs_is_harvested_besides(command, bench, out):
    more = ("diffing/method=normdiff", "diffing.method.layers=[2]", "diffing.method.sites=[mlp]")
    command(bench.command(out, MODE, *more, "preprocessing.layers=[0]")).done()
    found = sorted(p.parent.relative_to(folder_of(out)).as_posix() for p in folder_of(out).rglob("manifest.json"))
    assert found == ["layer_00/residual", "layer_02/mlp"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["preprocessing.store=live"], ["preprocessing.store=live", "preprocessing.store=disk"]),
        (["preprocessing.layers=[99]"], ["99", "3 layers", "preprocessing.layers"]),
        (["preprocessing.layers=[-4]"], ["-4", "3 layers"]),
        (["preprocessing.layers=[1.5]"], ["1.5", "3 layers"]),
        (["preprocessing.layers=[half]"], ["half", "3 layers"]),
        (["preprocessing.layers=[]"], ["preprocessing.layers"]),
        (["preprocessing.sites=[nonsense]"], ["nonsense", "attention"]),
        (["preprocessing.sites=[]"], ["preprocessing.sites"]),
        (["preprocessing.dtype=int8"], ["int8", "bfloat16"]),
        (["preprocessing.batch_tokens=0"], ["preprocessing.batch_tokens"]),
        (["preprocessing.shard_tokens=0"], ["preprocessing.shard_tokens"]),
        (["preprocessing.shard_bytes=1000"], ["preprocessing.shard_bytes", "65536"]),
    ],
    ids=lambda o: o[0] if o and "=" in o[0] else "",
)
def test_what_cannot_be_is_one_sentence(command, bench, out, options, parts):
    command(bench.command(out, MODE, *options)).sentence(*parts, alone=True)
    assert not list(out.rglob("*.safetensors"))


def test_reading_without_a_cache_names_the_command_that_makes_it(command, bench, tmp_path):
    out = tmp_path / "with a space"
    asked = bench.command(out, *READ)
    sentence = command(asked).sentence("layer_01/residual", MODE)
    command(named_command(sentence)).done()
    command(asked).done()
    assert len(run_folders(out)) == 1


@pytest.mark.slow
def test_the_key_holds_what_numbers_depend_on_and_nothing_else(command, bench, made, out, tmp_path):
    same = [
        ["seed=7"],
        ["diffing/method=normdiff", "diffing.method.n_examples=3", "diffing.method.layers=[1]"],
        ["infrastructure.threads=1"],
        ["preprocessing.shard_tokens=17"],
    ]
    for options in same:
        assert "Harvest of" not in command(bench.command(out, MODE, *SMALL, *options)).done().err, options
    assert folders(out) == [made]
    other_texts = write_jsonl(tmp_path / "other.jsonl", sentences(11))
    others = [
        bench.command(out, MODE, *SMALL, "preprocessing.dtype=bfloat16"),
        bench.command(out, MODE, *SMALL, "preprocessing.batch_tokens=64"),
        bench.command(out, MODE, *SMALL, "data.max_length=20"),
        bench.command(out, MODE, *SMALL, data=other_texts),
        bench.command(out, MODE, *SMALL, finetuned=bench.full),
        bench.command(out, MODE, *SMALL, "pair.sharing=adapter"),
    ]
    for number, asked in enumerate(others, 2):
        command(asked).done()
        assert len(folders(out)) == number, asked
    elsewhere = tmp_path / "elsewhere"
    command(bench.command(elsewhere, MODE, *SMALL)).done()
    assert folder_of(elsewhere).relative_to(elsewhere) == made.relative_to(out)
    assert contents(folder_of(elsewhere)) == contents(made)


@pytest.fixture(scope="module")
def adapters(bench, tmp_path_factory):
    """Two adapters below one folder, their files equal in size."""
    from diffing.models.tiny import save_adapter, tiny_model

    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two"), 5):
        save_adapter(folder / name, tiny_model(), seed)
    sizes = {(folder / n / "adapter_model.safetensors").stat().st_size for n in ("one", "two")}
    assert len(sizes) == 1
    return folder


def finetuned_rows(folder):
    return load_file(folder / "layer_01" / "residual" / "shard_00000.safetensors")["finetuned"]


def test_two_adapters_below_one_folder_never_meet(command, bench, out, adapters):
    for name in ("one", "two"):
        command(bench.command(out, MODE, *SMALL, f"organism.subfolder={name}", finetuned=adapters)).done()
    one, two = folders(out)
    assert one.parent != two.parent
    assert not finetuned_rows(one).equal(finetuned_rows(two))


def test_two_variants_of_an_organism_never_meet(command, bench, out, adapters, tmp_path):
    (tmp_path / "own" / "organism").mkdir(parents=True)
    variants = "".join(f"    {v}: {{id: {adapters / v}}}\n" for v in ("one", "two"))
    text = f"defaults: [_base, _self_]\nname: mine\nmodels:\n  custom:\n{variants}"
    (tmp_path / "own" / "organism" / "mine.yaml").write_text(text)
    asked = [a for a in bench.command(out, MODE, *SMALL) if not a.startswith("organism")]
    for variant in ("one", "two"):
        command("--config-dir", str(tmp_path / "own"), asked, "organism=mine", f"organism_variant={variant}").done()
    assert len({f.parent for f in folders(out)}) == 2
    named = {json.loads((f / "cache.json").read_text())["pair"]["variant"] for f in folders(out)}
    assert named == {"one", "two"}


def test_weights_that_changed_in_place_are_another_pair(command, bench, out, adapters, tmp_path):
    adapter = shutil.copytree(adapters / "one", tmp_path / "adapter")
    command(bench.command(out, MODE, *SMALL, finetuned=adapter)).done()
    (before,) = folders(out)
    path = adapter / "adapter_model.safetensors"
    size = path.stat().st_size
    shutil.copyfile(adapters / "two" / path.name, path)
    assert path.stat().st_size == size
    command(bench.command(out, MODE, *SMALL, finetuned=adapter)).done()
    (after,) = set(folders(out)) - {before}
    assert not finetuned_rows(before).equal(finetuned_rows(after))


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "flipped": flip,
    "flipped header": lambda path: flip(path, 40),
    "empty": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["shard_00001.safetensors", "statistics.safetensors"])
def test_damage_is_named_and_only_it_is_repaired(command, bench, made, out, how, name):
    before, when = contents(made), mtimes(made)
    damaged = made / "layer_01" / "residual" / name
    DAMAGE[how](damaged)
    sentence = command(bench.command(out, *READ)).sentence(str(damaged), MODE)
    outcome = command(named_command(sentence)).done()
    assert f"warning: {damaged}" in outcome.err
    assert contents(made) == before
    untouched = {k for k in before if "shard_" in k and not k.endswith(name)} | {"cache.json", "tokens.parquet"}
    assert {k: mtimes(made)[k] for k in untouched} == {k: when[k] for k in untouched}


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_token_table_is_written_again(command, bench, made, out, how):
    before, when = contents(made), mtimes(made)
    DAMAGE[how](made / "tokens.parquet")
    command(bench.command(out, *READ)).sentence("tokens.parquet", MODE)
    command(bench.command(out, MODE, *SMALL)).done()
    assert contents(made) == before
    assert {k: v for k, v in mtimes(made).items() if k != "tokens.parquet"} == {
        k: v for k, v in when.items() if k != "tokens.parquet"
    }


def test_several_damaged_files_are_counted(command, bench, made, out):
    for number in (0, 2, 3):
        flip(made / "layer_01" / "residual" / f"shard_{number:05d}.safetensors")
    command(bench.command(out, *READ)).sentence("shard_00000.safetensors", "and 2 more")
    err = command(bench.command(out, MODE, *SMALL)).done().err
    assert [f"shard_0000{n}.safetensors does not match" in err for n in range(4)] == [True, False, True, True]


FILES = ["cache.json", "layer_01/residual/manifest.json"]
CORRUPT = ["", "{", "[]", "null", '{"schema": 1}', '{"schema": "one"}', "\x00"]


@pytest.mark.slow
@pytest.mark.parametrize("content", CORRUPT, ids=repr)
@pytest.mark.parametrize("name", FILES)
def test_a_corrupt_json_file_is_named_and_overwritten(command, bench, made, out, name, content):
    before = contents(made)
    (made / name).write_text(content)
    for asked in ((MODE, *SMALL), READ):
        sentence = command(bench.command(out, *asked)).sentence(str(made), "overwrite=true")
    command(named_command(sentence)).done()
    assert contents(made) == before


def test_a_manifest_or_cache_of_another_place_is_refused(command, bench, made, out):
    command(bench.command(out, MODE, *SMALL, "preprocessing.layers=[0]")).done()
    one, other = (made / f"layer_0{n}" / "residual" / "manifest.json" for n in (0, 1))
    kept = other.read_bytes()
    shutil.copyfile(one, other)
    command(bench.command(out, *READ)).sentence(str(other), "layer_01/residual", "overwrite=true")
    other.write_bytes(kept)
    facts = json.loads((made / "cache.json").read_text())
    facts["key"]["corpus"] = "another"
    (made / "cache.json").write_text(json.dumps(facts))
    command(bench.command(out, *READ)).sentence(str(made / "cache.json"), "overwrite=true")


@pytest.mark.parametrize("name", FILES)
def test_a_cache_of_an_older_schema(command, bench, made, out, name):
    before = contents(made)
    value = json.loads((made / name).read_text())
    (made / name).write_text(json.dumps({**value, "schema": 0}))
    for asked in ((MODE, *SMALL), READ):
        command(bench.command(out, *asked)).sentence(str(made), "older version", "schema 0", "overwrite=true")
    command(bench.command(out, MODE, *SMALL, "overwrite=true")).done()
    assert contents(made) == before


@pytest.mark.parametrize("name", ["cache.json", "layer_01/residual/manifest.json"])
def test_a_cache_of_a_newer_schema(command, bench, made, out, name):
    value = json.loads((made / name).read_text())
    (made / name).write_text(json.dumps({**value, "schema": 99}))
    for asked in ((MODE, *SMALL), READ):
        command(bench.command(out, *asked)).sentence(str(made), "newer version", "schema 99", "upgrade")


def test_two_processes_at_one_cache(command, bench, made, out):
    before = contents(made)
    with RunState(made):
        asked = bench.command(out, MODE, *SMALL, "preprocessing.layers=[0]")
        command(asked).sentence("Another process is at work", str(made))
        assert "are whole" in command(bench.command(out, MODE, *SMALL)).done().err, "what is whole can be used"
    assert contents(made) == before
    command(asked).done()


def test_ctrl_c_keeps_whole_shards_and_the_same_command_goes_on(command, bench, harvested, out, monkeypatch):
    read, calls = PairReader.read, []

    def stop(self, *args):
        calls.append(args)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return read(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(PairReader, "read", stop)
        outcome = command(bench.command(out, MODE, *SMALL))
    assert outcome.code == 130
    assert "Interrupted" in outcome.err.splitlines()[-1]
    folder, whole = folder_of(out), contents(folder_of(harvested))
    kept = {k: v for k, v in contents(folder).items() if "shard_" in k}
    assert kept
    assert kept.items() < whole.items()
    assert json.loads((folder / "state.json").read_text())["status"] == "interrupted"
    when = mtimes(folder)
    outcome = command(bench.command(out, MODE, *SMALL)).done()
    assert "are there already" in said_before_the_work(outcome)
    assert {k: mtimes(folder)[k] for k in kept} == {k: when[k] for k in kept}
    assert contents(folder) == whole


def test_a_disk_too_small_is_said_beforehand(command, bench, out, monkeypatch):
    usage = shutil.disk_usage
    with monkeypatch.context() as patch:
        patch.setattr(announcing.shutil, "disk_usage", lambda path: usage(path)._replace(free=20_000))
        sentence = command(bench.command(out, MODE, *SMALL)).sentence("kB", "20.0 kB are free", "preprocessing.layers")
    cache = json.loads((folder_of(out) / "cache.json").read_text())
    assert f"{cache['n_tokens'] * cache['width'] * 8 / 1000:.1f} kB" in sentence
    assert not list(out.rglob("shard_*"))
    command(bench.command(out, MODE, *SMALL)).done()


def test_what_is_there_already_needs_no_space(command, bench, made, out, monkeypatch):
    (made / "layer_01" / "residual" / "shard_00002.safetensors").unlink()
    usage = shutil.disk_usage
    monkeypatch.setattr(announcing.shutil, "disk_usage", lambda path: usage(path)._replace(free=20_000))
    command(bench.command(out, MODE, *SMALL)).done()


def test_a_disk_that_fills_on_the_way(command, bench, harvested, out, monkeypatch):
    written = []

    class Filling(ShardWriter):
        def close(self, statistics):
            if len(written) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(self)
            return super().close(statistics)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "ShardWriter", Filling)
        command(bench.command(out, MODE, *SMALL)).sentence(str(out), "the disk is full", "infrastructure.storage")
    folder = folder_of(out)
    assert len(list(folder.rglob("shard_*"))) == 3
    assert not list(folder.rglob(".shard_*"))
    command(bench.command(out, MODE, *SMALL)).done()
    assert contents(folder) == contents(folder_of(harvested))


@pytest.mark.slow
def test_a_limit_on_file_size(command, bench, out, tmp_path):
    """A real refusal by the kernel: a shard is larger than a file may be."""
    asked = bench.command(out, MODE, data=write_jsonl(tmp_path / "many.jsonl", sentences(60)))

    done = limited(asked, 2**18)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: Cannot write to {out}")
    assert not list(out.rglob("*shard_*"))
    command(asked).done()
    assert (folder_of(out) / "layer_01" / "residual" / "shard_00000.safetensors").stat().st_size > 2**18


def test_a_shard_damaged_before_its_slot_was_whole_is_made_again(command, bench, made, out):
    before = contents(made)
    slot = made / "layer_01" / "residual"
    (slot / "manifest.json").unlink()
    flip(slot / "shard_00001.safetensors", -1000)
    with_other_rows = load_file(slot / "shard_00002.safetensors")
    with_other_rows["base"] += 1
    save_file(with_other_rows, slot / "shard_00002.safetensors")
    command(bench.command(out, MODE, *SMALL)).done()
    assert contents(made) == before


def test_statistics_of_other_tokens_are_never_mixed_in(command, bench, made, out, tmp_path):
    """Shards hold sums over kept tokens; those of another choice are not taken up."""
    other = ("skip_first_tokens=3",)
    fresh = tmp_path / "fresh"
    command(bench.command(fresh, MODE, *SMALL, *other)).done()
    slot = made / "layer_01" / "residual"
    (slot / "manifest.json").unlink()
    command(bench.command(out, MODE, *SMALL, *other)).done()
    found, wanted = (
        json.loads((folder_of(base) / "layer_01" / "residual" / "manifest.json").read_text()) for base in (out, fresh)
    )
    assert found["statistics"] == wanted["statistics"]
    assert found["kept"]["skip_first_tokens"] == 3


@pytest.mark.parametrize("method", ["normdiff", "pca"])
def test_texts_shorter_than_what_is_skipped_are_told_at_once(command, bench, out, method):
    asked = bench.command(out, f"diffing/method={method}", "diffing.method.layers=[1]", "skip_first_tokens=500")
    for _ in range(2):
        command(asked).sentence("No token is left to", "skip_first_tokens")
