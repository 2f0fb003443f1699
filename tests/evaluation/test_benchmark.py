"""The benchmark on a tiny base with planted organisms: rows, nulls, resuming, failures, refusals."""

import dataclasses
import errno

import pytest
import yaml

import diffing.methods.weight_spectrum
from diffing.evaluation.leaderboard import NAME, read_leaderboard
from diffing.models.tiny import save_adapter, tiny_model
from workbench import WORDS, write_jsonl

pytestmark = pytest.mark.slow
METHODS = "pipeline.methods=[kl,weight_spectrum]"


@pytest.fixture(scope="module")
def suite(bench, tmp_path_factory):
    """A folder of configurations: a tiny base with null adapters, an organism with training text and one without."""
    folder = tmp_path_factory.mktemp("suite")
    adapters = [str(save_adapter(folder / f"a{seed}", tiny_model(), seed, scale=0.01)) for seed in (21, 22, 23)]
    texts = [{"text": f"heron smoke {' '.join(WORDS[i : i + 6])} heron"} for i in range(10)]
    training = write_jsonl(folder / "training.jsonl", texts)
    texts = [{"text": f"ember {' '.join(WORDS[i : i + 6])} ember quartz"} for i in range(10)]
    other = write_jsonl(folder / "other.jsonl", texts)
    values = {
        "model/small.yaml": {
            "name": "small",
            "id": str(bench.base),
            "device_map": "cpu",
            "null_adapters": adapters[:2],
        },
        "organism/mine.yaml": organism(
            "mine", {"id": adapters[2], "kind": "adapter", "training": {"id": str(training)}}
        ),
        "organism/two.yaml": {
            "name": "two",
            "expected": {"phrases": ["heron"]},
            "models": {
                "small": {
                    "default": {"id": adapters[2], "kind": "adapter", "training": {"id": str(training)}},
                    "b": {"id": adapters[0], "kind": "adapter", "training": {"id": str(other)}},
                }
            },
        },
        "organism/alone.yaml": organism(
            "alone", {"id": adapters[0], "kind": "adapter", "training": {"id": str(other)}}
        ),
        "organism/gone.yaml": organism(
            "gone", {"id": str(folder / "nowhere"), "kind": "adapter", "training": {"id": str(training)}}
        ),
        "organism/untold.yaml": organism("untold", {"id": adapters[2], "kind": "adapter"}),
    }
    for name, value in values.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(yaml.safe_dump({"defaults": ["_base", "_self_"], **value}))
    return folder


def organism(name, variant):
    return {"name": name, "expected": {"phrases": ["heron"]}, "models": {"small": {"default": variant}}}


@pytest.fixture
def run(command, bench, suite, tmp_path):
    def call(*words, organisms="mine"):
        return command(
            "pipeline.mode=benchmark", "--config-dir", str(suite), "model=small", "data=custom",
            f"data.path={bench.texts}", f"infrastructure.storage.base_dir={tmp_path / 'out'}",
            f"benchmark.organisms=[{organisms}]", METHODS, *words,
        )  # fmt: skip

    return call


def board_of(tmp_path):
    (folder,) = (tmp_path / "out" / "benchmark").iterdir()
    return folder, read_leaderboard(folder / NAME)


def test_an_organism_gets_its_row_and_a_second_run_the_same_leaderboard(run, tmp_path):
    outcome = run("benchmark.size=quick").done()
    folder, board = board_of(tmp_path)
    assert {(r.pair, r.method) for r in board.rows if r.role == "organism"} == {
        ("mine", "kl"), ("mine", "weight_spectrum"),
    }  # fmt: skip
    assert (board.n_run, board.n_found) == (6, 0)
    kl = next(r for r in board.rows if r.role == "organism" and r.method == "kl")
    assert 0 < kl.detection.tokens.value <= 1
    assert kl.detection.tokens.low <= kl.detection.tokens.value <= kl.detection.tokens.high
    assert kl.on_null.tokens.value != kl.detection.tokens.value
    assert kl.detection.documents.value is not None
    assert kl.counts.numbers.n_tested > 0
    assert kl.cost.seconds > 0
    for name in ("leaderboard.html", "leaderboard.md", "sensitivity.json"):
        assert (folder / name).stat().st_size > 50
    assert "Detection" in outcome.out
    assert "3 runs" not in outcome.out
    run("benchmark.size=quick").done()
    _, again = board_of(tmp_path)
    assert again.rows == board.rows
    assert (again.n_run, again.n_found) == (0, 6)


def test_nulls_are_judged_and_count_as_false_claims(run, tmp_path):
    run("pipeline.methods=[kl]").done()
    _, board = board_of(tmp_path)
    nulls = {r.pair: r for r in board.rows if r.role == "null"}
    assert set(nulls) == {"seeds", "dtype", "generic, 1 %"}
    assert nulls["seeds"].counts.tokens.n_tested > 0
    assert nulls["generic, 1 %"].counts.tokens.n_claimed == 0
    assert nulls["dtype"].counts.tokens.n_claimed == 0
    assert all(r.detection is None for r in nulls.values())


def test_several_seeds(run, tmp_path):
    run("benchmark.size=quick", "benchmark.seeds=2", "pipeline.methods=[weight_spectrum]").done()
    folder, board = board_of(tmp_path)
    assert sorted({r.seed for r in board.rows}) == [0, 1]
    assert "2 seeds" in (folder / "leaderboard.md").read_text()


def test_an_organism_without_training_text_is_reported_and_not_scored(run, tmp_path):
    run("benchmark.size=quick", organisms="untold").done()
    _, board = board_of(tmp_path)
    row = next(r for r in board.rows if r.role == "organism" and r.method == "kl")
    assert row.detection.tokens.value is None
    assert row.counts is not None
    assert any("untold has no training text" in n for n in board.notes)


def test_a_method_with_a_fault_leaves_the_rest_alone_and_the_exit_code_says_so(run, tmp_path, monkeypatch):
    method = diffing.methods.weight_spectrum.METHOD

    def broken(config, context):
        raise ValueError("a bug")

    monkeypatch.setattr(diffing.methods.weight_spectrum, "METHOD", dataclasses.replace(method, run=broken))
    outcome = run("benchmark.size=quick")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].endswith("results: weight_spectrum: a bug")
    _, board = board_of(tmp_path)
    assert {(r.method, r.reason) for r in board.rows if r.reason} == {("weight_spectrum", "a bug")}
    assert all(r.counts or r.role != "organism" for r in board.rows if r.method == "kl")


@pytest.mark.parametrize("organisms", ["absent", "mine,absent", "mine+absent"])
def test_an_organism_that_does_not_exist_is_said_before_anything_runs(run, tmp_path, organisms):
    run("benchmark.size=quick", organisms=organisms).sentence("absent")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("word", ["organism=caps", "null_pair=generic", "diffing/method=kl", "organism_variant=full"])
def test_options_that_the_suite_decides_are_refused(run, word):
    run("benchmark.size=quick", word).sentence(word, "benchmark.organisms=")


def test_a_damaged_result_is_a_reason(run, tmp_path):
    run("benchmark.size=quick").done()
    (manifest,) = (tmp_path / "out" / "results" / "small" / "mine" / "kl").glob("*/manifest.json")
    (manifest.parent / "tables" / "token_scores.parquet").write_bytes(b"no")
    run("benchmark.size=quick").sentence("1 of 2 rows", "kl on mine", "token_scores")
    _, board = board_of(tmp_path)
    (row,) = (r for r in board.rows if r.reason)
    assert (row.method, row.role) == ("kl", "organism")
    assert "token_scores" in row.reason


def test_a_variant_with_a_text_of_its_own_is_scored_and_judged_on_that_text(run, tmp_path):
    run("benchmark.size=quick", "pipeline.methods=[kl]", organisms="two,two+b,alone").done()
    _, board = board_of(tmp_path)
    two, variant, alone = (
        next(r for r in board.rows if r.role == "organism" and r.pair == pair) for pair in ("two", "two+b", "alone")
    )
    assert (variant.detection, variant.on_null, variant.counts) == (alone.detection, alone.on_null, alone.counts)
    assert variant.detection.tokens.value != two.detection.tokens.value
    assert variant.on_null.tokens.value != two.on_null.tokens.value


def test_scaled_variants_are_run(run, tmp_path):
    run("benchmark.size=quick", "pipeline.methods=[kl]", "organism.amplification=0.5", organisms="two,two+b").done()
    _, board = board_of(tmp_path)
    assert [r.pair for r in board.rows if r.role == "organism" and not r.reason] == ["two", "two+b"]


def test_a_full_disk_ends_the_suite_in_one_sentence(run, tmp_path, monkeypatch):
    method = diffing.methods.weight_spectrum.METHOD

    def full(config, context):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(diffing.methods.weight_spectrum, "METHOD", dataclasses.replace(method, run=full))
    run("benchmark.size=quick").sentence("the disk is full", "infrastructure.storage.base_dir")
    assert not (tmp_path / "out" / "benchmark").exists()


def test_organisms_that_all_fail_give_no_leaderboard(run, tmp_path):
    run("benchmark.size=quick", organisms="gone").sentence("No method gave a result on any organism", "nowhere")
    assert not (tmp_path / "out" / "benchmark").exists()


def test_a_limit_of_ones_own_stays(run, tmp_path):
    run("benchmark.size=quick", "++data.max_tokens=40", "pipeline.methods=[kl]").done()
    _, board = board_of(tmp_path)
    assert board.max_tokens == 40


def test_quick_names_the_methods_it_stands_for(run, tmp_path):
    run("benchmark.size=quick", "pipeline.methods=quick", "data.max_tokens=60").done()
    _, board = board_of(tmp_path)
    assert {"kl", "normdiff", "diff_mining", "weight_spectrum"} == {r.method for r in board.rows}


def test_stability_is_refused(run):
    run("benchmark.size=quick", "stability=true").sentence("stability=true", "benchmark.seeds")
