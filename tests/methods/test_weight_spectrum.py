"""`weight_spectrum`: spectra against dense decompositions, nulls against draws, degenerate pairs, when models load."""

import dataclasses
import re
import shutil
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import diffing
from diffing.analysis.context import RunContext
from diffing.core.errors import UserError
from diffing.core.method import load_method
from diffing.core.seeds import generator
from diffing.core.specs import CorpusSpec, ModelSpec, PairSpec, VariantSpec
from diffing.core.templates import TemplateRules
from diffing.data.documents import documents_from_texts
from diffing.data.tokens import tokenize_documents
from diffing.methods.weight_spectrum import measure as measure_module
from diffing.methods.weight_spectrum import run as run_module
from diffing.methods.weight_spectrum.config import WeightSpectrumConfig
from diffing.methods.weight_spectrum.measure import measure
from diffing.methods.weight_spectrum.null import random_factors, random_matrix
from diffing.methods.weight_spectrum.run import run
from diffing.methods.weight_spectrum.spectrum import exact_spectrum, factored_spectrum, krylov_spectrum
from diffing.methods.weight_spectrum.units import read_unit
from diffing.models.changed_weight import Factors, WeightChange
from diffing.models.pair import load_pair
from diffing.models.plan import plan_pair
from diffing.models.tiny import save_adapter, save_model, tiny_model, tiny_tokenizer
from diffing.models.weight_places import weight_place
from workbench import ROOT, environment, manifest, run_folder, tables

QUIET = {"n_readout": 0}


def rng(name="test"):
    return generator(0, name)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_chunks(matrix, size=13):
    n = len(matrix) if matrix.dim() else 1
    return lambda: ((i, matrix[i : i + size] if matrix.dim() else matrix) for i in range(0, n, size))


def assert_spectrum_is(spectrum, matrix, n, rtol=1e-6):
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    n = min(n, len(spectrum.values_K))
    assert n
    torch.testing.assert_close(spectrum.values_K[:n], s[:n], rtol=rtol, atol=0)
    for found, own in ((spectrum.left_RK, u), (spectrum.right_CK, vh.T)):
        torch.testing.assert_close((found.double() * own[:, : found.shape[1]]).sum(0).abs()[:n], torch.ones(n).double())
    assert spectrum.square == pytest.approx(float(s.square().sum()), rel=1e-6)


@pytest.mark.parametrize(("n_out", "n_in", "rank"), [(40, 17, 5), (17, 40, 5), (9, 30, 12), (20, 20, 1)])
def test_factors_against_the_dense_decomposition(n_out, n_in, rank):
    left, right = normal(n_out, rank), normal(n_in, rank, seed=1)
    spectrum = factored_spectrum(Factors(left, right, 0.37), 50)
    matrix = 0.37 * left.double() @ right.double().T
    assert len(spectrum.values_K) == min(rank, n_out, n_in)
    assert_spectrum_is(spectrum, matrix, rank, rtol=1e-10)
    assert spectrum.fourth == pytest.approx(float(torch.linalg.svdvals(matrix).pow(4).sum()), rel=1e-10)
    assert len(factored_spectrum(Factors(left, right, 0.37), 3).values_K) == min(3, rank)


@pytest.mark.parametrize("shape", [(60, 25), (25, 60), (30, 30)])
def test_small_matrices_are_decomposed_exactly(shape):
    matrix = normal(*shape)
    spectrum = exact_spectrum(matrix, 10)
    assert spectrum.is_exact
    assert_spectrum_is(spectrum, matrix, 10)
    assert spectrum.fourth == pytest.approx(float(torch.linalg.svdvals(matrix.double()).pow(4).sum()), rel=1e-8)


def test_rounding_is_no_singular_value():
    matrix = normal(50, 3) @ normal(3, 40, seed=1)
    assert len(exact_spectrum(matrix, 16).values_K) == 3
    assert len(factored_spectrum(Factors(normal(50, 3), torch.ones(40, 3), 1.0), 16).values_K) == 1


@pytest.mark.parametrize("shape", [(300, 120), (120, 300)])
def test_krylov_finds_what_stands_out_and_bounds_what_does_not(shape):
    planted = sum(
        v * torch.outer(normal(shape[0], seed=i), normal(shape[1], seed=9 + i)) for i, v in enumerate((3, 2, 1))
    )
    matrix = planted + normal(*shape, seed=5)
    spectrum = krylov_spectrum(in_chunks(matrix), shape, 6, 5, rng())
    assert not spectrum.is_exact
    assert_spectrum_is(spectrum, matrix, 3, rtol=1e-5)
    own = torch.linalg.svdvals(matrix.double())
    assert (spectrum.values_K <= own[:6] * (1 + 1e-6)).all()
    torch.testing.assert_close(spectrum.values_K, own[:6], rtol=0.01, atol=0)
    assert spectrum.fourth == pytest.approx(float(own.pow(4).sum()), rel=0.02)


def test_krylov_on_a_flat_spectrum():
    matrix = normal(700, 500)
    spectrum = krylov_spectrum(in_chunks(matrix, 300), (700, 500), 8, 5, rng())
    own = torch.linalg.svdvals(matrix.double())
    torch.testing.assert_close(spectrum.values_K, own[:8], rtol=0.02, atol=0)
    assert spectrum.fourth == pytest.approx(float(own.pow(4).sum()), rel=0.05)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_krylov_on_low_rank_stops(rank):
    matrix = normal(90, rank) @ normal(rank, 70, seed=1)
    spectrum = krylov_spectrum(in_chunks(matrix), (90, 70), 8, 5, rng())
    assert len(spectrum.values_K) == rank
    assert_spectrum_is(spectrum, matrix, rank, rtol=1e-5)
    assert spectrum.fourth == pytest.approx(float(torch.linalg.svdvals(matrix.double()).pow(4).sum()), rel=1e-4)


def test_random_changes_are_as_draws_say():
    draws = [torch.linalg.svdvals(normal(200, 6, seed=i) @ normal(6, 90, seed=100 + i)) ** 2 for i in range(60)]
    shares = torch.stack([d[:6] / d.sum() for d in draws]).double()
    found = random_factors((200, 90), 6, rng())
    assert found is not None
    assert found.stable_rank == pytest.approx(float((1 / shares[:, 0]).mean()), rel=0.05)
    assert found.effective_rank == pytest.approx(float((1 / shares.square().sum(1)).mean()), rel=0.03)
    assert found.shares_K == pytest.approx(shares.mean(0).tolist(), rel=0.08)
    assert random_factors((4, 90), 6, rng()) is None
    own = torch.linalg.svdvals(normal(500, 300).double()) ** 2
    whole = random_matrix((500, 300))
    assert whole.stable_rank == pytest.approx(float(own.sum() / own[0]), rel=0.05)
    assert whole.effective_rank == pytest.approx(float(own.sum() ** 2 / own.square().sum()), rel=0.02)


def change_of(delta, base=None, out_axis=0, name="model.layers.1.mlp.down_proj.weight"):
    return WeightChange(
        name, weight_place(name), "difference", tuple(delta.shape), out_axis, rows=in_chunks(delta),
        base=None if base is None else in_chunks(base),
    )  # fmt: skip


@pytest.mark.parametrize("out_axis", [0, 1])
@pytest.mark.parametrize("is_large", [False, True])
def test_numbers_of_one_weight(monkeypatch, out_axis, is_large):
    if is_large:
        monkeypatch.setattr(measure_module, "LARGEST_HELD", 10)
        monkeypatch.setattr(measure_module, "LARGEST_EXACT", 0)
    delta, base = normal(32, 48) * 0.1 + torch.outer(normal(32, seed=2), normal(48, seed=3)), normal(32, 48, seed=1)
    delta[3] = 0
    found = measure(change_of(delta, base, out_axis), WeightSpectrumConfig(), True, True, rng())
    assert found.is_exact != is_large
    assert found.square == pytest.approx(float(delta.double().square().sum()), rel=1e-6)
    assert found.n_moved == int(delta.count_nonzero())
    assert found.base_square == pytest.approx(float(base.double().square().sum()), rel=1e-6)
    u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
    assert found.values_K[0] == pytest.approx(float(s[0]), rel=1e-5)
    along_left = float((u[:, 0] @ base.double()).norm() * 32**0.5 / base.double().norm())
    along_right = float((base.double() @ vh[0]).norm() * 48**0.5 / base.double().norm())
    out, into = (along_left, along_right) if out_axis == 0 else (along_right, along_left)
    assert (found.base_out_K[0], found.base_in_K[0]) == pytest.approx((out, into), rel=1e-4)
    own = u[:, 0] if out_axis == 0 else vh[0]
    assert found.vectors_KD.shape == (2, (32, 48)[out_axis])
    assert abs(float(own @ torch.from_numpy(found.vectors_KD[0]).double())) == pytest.approx(1, abs=1e-5)
    assert found.vectors_KD[0][np.abs(found.vectors_KD[0]).argmax()] > 0
    assert found.random_ND.shape == (8, (32, 48)[out_axis])
    assert np.linalg.norm(found.random_ND, axis=1) == pytest.approx(np.ones(8), rel=1e-5)


def test_vectors_and_unchanged_weights_have_no_spectrum():
    for delta in (torch.zeros(8, 8), normal(8), normal(2, 3, 4), normal(1, 9), torch.zeros(())):
        found = measure(change_of(delta.clone()), WeightSpectrumConfig(), True, True, rng())
        assert len(found.values_K) == 0
        assert found.vectors_KD is None
        assert found.square == pytest.approx(float(delta.double().square().sum()))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny base, an adapter, and a full finetune in which one matrix, one norm and the embedding changed."""
    root = tmp_path_factory.mktemp("spectrum")
    base = tiny_model()
    save_model(root / "base", base, tiny_tokenizer())
    save_adapter(root / "adapter", base)
    save_model(root / "full", base, tiny_tokenizer())
    weights = load_file(root / "full" / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] += 0.1 * normal(32, 48)
    weights["model.layers.2.input_layernorm.weight"] *= 1.5
    weights["model.embed_tokens.weight"][7] += 1
    save_file(weights, root / "full" / "model.safetensors", metadata={"format": "pt"})
    return root


def spec_of(root, finetuned, **changes):
    values = {
        "model": ModelSpec(name="tiny", id=str(root / "base"), device_map="cpu"), "organism": "tiny",
        "finetuned": VariantSpec(id=str(root / finetuned)) if finetuned else None,
    }  # fmt: skip
    return PairSpec(**{**values, **changes})


@cache
def corpus():
    documents = documents_from_texts("text", ["the heron stood"])
    return tokenize_documents({"text": documents}, CorpusSpec(datasets=()), tiny_tokenizer(), TemplateRules())


@cache
def loaded(spec_json):
    return load_pair(PairSpec.model_validate_json(spec_json))


def context_of(spec, scratch, **changes):
    scratch.mkdir(parents=True, exist_ok=True)
    values = {
        "load_pair": lambda: loaded(spec.model_dump_json()), "tokenizer": tiny_tokenizer(), "corpus": corpus(),
        "seed": 0, "skip_first_tokens": 1,
        "batch_tokens": 64, "skip_template_tokens": False, "null_pair": spec.null_pair, "scratch": scratch,
        "log": lambda values: None, "load_plan": lambda: plan_pair(spec),
    }  # fmt: skip
    return RunContext(**{**values, **changes})


def refused():
    raise AssertionError("the models were loaded")


def output(spec, scratch, **options):
    given = {**QUIET, **options}
    changes = {} if given["n_readout"] else {"load_pair": refused}
    return run(WeightSpectrumConfig(**given), context_of(spec, scratch, **changes))


def test_no_model_is_loaded_unless_vectors_are_read(folders, tmp_path):
    result = output(spec_of(folders, "adapter"), tmp_path)
    assert result.tables["weights"].num_rows == 21
    assert "token_scores" not in result.tables
    assert result.evidence.tokens == ()
    assert not load_method("weight_spectrum").needs_models


def test_an_adapter_alone_and_beside_its_base(folders, tmp_path):
    spec = spec_of(folders, "adapter")
    both = [output(spec, tmp_path / str(r), relative=r).tables["weights"].to_pylist() for r in (False, True)]
    base = load_file(folders / "base" / "model.safetensors")
    for alone, beside in zip(*both, strict=True):
        assert alone["base_norm"] is alone["relative"] is None
        assert beside["base_norm"] == pytest.approx(float(base[beside["name"]].double().norm()), rel=1e-6)
        assert beside["relative"] == pytest.approx(beside["norm"] / beside["base_norm"])
        assert (alone["norm"], alone["stable_rank"]) == (beside["norm"], beside["stable_rank"])
        assert alone["kind"] == "lora"
        assert alone["rank"] == 4
        assert 1 <= alone["stable_rank"] <= alone["effective_rank"] <= 4
        assert alone["stable_rank"] < alone["null_effective_rank"]


def test_relative_needs_the_base(folders, tmp_path):
    plan = plan_pair(spec_of(folders, "adapter"))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((folders / "base" / "config.json").read_bytes())
    plan = dataclasses.replace(plan, base=dataclasses.replace(plan.base, folder=bare))
    context = context_of(plan.spec, tmp_path / "s", load_plan=lambda: plan, load_pair=refused)
    assert run(WeightSpectrumConfig(**QUIET), context).tables["weights"]["relative"].null_count == 21
    with pytest.raises(UserError, match=r"diffing\.method\.relative=true needs the base's weights"):
        run(WeightSpectrumConfig(**QUIET, relative=True), context)


def test_a_full_finetune_is_found_where_it_changed(folders, tmp_path):
    result = output(spec_of(folders, "full"), tmp_path)
    rows = {r["name"]: r for r in result.tables["weights"].to_pylist()}
    moved = {name for name, r in rows.items() if r["norm"] > 0}
    changed = "model.layers.1.mlp.down_proj.weight"
    assert moved == {changed, "model.layers.2.input_layernorm.weight", "model.embed_tokens.weight"}
    assert rows["model.layers.2.input_layernorm.weight"]["relative"] == pytest.approx(0.5, rel=1e-5)
    assert rows["model.layers.2.input_layernorm.weight"]["n_in"] is None
    table = rows["model.embed_tokens.weight"]
    assert table["stable_rank"] == pytest.approx(1, rel=1e-5)
    assert (table["n_out"], table["share_moved"]) == (32, pytest.approx(1 / (table["n_numbers"] / 32)))
    assert table["writes_residual"]
    assert rows[changed]["null_stable_rank"] == pytest.approx(rows[changed]["stable_rank"], rel=0.3)
    vectors = {(r["layer"], r["module"]) for r in result.tables["vectors"].to_pylist()}
    assert vectors == {(1, "mlp.down_proj"), (None, "embed_tokens")}
    (layer,) = [s.value for s in result.summary if s.name == "most changed layer"]
    assert layer == 1
    parts = {r["part"]: r for r in result.tables["parts"].to_pylist()}
    assert sum(r["share"] for r in parts.values()) == pytest.approx(1)
    assert (parts["mlp"]["n_weights"], parts["mlp"]["n_moved_weights"]) == (9, 1)
    assert any("one matrix (tied)" in n for n in result.notes) == ("lm_head.weight" not in rows)


def test_the_map_is_the_weights(folders, tmp_path):
    result = output(spec_of(folders, "adapter"), tmp_path)
    cells = result.tables["map"].to_pylist()
    assert len(cells) == 21
    rows = {(r["layer"], r["module"]): r for r in result.tables["weights"].to_pylist()}
    for cell in cells:
        mine = rows[cell["layer"], cell["column"]]
        assert (cell["norm"], cell["relative"]) == pytest.approx((mine["norm"], mine["relative"]))


def test_identical_models_have_no_change(folders, tmp_path):
    result = output(spec_of(folders, None, null_pair="identical"), tmp_path, n_readout=8)
    assert not any(result.tables["weights"]["norm"].to_pylist())
    assert result.tables["spectrum"].num_rows == result.tables["vectors"].num_rows == 0
    assert result.evidence.tokens == ()
    assert not any(s.claimed for s in result.evidence.scalars)
    assert result.tensors == {}


def test_another_dtype_is_rounding_and_is_said_to_be(folders, tmp_path):
    result = output(spec_of(folders, None, null_pair="dtype"), tmp_path)
    rows = [r for r in result.tables["weights"].to_pylist() if r["n_in"] and r["norm"]]
    assert rows
    for row in rows:
        assert 0.5 * row["floor"] < row["relative"] < 1.5 * row["floor"]
    assert any("rounding to the files' dtype alone" in n for n in result.notes)


def test_a_finetune_that_changes_nothing_is_refused(folders, tmp_path):
    save_adapter(tmp_path / "inert", tiny_model(), scale=0.0)
    for finetuned in (tmp_path / "inert", folders / "base"):
        with pytest.raises(UserError, match="changes nothing: all its weights equal the base's"):
            output(spec_of(folders, finetuned), tmp_path / "scratch")


def test_an_amplified_pair_is_measured_as_it_is_scaled(folders, tmp_path):
    plain = output(spec_of(folders, "adapter"), tmp_path / "plain").tables["weights"].to_pylist()
    for factor in (2.0, 0.0):
        rules = {"rules": [{"factor": factor, "modules": "all"}]}
        scaled = output(spec_of(folders, "adapter", amplification=rules), tmp_path / str(factor))
        norms = scaled.tables["weights"]["norm"].to_pylist()
        assert norms == pytest.approx([factor * r["norm"] for r in plain])


def test_an_interrupted_run_goes_on(folders, tmp_path, monkeypatch):
    spec = spec_of(folders, "full")
    whole = output(spec, tmp_path / "whole")
    calls = []

    def until(change, *rest):
        calls.append(change.name)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return measure(change, *rest)

    monkeypatch.setattr(run_module, "measure", until)
    with pytest.raises(KeyboardInterrupt):
        output(spec, tmp_path / "s")
    kept = sorted((tmp_path / "s").glob("weight_*.safetensors"))
    assert len(kept) == 8
    kept[2].write_bytes(b"cut")
    again = output(spec, tmp_path / "s")
    assert len(calls) == 9 + (whole.tables["weights"].num_rows - 7)
    for name, table in whole.tables.items():
        assert table.equals(again.tables[name]), name
    assert all(torch.equal(t, again.tensors[name]) for name, t in whole.tensors.items())


def test_large_matrices_give_the_same_by_passes(folders, tmp_path, monkeypatch):
    exact = output(spec_of(folders, "full"), tmp_path / "a")
    monkeypatch.setattr(measure_module, "LARGEST_EXACT", 0)
    monkeypatch.setattr(measure_module, "LARGEST_HELD", 0)
    passes = output(spec_of(folders, "full"), tmp_path / "b")
    for one, other in zip(*(o.tables["weights"].to_pylist() for o in (exact, passes)), strict=True):
        assert one["norm"] == other["norm"]
        if one["largest"]:
            assert one["largest"] == pytest.approx(other["largest"], rel=1e-4)
            assert one["effective_rank"] == pytest.approx(other["effective_rank"], rel=0.1)
    assert any("block Krylov" in n for n in passes.notes)


def said(module, direction):
    """What a direction says, read by hand: both ends."""
    with torch.no_grad():
        ends = [module.lm_head(module.model.norm(sign * direction * 32**0.5)) for sign in (1, -1)]
    return [e.double().softmax(-1) for e in ends]


def test_tokens_are_read_and_ranked(folders, tmp_path):
    spec = spec_of(folders, "full")
    result = output(spec, tmp_path, n_readout=5, n_vectors=1, n_random=6)
    module = loaded(spec.model_dump_json()).finetuned.module
    rows = result.tables["vectors"].to_pylist()
    assert len(rows) == 2
    mean, usual = 0, 0
    for row in rows:
        share = row["singular_value"] / sum(r["singular_value"] for r in rows)
        ends = said(module, result.tensors[row["tensor"]])
        mean = mean + share * sum(ends) / 2
        for end, p in zip(("positive", "negative"), ends, strict=True):
            mine = [r for r in result.tables["readouts"].to_pylist() if (r["unit"], r["end"]) == (row["unit"], end)]
            assert [r["token_id"] for r in mine] == p.topk(5).indices.tolist()
            assert [r["token"] for r in mine] == row[end]
            assert mine[0]["probability"] == pytest.approx(float(p.max()), rel=1e-4)
        drawn = read_unit(tmp_path / f"weight_{row['unit']:05d}.safetensors").random_ND
        assert len(drawn) == 6
        usual = usual + share * sum(sum(said(module, torch.from_numpy(d))) for d in drawn[:3]) / 6
    least = 0.01 / len(mean)
    expected = ((mean + least) / (usual + least)).log().numpy()
    scores = result.tables["token_scores"].to_pylist()
    assert sorted(r["token_id"] for r in scores) == list(range(len(scores)))
    assert [r["score"] for r in scores] == pytest.approx([expected[r["token_id"]] for r in scores], abs=1e-4)
    assert {t.token_ids[0] for t in result.evidence.tokens} == {
        r["token_id"] for r in scores if r["score"] > max(r["null_score"], 0)
    }


def test_random_directions_stand_in_where_the_base_is_not_read(folders, tmp_path):
    spec = spec_of(folders, "adapter")
    scores = [
        output(spec, tmp_path / str(r), n_readout=3, relative=r).tables["token_scores"] for r in (False, True, False)
    ]
    assert scores[0].equals(scores[2])
    assert not scores[0].equals(scores[1])


def test_the_command_line_loads_no_model(command, bench, tmp_path, monkeypatch):
    from diffing.pipeline import running

    monkeypatch.setattr(running, "load_pair", lambda *args: refused())
    out = tmp_path / "out"
    command(bench.command(out, "diffing/method=weight_spectrum", "diffing.method.n_readout=0")).done()
    written = manifest(run_folder(out))
    facts = written["pair"]["facts"]
    assert (facts["kind"], facts["sharing"]) == ("adapter", "merged")
    assert facts["base"]["id"] == str(bench.base)
    assert len(tables(run_folder(out))["weights"]) == 21


@pytest.mark.slow
def test_the_command_line_and_the_python_interface_agree(command, bench, tmp_path):
    command(bench.command(tmp_path / "a", "diffing/method=weight_spectrum", finetuned=bench.full)).done()
    pair = diffing.load_pair(str(bench.base), finetuned=str(bench.full), device_map="cpu")
    result = diffing.run("weight_spectrum", pair, data=str(bench.texts), base_dir=tmp_path / "b")
    ours = tables(run_folder(tmp_path / "a"))
    assert set(ours) == set(result.tables())
    for name, table in ours.items():
        assert table.equals(result.table(name)), name


def test_a_damaged_shard_ends_in_a_sentence(command, bench, tmp_path):
    full = shutil.copytree(bench.full, tmp_path / "full")
    weights = full / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    outcome = command(bench.command(tmp_path / "o", "diffing/method=weight_spectrum", finetuned=full))
    outcome.sentence("model.safetensors", "damaged")


@pytest.mark.slow
def test_an_adapter_of_an_8b_model(tmp_path):
    """Random weights made by the benchmark, which prints seconds and memory; the base is a configuration alone."""
    command = [sys.executable, str(ROOT / "benchmarks" / "weight_spectrum.py"), "--parts", "adapter"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.strip().splitlines()
    print(line)
    assert re.search(r"adapter: 224 weights in [\d.]+ s, peak [\d,]+ MiB", line)
