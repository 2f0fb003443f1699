"""`sae_difference` and `crosscoder` by command line and from Python: tables, runs found again, stopped, refused."""

import copy
import dataclasses
import json
import math
import signal

import numpy as np
import pytest
import torch
from memory_source import MemorySource, context_with, corpus_of_lengths

import diffing
from diffing.analysis.latents import run as run_module
from diffing.analysis.latents.results import (
    CausalRow,
    CausalTextMeanRow,
    CausalTextRow,
    CoactivationRow,
    CurveRow,
    LatentGroupRow,
    LatentRow,
    LatentTokenRow,
    QualityRow,
    SplicedRow,
)
from diffing.analysis.windows import WindowRow
from diffing.core.errors import UserError
from diffing.core.layers import Slot
from diffing.core.method import load_method
from diffing.core.tables import DocumentScoreRow, TokenScoreRow, schema_of
from diffing.dictionaries.layouts import read_layout
from diffing.models.tiny import save_model, tiny_model, tiny_tokenizer
from workbench import assert_same_tables, manifest, run_folder, run_folders, start, tables, write_jsonl

METHODS = ("sae_difference", "crosscoder")
SMALL = (
    "diffing.method.n_latents=40", "diffing.method.k=4", "diffing.method.training.batch_rows=32",
    "diffing.method.training.n_tokens=640", "infrastructure.threads=1",
)  # fmt: skip
ROWS = {
    "latents": LatentRow, "latent_groups": LatentGroupRow, "latent_tokens": LatentTokenRow, "examples": WindowRow,
    "quality": QualityRow, "training": CurveRow, "loss_recovered": SplicedRow, "causal": CausalRow,
    "causal_texts": CausalTextRow, "causal_text_means": CausalTextMeanRow, "coactivation": CoactivationRow,
    "token_scores": TokenScoreRow, "document_scores": DocumentScoreRow,
}  # fmt: skip
SEEDS = ("other_seed_cosine", "comes_back")
LAYOUTS = {"sae_difference": "saelens", "crosscoder": "crosscoder_learning"}
NULL = {f"{t}.{f.name}" for t, row in ROWS.items() for f in dataclasses.fields(row) if "None" in str(f.type)}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As many as the processes that some tests start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def asked(bench, base_dir, name, *more, **changes):
    return bench.command(base_dir, f"diffing/method={name}", *SMALL, *more, **changes)


@pytest.fixture(scope="module", params=METHODS)
def whole(request, bench, tmp_path_factory):
    """(method, run folder) of a run with another layout besides ours."""
    from diffing.cli import main

    name, base_dir = request.param, tmp_path_factory.mktemp("whole")
    assert main(asked(bench, base_dir, name, f"diffing.method.save_as=[{LAYOUTS[name]}]")) == 0
    return name, run_folder(base_dir)


def assert_clean(found):
    """Columns are those of the row types; numbers are finite, and only what may be unknown is null."""
    assert set(found) == set(ROWS)
    for name, table in found.items():
        assert table.schema.equals(schema_of(ROWS[name])), name
        for column in table.column_names:
            values = table[column].to_pylist()
            flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
            assert not any(isinstance(v, float) and not math.isfinite(v) for v in flat), f"{name}.{column}"
            assert f"{name}.{column}" in NULL or None not in values, f"{name}.{column}"


def test_tables_are_whole(whole):
    name, folder = whole
    found = tables(folder)
    assert_clean(found)
    latents = found["latents"].to_pylist()
    assert [r["rank"] for r in latents] == list(range(40))
    may_be_empty = ("causal", "causal_texts", "causal_text_means", "coactivation")
    assert all(found[t].num_rows for t in ROWS if t not in may_be_empty), name
    live = [r for r in latents if not r["is_dead"]]
    assert len(live) > 20
    assert sum(r["energy_share"] for r in live) == pytest.approx(1)
    for row in latents:
        assert (row["mean_activation"] is None) == row["is_dead"] == (row["frequency"] == 0)
        assert (row["relative_norm"] is None) == (name == "sae_difference")
    assert {r["seed"] for r in found["training"].to_pylist()} == {0, 1}
    for row in found["examples"].to_pylist():
        at = row["peak"] - row["start"]
        assert row["values"][at] == pytest.approx(row["score"])
        assert len(row["values"]) == len(row["tokens"]) == len(row["starts"]) == len(row["ends"])
        assert row["values"][0] is None or row["start"] > 0  # the first token of a text is not kept
    facts = manifest(folder)["facts"]
    assert facts["slot"] == "layer_01/residual"
    assert facts["unique_tokens"] * facts["epochs"] == pytest.approx(facts["tokens_trained"])


def test_headlines_are_those_of_the_tables(whole):
    name, folder = whole
    found = tables(folder)
    scalars = {s["name"]: s for s in json.loads((folder / "summary.json").read_text(encoding="utf-8"))["scalars"]}
    quality = [r for r in found["quality"].to_pylist() if r["dataset"] == "all" and r["is_held_out"]]
    for row in quality:
        assert scalars[f"FVE {row['site']} (held-out)"]["value"] == row["fve"]
    latents = found["latents"].to_pylist()
    live = [r for r in latents if not r["is_dead"]]
    assert scalars["dead latents"]["value"] == 1 - len(live) / len(latents)
    back = scalars["live latents that come back with another seed"]["value"]
    assert back == pytest.approx(np.mean([r["comes_back"] for r in live]))
    assert ("latents tagged ft_only" in scalars) == (name == "crosscoder")
    for row in found["loss_recovered"].to_pylist():
        assert scalars[f"loss recovered · {row['model']} · {row['dataset']}"]["value"] == row["recovered"]


def test_vectors_are_decoder_rows_in_raw_units(whole):
    name, folder = whole
    (result,) = diffing.open_results(folder.parents[4]).find(method=name)
    dictionary = read_layout(folder / "files" / "dictionary").dictionary
    live = [r["latent"] for r in tables(folder)["latents"].to_pylist() if not r["is_dead"]]
    assert sorted(result.tensors()) == sorted(f"latent_{j:06d}" for j in live)
    rows = dictionary.decoder_FMD.detach()[:, -1] / dictionary.scale_M[-1]
    for j in live:
        torch.testing.assert_close(result.tensor(f"latent_{j:06d}"), rows[j])
    named = load_method(name).vectors
    assert named is not None
    for vector in named(result):
        row = next(r for r in result.table("latents").to_pylist() if vector.tensor == f"latent_{r['latent']:06d}")
        assert vector.layer == 1
        assert vector.norm == pytest.approx(row["norm_ft_raw"])
        assert vector.maximum == pytest.approx(row["maximum_raw"])


def test_the_layout_asked_for_opens_with_the_same_reconstructions(whole):
    name, folder = whole
    ours, theirs = (read_layout(folder / "files" / f) for f in ("dictionary", f"dictionary_{LAYOUTS[name]}"))
    assert (ours.layout, theirs.layout) == ("diffing", LAYOUTS[name])
    spec = ours.dictionary.spec
    raw = torch.randn(200, spec.n_sites, spec.width, generator=torch.Generator().manual_seed(0)) * 5
    made = []
    for published in (ours, theirs):
        x = published.dictionary.normalised(raw)
        made.append(published.dictionary.raw(published.dictionary.decode(published.dictionary.encode(x))).detach())
    torch.testing.assert_close(*made, atol=1e-4, rtol=1e-4)
    assert len(ours.dictionary.encode(ours.dictionary.normalised(raw))) > 100


def test_a_finished_run_is_found_by_either_way(whole, command, bench):
    name, folder = whole
    base_dir = folder.parents[4]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    outcome = command(asked(bench, base_dir, name, f"diffing.method.save_as=[{LAYOUTS[name]}]")).done()
    assert "overwrite=true" in outcome.err
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert run_folders(base_dir) == [folder]


@pytest.mark.slow
def test_from_python_as_from_the_command_line(whole, bench, tmp_path):
    name, folder = whole
    pair = diffing.load_pair(str(bench.base), adapter=str(bench.adapter), device_map="cpu")
    training = {"batch_rows": 32, "n_tokens": 640}
    result = diffing.run(name, pair, data=str(bench.texts), base_dir=tmp_path, n_latents=40, k=4, training=training)
    for table in ("latents", "training", "quality", "causal", "loss_recovered"):
        assert result.table(table).equals(tables(folder)[table]), table
    assert set(result.figures()) >= {"training", "latents", "frequency"}
    assert diffing.run(
        name, pair, data=str(bench.texts), base_dir=tmp_path, n_latents=40, k=4, training=training
    ).folder == result.folder  # fmt: skip


@pytest.mark.slow
def test_live_is_disk_to_the_bit(whole, command, bench, tmp_path):
    name, folder = whole
    more = (f"diffing.method.save_as=[{LAYOUTS[name]}]", "preprocessing.store=live")
    command(asked(bench, tmp_path / "out", name, *more)).done()
    assert_same_tables(run_folder(tmp_path / "out"), folder)


@pytest.mark.slow
def test_a_saved_dictionary_opened_gives_the_same_latents(whole, command, bench, tmp_path):
    name, folder = whole
    command(asked(bench, tmp_path / "out", name, f"diffing.method.path={folder / 'files' / 'dictionary'}")).done()
    found, expected = tables(run_folder(tmp_path / "out")), tables(folder)
    assert_clean(found)
    assert found["latents"].drop_columns(SEEDS).equals(expected["latents"].drop_columns(SEEDS))
    assert set(found["latents"]["comes_back"].to_pylist()) == {None}
    assert not found["training"].num_rows
    for table in set(ROWS) - {"latents", "training"}:
        assert found[table].equals(expected[table]), table


@pytest.mark.slow
def test_another_library_s_layout_opened_is_as_active(whole, command, bench, tmp_path):
    name, folder = whole
    path = folder / "files" / f"dictionary_{LAYOUTS[name]}"
    command(asked(bench, tmp_path / "out", name, f"diffing.method.path={path}")).done()
    found, expected = (
        {r["latent"]: r for r in tables(f)["latents"].to_pylist()} for f in (run_folder(tmp_path / "out"), folder)
    )
    for j, row in found.items():
        assert row["is_dead"] == expected[j]["is_dead"]
        assert row["frequency"] == pytest.approx(expected[j]["frequency"], abs=0.005)


@pytest.mark.parametrize("name", METHODS)
def test_equal_models_have_nothing_of_their_own(name, command, bench, tmp_path):
    outcome = command(asked(bench, tmp_path, name, "null_pair=identical")).done()
    found = tables(run_folder(tmp_path))
    assert_clean(found)
    evidence = json.loads((run_folder(tmp_path) / "evidence.json").read_text(encoding="utf-8"))
    assert not evidence["tokens"]
    assert not evidence["examples"]
    if name == "sae_difference":
        assert "nothing to learn" in outcome.out
        assert not any(t.num_rows for t in found.values())
        return
    latents = found["latents"].to_pylist()
    assert {r["tag"] for r in latents} <= {"shared", "dead"}
    for row in latents:
        assert row["relative_norm"] == pytest.approx(0.5, abs=1e-4)
        assert row["nu_error"] is None or row["nu_error"] == pytest.approx(1, abs=1e-3)
        assert row["verdict"] is None
    assert not found["causal"].num_rows
    assert set(found["token_scores"]["score"].to_pylist()) == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [("sae_difference", "diffing.method.k=30"), ("crosscoder", "diffing.method.training.batch_rows=1024")],
)
def test_one_document(name, more, command, bench, tmp_path):
    """Nothing can be held out, there are fewer tokens than k, or than a batch: then all go into each."""
    data = write_jsonl(tmp_path / "one.jsonl", [{"text": "the bell rang twice"}])
    outcome = command(asked(bench, tmp_path / "out", name, more, data=data)).done()
    assert "too few documents" in outcome.out
    found = tables(run_folder(tmp_path / "out"))
    assert_clean(found)
    assert set(found["quality"]["is_held_out"].to_pylist()) == {False}


@pytest.mark.parametrize("name", METHODS)
def test_other_sites_are_not_spliced(name, command, bench, tmp_path):
    outcome = command(asked(bench, tmp_path, name, "diffing.method.site=mlp", "diffing.method.layer=2")).done()
    assert "losses are not measured" in outcome.out
    found = tables(run_folder(tmp_path))
    assert_clean(found)
    assert manifest(run_folder(tmp_path))["facts"]["slot"] == "layer_02/mlp"
    assert not any(found[t].num_rows for t in ("causal", "loss_recovered", "latent_tokens"))
    (result,) = diffing.open_results(tmp_path).find(method=name)
    assert load_method(name).vectors(result) == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sparsity"),
    [("sae_difference", "topk"), ("sae_difference", "l1"), ("crosscoder", "jumprelu"), ("crosscoder", "topk")],
)
def test_every_sparsity(name, sparsity, command, bench, tmp_path):
    command(asked(bench, tmp_path, name, f"diffing.method.sparsity={sparsity}", "diffing.method.n_seeds=1")).done()
    found = tables(run_folder(tmp_path))
    assert_clean(found)
    assert set(found["latents"]["other_seed_cosine"].to_pylist()) == {None}


def test_variants_of_the_crosscoder(command, bench, tmp_path):
    more = ("diffing.method.n_shared=10", "diffing.method.n_dedicated=5", "diffing.method.norm=shared")
    command(asked(bench, tmp_path, "crosscoder", *more)).done()
    found = {r["latent"]: r for r in tables(run_folder(tmp_path))["latents"].to_pylist()}
    for j, row in found.items():
        if j < 10:
            assert row["relative_norm"] == pytest.approx(0.5, abs=1e-6)
        if j >= 30:
            assert row["relative_norm"] == (1 if j < 35 else 0)
            assert row["is_dead"] or row["tag"] == ("base_only" if j < 35 else "ft_only")


BAD = [
    (("k=50",), ("diffing.method.k=50", "40 latents", "n_latents=50")),
    (("n_latents=null", "expansion=0.1"), ("diffing.method.k=4", "3 latents", "lower k")),
    (("layer=3",), ("Layer 3", "3 layers", "diffing.method.layer")),
    (("save_as=[saelense]",), ("saelense", "did you mean saelens?")),
    (("save_as=[dictionary_learning]",), ("dictionary_learning", "only read")),
    (("training.device=cudda",), ("training.device='cudda'", "use auto or cpu")),
    (("training.device=meta",), ("training.device='meta'", "use auto or cpu")),
    (("expantion=4",), ("diffing.method.expantion", "did you mean diffing.method.expansion")),
    (("training.n_token=4",), ("training.n_token", "did you mean diffing.method.training.n_tokens")),
    (("sparsity=batchtopk",), ("diffing.method.sparsity", "'batchtopk'", "'batch_topk'")),
    (("k=0",), ("diffing.method.k", "0")),
    (("training.lr=-1",), ("diffing.method.training.lr", "-1")),
    (("site=head",), ("diffing.method.site", "'head'")),
    (("path=/no/where",), ("/no/where", "path")),
    (("path=/no/where", "save_as=[saelens]"), ("/no/where",)),
]


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """An output folder in which nothing ever ends well; activations are harvested into it once."""
    return tmp_path_factory.mktemp("refused")


@pytest.mark.parametrize(("options", "parts"), BAD, ids=lambda o: o[0] if o and "=" in o[0] else "")
def test_what_cannot_be_is_one_sentence(options, parts, command, bench, refused):
    more = [f"diffing.method.{o}" for o in options]
    found = command(asked(bench, refused, "crosscoder", *more))
    assert len(found.sentence(*parts)) < 300
    assert "training the dictionary" not in found.err
    assert not list(refused.glob("results/*/*/*/*/manifest.json"))


@pytest.mark.parametrize(
    ("name", "layout", "parts"),
    [
        ("sae_difference", "crosscoder_learning", ("several sites", "has 1")),
        ("sae_difference", "sparsify", ("sparsify", "batch_topk", "only topk")),
        ("crosscoder", "saelens", ("saelens", "one site", "has 2")),
        ("crosscoder", "sparsify", ("sparsify", "one site", "has 2")),
    ],
)
def test_layouts_that_cannot_hold_it_are_refused_before_training(name, layout, parts, command, bench, refused):
    found = command(asked(bench, refused, name, f"diffing.method.save_as=[{layout}]"))
    found.sentence(*parts)
    assert "training the dictionary" not in found.err


@pytest.mark.parametrize("options", [("n_dedicated=21",), ("n_shared=30", "n_dedicated=6"), ("n_shared=41",)])
def test_too_many_latents_set_apart(options, command, bench, refused):
    more = [f"diffing.method.{o}" for o in options]
    found = command(asked(bench, refused, "crosscoder", *more))
    assert len(found.sentence("n_dedicated", "n_shared", "40 latents", "diffing.method.n_latents=4")) < 300


@pytest.mark.slow
def test_dictionaries_that_do_not_fit(whole, command, bench, tmp_path):
    name, folder = whole
    (other,) = set(METHODS) - {name}
    path = f"diffing.method.path={folder / 'files' / 'dictionary'}"
    n_sites = ("1 activation ", "2 activations ") if name == "sae_difference" else ("2 activations ", "1 activation ")
    command(asked(bench, tmp_path / "a", other, path)).sentence(*n_sites, "choose one")
    wide = save_model(tmp_path / "wide", tiny_model(hidden_size=64), tiny_tokenizer())
    finetuned = save_model(tmp_path / "wide_ft", tiny_model(seed=1, hidden_size=64), tiny_tokenizer())
    command(asked(bench, tmp_path / "b", name, path, base=wide, finetuned=finetuned)).sentence("width 32", "width 64")
    command(asked(bench, tmp_path / "c", name, path, "diffing.method.save_as=[nothing]")).sentence("no layout nothing")
    # Of another layer: told, not refused.
    outcome = command(asked(bench, tmp_path / "d", name, path, "diffing.method.layer=2")).done()
    assert "trained on layer 1 and reads layer 2" in outcome.out


@pytest.mark.parametrize("name", METHODS)
def test_pickles_are_not_opened(name, command, bench, refused, tmp_path):
    (tmp_path / "there").mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "there" / "model.pt")
    command(asked(bench, refused, name, f"diffing.method.path={tmp_path / 'there'}")).sentence(
        "model.pt", "a pickle", "safetensors"
    )


# Degenerate activations, held in memory, after an MLP: no model is needed.
CORPUS = corpus_of_lengths({"web": [20, 1, 31, 12, 25], "chat": [28, 14, 40]})
MLP = Slot(1, "mlp")


def output_of(name, base, finetuned, folder, corpus=CORPUS, null_pair="none", **options):
    method = load_method(name)
    training = {"batch_rows": 32, "n_tokens": 960, **options.pop("training", {})}
    config = method.config(**{"n_latents": 24, "k": 3, "training": training, **options})
    source = MemorySource(corpus, {MLP: base}, {MLP: finetuned})
    return method.run(config, context_with(source, corpus, folder, null_pair=null_pair))


def random_pair(seed=0, n=CORPUS.n_tokens, width=16):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(n, width))
    moved = base + rng.gamma(1.0, size=(n, 1)) * rng.normal(size=width) + 0.2 * rng.normal(size=base.shape)
    return torch.from_numpy(base).float(), torch.from_numpy(moved).float()


@pytest.mark.parametrize("name", METHODS)
def test_activations_that_are_the_same_everywhere(name, tmp_path):
    base, finetuned = random_pair()
    constant = torch.full_like(base, 3)
    if name == "sae_difference":  # δ is the same everywhere, exactly
        base, finetuned = base.round(), base.round() + 1
    else:
        finetuned = constant
    site = "difference" if name == "sae_difference" else "finetuned"
    with pytest.raises(UserError, match=rf"\({site}\) are the same at every token.*choose another layer"):
        output_of(name, base, finetuned, tmp_path)
    with pytest.raises(UserError, match="are the same at every token"):
        output_of(name, constant, 2 * constant, tmp_path / "both")


@pytest.mark.parametrize("name", METHODS)
def test_too_many_batches_of_nan(name, tmp_path):
    base, finetuned = random_pair()
    finetuned[::3] = float("nan")
    with pytest.raises(UserError, match=r"10 batches .* NaN or infinity.*preprocessing\.dtype"):
        output_of(name, base, finetuned, tmp_path)
    with pytest.raises(UserError, match="No activation is finite"):
        output_of(name, base, finetuned * float("nan"), tmp_path / "none")


@pytest.mark.parametrize("name", METHODS)
def test_some_that_are_not_finite_are_left_out_and_counted(name, tmp_path):
    base, finetuned = random_pair()
    finetuned[5], base[50] = float("inf"), float("nan")
    found = output_of(name, base, finetuned, tmp_path, training={"n_tokens": 320})
    assert_clean(found.tables)
    assert any(n.startswith("2 tokens hold NaN") for n in found.notes)


@pytest.mark.parametrize("name", METHODS)
def test_attention_sinks_are_left_out_and_counted(name, tmp_path):
    base, finetuned = random_pair()
    base[[6, 70]] *= 1000
    found = output_of(name, base, finetuned, tmp_path)
    assert any("(attention sinks): 2 of the tokens" in n for n in found.notes)
    base[[6, 70]] /= 1000
    plain = output_of(name, base, finetuned, tmp_path / "plain", outlier_norm=None)
    for one, other in zip(found.tables["quality"].to_pylist(), plain.tables["quality"].to_pylist(), strict=True):
        assert one["fve"] == pytest.approx(other["fve"], abs=0.2)


@pytest.mark.parametrize("name", METHODS)
def test_no_latent_is_alive(name, monkeypatch, tmp_path):
    train_on = run_module.train_on

    def killed(*given):
        trained = train_on(*given)
        with torch.no_grad():
            trained.dictionary.encoder_bias_F.fill_(-1e6)
        return trained

    monkeypatch.setattr(run_module, "train_on", killed)
    found = output_of(name, *random_pair(), tmp_path)
    assert_clean(found.tables)
    assert set(found.tables["latents"]["tag"].to_pylist()) == {"dead"}
    assert not found.tables["examples"].num_rows
    assert not found.evidence.examples


@pytest.mark.parametrize("name", METHODS)
def test_what_comes_back(name, monkeypatch, tmp_path):
    """The second seed's dictionary is the first's, but some latents turned, some dead, some of another tag."""
    train_on, first = run_module.train_on, []

    def related(*given):
        if not first:
            first.append(train_on(*given))
            return first[0]
        other = copy.deepcopy(first[0])
        d = other.dictionary
        with torch.no_grad():
            d.encoder_FMD[:8] *= -1
            d.decoder_FMD[:8] *= -1
            d.encoder_bias_F[8:12] = -1e6
            if name == "crosscoder":
                d.decoder_FMD[12:16, 0] *= 0.4  # cosine 0.92, another tag
        return other

    monkeypatch.setattr(run_module, "train_on", related)
    rows = {r["latent"]: r for r in output_of(name, *random_pair(), tmp_path).tables["latents"].to_pylist()}
    n_back = n_retagged = 0
    for j, row in rows.items():
        assert row["comes_back"] is not None
        if row["comes_back"]:
            assert row["other_seed_cosine"] >= 0.7
        if j >= 16 and not row["is_dead"]:
            assert row["other_seed_cosine"] == pytest.approx(1, abs=1e-5)
            assert row["comes_back"]
            n_back += 1
        if 8 <= j < 12:
            assert row["other_seed_cosine"] < 0.999
        if name == "crosscoder" and 12 <= j < 16 and not row["is_dead"] and row["tag"] == "shared":
            assert row["other_seed_cosine"] > 0.85
            assert not row["comes_back"]
            n_retagged += 1
    assert n_back >= 4
    assert n_retagged or name == "sae_difference"


@pytest.mark.parametrize("name", METHODS)
def test_null_pairs_claim_nothing(name, tmp_path):
    found = output_of(name, *random_pair(), tmp_path, null_pair="dtype").evidence
    items = [i for f in dataclasses.fields(found) for i in getattr(found, f.name)]
    assert items
    assert {i.claimed for i in items} == {False}


# Stopped while training.
LONG = ("diffing.method.training.n_tokens=16000", "diffing.method.training.checkpoint_steps=5")


def killed_while(line, args, cwd):
    """Start a run and kill it once stderr says so."""
    process = start(args, cwd)
    for seen in process.stderr:
        if line in seen:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_run_killed_in_training_ends_as_if_it_never_was(name, command, bench, tmp_path):
    command(asked(bench, tmp_path / "whole", name, *LONG)).done()
    out = tmp_path / "out"
    args = asked(bench, out, name, *LONG)
    killed_while("training the dictionary: 50 %", args, tmp_path)
    folder = run_folder(out)
    assert list((folder / "partial").rglob("*")), "no checkpoint"
    killed_while("training it again, seed 1: 30 %", args, tmp_path)
    outcome = command(args).done()
    assert "Going on" in outcome.err
    assert "training the dictionary: 10 %" not in outcome.err
    assert_same_tables(folder, run_folder(tmp_path / "whole"))
    assert not (folder / "partial").exists()


def test_the_dictionary_reads_a_text_of_ones_own(whole, bench):
    """Activations are those of the dictionary on what a hook sees, none at the position that the run left out."""
    from diffing.core.result import Result
    from diffing.pipeline.probing import probe_text

    name, folder = whole
    pair = diffing.load_pair(str(bench.base), adapter=str(bench.adapter), device_map="cpu")
    result = Result(folder)
    found = probe_text(pair, "the heron rang the bell twice", methods=(), results=(result,))
    values = found.values[name]
    assert values
    assert len(values) <= 24
    slot = manifest(folder)["facts"]["slot"]
    layer = int(slot.partition("/")[0].removeprefix("layer_"))
    ids_BT = torch.tensor([found.token_ids])
    seen = []
    for handle in (pair.base, pair.finetuned):
        kept = []
        hook = handle.sites.layers[layer].register_forward_hook(
            lambda module, args, output, kept=kept: kept.append(output[0] if isinstance(output, tuple) else output)
        )
        with handle.active(), torch.no_grad():
            handle.module(input_ids=ids_BT)
        hook.remove()
        seen.append(kept[0][0])
    rows = torch.stack(seen, 1) if name == "crosscoder" else (seen[1] - seen[0])[:, None]
    dictionary = read_layout(folder / "files" / "dictionary").dictionary
    acts = dictionary.encode(dictionary.normalised(rows)).dense()
    for value in values:
        latent = int(value.name.split()[1])
        assert value.layer == layer
        assert value.values_T[0] == 0
        assert value.values_T[1:] == pytest.approx(acts[1:, latent].tolist(), abs=1e-4)


@pytest.mark.slow
def test_another_dictionary_under_the_same_path_is_another_run(bench, command, whole, tmp_path):
    import shutil

    name, folder = whole
    path = tmp_path / "mine"
    shutil.copytree(folder / "files" / "dictionary", path)
    args = asked(bench, tmp_path / "out", name, f"diffing.method.path={path}", "diffing.method.n_causal=0")
    command(args).done()
    assert "Found finished" in command(args).done().err
    published = read_layout(path)
    with torch.no_grad():
        published.dictionary.decoder_FMD.mul_(0.5)
    from diffing.dictionaries.layouts import Facts, write_layout

    write_layout(path, published.dictionary, "diffing", Facts())
    assert "Found finished" not in command(args).done().err
    assert len(run_folders(tmp_path / "out")) == 2
