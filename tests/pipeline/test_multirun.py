"""Several runs after one another: one job's failure loses no other's results."""

import dataclasses

import pytest

import diffing.methods.kl
from workbench import run_folders


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def folders(out):
    return {f.parent.parent.name for f in run_folders(out) if (f / "manifest.json").exists()}


def test_one_job_fails(command, bench, out, tmp_path):
    missing = tmp_path / "missing"
    args = bench.command(out, "--multirun", finetuned=f"{bench.adapter},{missing},{bench.full}")
    outcome = command(args)
    assert outcome.code == 2
    assert folders(out) == {"adapter", "full"}
    assert "Traceback" not in outcome.err
    assert [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    summary = outcome.out.splitlines()[-3:]
    assert [line.split()[0] for line in summary] == ["done", "FAILED", "done"]
    assert str(missing) in summary[1]
    again = command(args)
    assert again.code == 2
    assert again.err.count("overwrite=true computes it again") == 2
    good = command(bench.command(out, "--multirun", finetuned=f"{bench.adapter},{bench.full}"))
    assert good.code == 0
    assert good.out.splitlines()[-1].startswith("done")


def test_a_planned_method_among_others(command, bench, out):
    outcome = command(bench.command(out, "--multirun", "diffing/method=activation_oracle,kl"))
    assert outcome.code == 2
    assert folders(out) == {"adapter"}
    failed, done = outcome.out.splitlines()[-2:]
    assert failed.startswith("FAILED")
    assert "not built yet" in failed
    assert done.startswith("done")


@pytest.mark.slow
def test_a_fault_of_ours_counts_most(command, bench, out, tmp_path, monkeypatch):
    method = diffing.methods.kl.METHOD
    calls = []

    def run(config, context):
        calls.append(context)
        if len(calls) == 1:
            raise RuntimeError("a bug")
        return method.run(config, context)

    monkeypatch.setattr(diffing.methods.kl, "METHOD", dataclasses.replace(method, run=run))
    missing = tmp_path / "missing"
    outcome = command(bench.command(out, "--multirun", finetuned=f"{bench.adapter},{missing},{bench.full}"))
    assert outcome.code == 1
    assert folders(out) == {"full"}
    assert "a bug" in outcome.err
    assert [line.split()[0] for line in outcome.out.splitlines()[-3:]] == ["FAILED", "FAILED", "done"]
    assert command(bench.command(out)).code == 0, "after the fault is mended the job goes through"


def test_an_interruption_ends_all(command, bench, out, monkeypatch):
    method = diffing.methods.kl.METHOD

    def run(config, context):
        raise KeyboardInterrupt

    monkeypatch.setattr(diffing.methods.kl, "METHOD", dataclasses.replace(method, run=run))
    outcome = command(bench.command(out, "--multirun", finetuned=f"{bench.adapter},{bench.full}"))
    assert outcome.code == 130
    assert "Interrupted" in outcome.err
    assert len(run_folders(out)) == 1


def test_a_misspelt_name_among_several_is_told_before_anything_runs(command, bench, out):
    command(bench.command(out, "--multirun", "diffing/method=kl,kll")).sentence("kll", "kl")
    command("--multirun", "organism=caps,romanconcrete").sentence("romanconcrete", "roman_concrete")


def test_a_value_that_does_not_fit_fails_its_job_alone(command, bench, out):
    outcome = command(bench.command(out, "--multirun", "seed=0,abc"))
    assert outcome.code == 2
    assert folders(out) == {"adapter"}
    assert "abc" in outcome.out.splitlines()[-1]


@pytest.mark.slow
def test_over_seeds_and_pairs(command, bench, out):
    outcome = command(bench.command(out, "--multirun", "seed=0,1", finetuned=f"{bench.adapter},{bench.full}"))
    assert outcome.code == 0
    assert len(run_folders(out)) == 4
    assert [line.split()[0] for line in outcome.out.splitlines()[-4:]] == ["done"] * 4


def test_a_single_job_of_a_multirun(command, bench, out):
    command(bench.command(out, "--multirun")).done()
    assert folders(out) == {"adapter"}
