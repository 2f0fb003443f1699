"""`pipeline.mode=cache`: listing, checking and deleting caches of activations."""

import json
import os
import time

import pytest

from diffing.core.runs import RunState

MODE = "pipeline.mode=cache"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def made(command, bench, out):
    """A cache of two layers; its folder."""
    command(bench.command(out, "pipeline.mode=preprocessing", "preprocessing.layers=[0,1]")).done()
    (folder,) = out.glob("activations/*/*")
    return folder


def cache_command(bench, out, *more):
    return bench.command(out, MODE, *more)


def test_a_listing_says_whose_it_is_and_what_it_holds(command, bench, out, made):
    listed = command(cache_command(bench, out)).done().out
    assert f"{made.parent.name}/{made.name}" in listed
    for part in ("adapter on base", "custom", "float32", "residual 0–1", "done", "kB"):
        assert part in listed
    tokens = json.loads((made / "cache.json").read_text())["n_tokens"]
    assert str(tokens) in listed


def test_nothing_there_is_said(command, bench, out):
    assert "No caches below" in command(cache_command(bench, out)).done().out


def test_an_unfinished_slot_is_listed_as_interrupted(command, bench, out, made):
    (made / "layer_01" / "residual" / "manifest.json").unlink()
    listed = command(cache_command(bench, out)).done().out
    assert "interrupted" in listed
    assert "1 unfinished" in listed


def test_verify_finds_a_flipped_bit_and_preprocessing_mends_it(command, bench, out, made):
    assert "whole" in command(cache_command(bench, out, "cache.action=verify")).done().out
    shard = made / "layer_01" / "residual" / "shard_00000.safetensors"
    before = shard.read_bytes()
    data = bytearray(before)
    data[-9] ^= 4
    shard.write_bytes(data)
    outcome = command(cache_command(bench, out, "cache.action=verify"))
    outcome.sentence(str(shard), "pipeline.mode=preprocessing")
    assert "DAMAGED: 1 file" in outcome.out
    command(bench.command(out, "pipeline.mode=preprocessing", "preprocessing.layers=[0,1]")).done()
    assert shard.read_bytes() == before
    command(cache_command(bench, out, "cache.action=verify")).done()


def test_delete_needs_a_name_and_removes_that_cache_alone(command, bench, out, made):
    command(cache_command(bench, out, "cache.action=delete")).sentence("cache.name")
    command(cache_command(bench, out, "cache.action=delete", "cache.name=nonsense")).sentence("nonsense", made.name)
    command(bench.command(out, "pipeline.mode=preprocessing", "preprocessing.dtype=bfloat16")).done()
    other = next(p for p in out.glob("activations/*/*") if p != made)
    command(cache_command(bench, out, "cache.action=delete", f"cache.name={made.name}")).done()
    assert not made.exists()
    assert (other / "cache.json").exists()
    command(cache_command(bench, out, "cache.action=delete", "cache.name=all")).done()
    assert not list(out.glob("activations/*"))


def test_only_old_caches(command, bench, out, made):
    command(cache_command(bench, out, "cache.action=delete", "cache.older_than_days=1")).done()
    assert made.exists()
    for path in made.rglob("*"):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    command(cache_command(bench, out, "cache.action=delete", "cache.older_than_days=1")).done()
    assert not made.exists()


def test_a_cache_in_use_is_not_deleted(command, bench, out, made):
    with RunState(made):
        outcome = command(cache_command(bench, out, "cache.action=delete", "cache.name=all"))
        outcome.sentence("Another process", str(made))
    assert (made / "cache.json").exists()


def test_links_are_left_alone(command, bench, out, made, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("x")
    (out / "activations" / made.parent.name / "link").symlink_to(elsewhere)
    (made / "layer_00" / "link").symlink_to(elsewhere)
    command(cache_command(bench, out, "cache.action=delete", "cache.name=all")).done()
    assert (elsewhere / "kept").exists()


@pytest.mark.parametrize(("schema", "word"), [(0, "older"), (99, "newer")])
def test_a_cache_of_another_version_is_told(command, bench, out, made, schema, word):
    facts = json.loads((made / "cache.json").read_text())
    (made / "cache.json").write_text(json.dumps({**facts, "schema": schema}))
    assert "other version" in command(cache_command(bench, out)).done().out
    command(bench.command(out, "pipeline.mode=preprocessing")).sentence(word, f"schema {schema}", str(made))


@pytest.mark.parametrize(("layers", "expected"), [("all", 3), ("0.5", 1), ("-1", 1), ("[0,-1]", 2)])
def test_layers_may_be_written_without_brackets(command, bench, out, layers, expected):
    command(bench.command(out, "pipeline.mode=preprocessing", f"preprocessing.layers={layers}")).done()
    assert len(list(out.glob("activations/*/*/layer_*/residual/manifest.json"))) == expected


def test_true_is_no_layer(command, bench, out):
    outcome = command(bench.command(out, "pipeline.mode=preprocessing", "preprocessing.layers=[true]"))
    outcome.sentence("preprocessing.layers", "true and false are no layers", alone=True)
