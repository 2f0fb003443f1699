"""`pca`: nothing found where nothing changed, degenerate data, interruption, vectors, options."""

import numpy as np
import pytest
import torch
from memory_source import MemorySource, context_with, corpus_of_lengths

from diffing.core.config import parse
from diffing.core.errors import UserError
from diffing.core.files import write_json
from diffing.core.layers import Slot
from diffing.core.method import load_method
from diffing.core.result import Result
from diffing.core.tables import write_table
from diffing.methods.pca import METHOD
from diffing.methods.pca import run as run_module
from diffing.methods.pca.config import PcaConfig, needs
from diffing.methods.pca.run import run
from diffing.methods.pca.units import units_of
from diffing.methods.pca.vectors import named_vectors

SLOTS = (Slot(0), Slot(2), Slot(2, "mlp"))
WIDTH = 16
CORPUS = corpus_of_lengths({"web": [20, 1, 31, 12, 25], "chat": [28, 14, 40]})


def rows(corpus=CORPUS, seed=0, change=0.3):
    """Activations of both models; the first positions are loud, and δ has two directions and noise."""
    rng = np.random.default_rng(seed)
    base, finetuned = {}, {}
    for k, slot in enumerate(SLOTS):
        b = rng.normal(size=(corpus.n_tokens, WIDTH)) * 3
        two = rng.normal(size=(corpus.n_tokens, 2)) @ rng.normal(size=(2, WIDTH))
        base[slot] = b
        finetuned[slot] = b + change * (k + 1) * (two + 0.2 * rng.normal(size=b.shape) + 0.5)
    return base, finetuned


def source_of(base, finetuned, corpus=CORPUS, dtype=torch.float32, blocks=None):
    def cast(given):
        return {s: torch.as_tensor(x).to(dtype) for s, x in given.items()}

    return MemorySource(corpus, cast(base), cast(finetuned), blocks)


def output_of(source, folder, corpus=CORPUS, context=None, **options):
    config = PcaConfig(**{"n_lens_tokens": 0, "outlier_norm": None, **options})
    return run(config, context_with(source, corpus, folder, **(context or {})))


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return output_of(source_of(*rows()), tmp_path_factory.mktemp("pca"))


def result_of(output, folder):
    """A result of the output's tables, as figures and sections read it."""
    pair = {"model": "a", "organism": "b", "variant": "default", "base_id": "c", "finetuned_id": "d"}
    write_json(
        folder / "manifest.json",
        {
            "schema": 1, "method": "pca", "config": {}, "data": {"n_tokens": 1, "spec": {}}, "pair": pair, "seed": 0,
            "created": "2025-01-01T00:00:00+00:00", "facts": dict(output.facts), "fingerprint": "f",
            "wall_seconds": 1.5, "peak_memory_bytes": 1000, "notes": [],
        },
    )  # fmt: skip
    for name, table in output.tables.items():
        write_table(folder / "tables" / f"{name}.parquet", table)
    return Result(folder)


def draws(output, folder):
    """Figures, section and headline are made without fail."""
    result = result_of(output, folder)
    assert set(METHOD.figures(result)) == {"spectrum", "scores"}
    assert METHOD.section(result).blocks
    assert METHOD.headline(result).blocks
    return result


def test_units_number_components_and_spaces(output, tmp_path):
    spaces, components = (output.tables[t].to_pandas() for t in ("spaces", "components"))
    assert spaces.unit.tolist() == list(range(6))
    assert components.unit.tolist() == list(range(len(components)))
    assert len(components) == 6 * 10
    assert set(output.tables["datasets"]["unit"].to_pylist()) == set(components.unit)
    examples = output.tables["examples"].to_pandas()
    assert set(examples[examples.kind != "subspace"].unit) == set(components.unit)
    main = output.facts["main"]
    assert (main["layer"], main["site"], main["centring"]) == (2, "residual", "uncentred"), (
        "not the mlp, which moved more"
    )
    (unit,) = set(examples[examples.kind == "subspace"].unit)
    assert (spaces.layer[unit], spaces.site[unit], spaces.centring[unit]) == (2, "residual", "uncentred")
    draws(output, tmp_path)


def test_the_two_planted_directions_are_above_chance(output):
    found = output.tables["components"].to_pandas()
    for _, space in found[found.centring == "centred"].groupby(["layer", "site"]):
        assert space.is_above_null.tolist()[:2] == [True, True]
        assert space.cumulative.tolist()[1] > 0.9


def test_identical_models_give_no_finding(tmp_path):
    base, _ = rows()
    found = output_of(source_of(base, base, dtype=torch.bfloat16), tmp_path / "a", context={"null_pair": "identical"})
    assert set(found.tables["spectrum"]["eigenvalue"].to_pylist()) == {0.0}
    assert set(found.tables["spectrum"]["share"].to_pylist()) == {None}
    assert not any(found.tables["spectrum"]["is_above_null"].to_pylist())
    assert found.tables["components"].num_rows == found.tables["examples"].num_rows == 0
    assert set(found.tables["token_scores"]["score"].to_pylist()) == {0.0}
    assert set(found.tables["document_scores"]["score"].to_pylist()) == {0.0}
    assert found.evidence.tokens == found.evidence.examples == ()
    assert all(s.claimed is False for s in found.evidence.scalars)
    assert {s.value for s in found.summary} == {0.0, None}
    assert not found.tensors["layer_02/residual/delta/mean"].any()
    assert named_vectors(draws(found, tmp_path / "b")) == ()


@pytest.mark.parametrize("lengths", [{"web": [2]}, {"web": [2, 2]}, {"web": [9]}, {"web": [3, 2], "chat": [2]}])
def test_little_data(tmp_path, lengths):
    corpus = corpus_of_lengths(lengths)
    found = output_of(source_of(*rows(corpus), corpus), tmp_path / "a", corpus)
    n = sum(max(k - 1, 0) for ks in lengths.values() for k in ks)
    spaces = found.tables["spaces"].to_pandas()
    assert set(spaces.n_tokens) == {n}
    components = found.tables["components"].to_pandas()
    for (_, _, centring), mine in components.groupby(["layer", "site", "centring"]):
        assert len(mine) == min(n - (centring == "centred"), 10)
    if len(lengths["web"]) == 1:
        assert not components.is_above_null.any()
    draws(found, tmp_path / "b")


def test_a_constant_difference_is_all_mean_shift(tmp_path):
    base, _ = rows()
    shift = np.linspace(-1, 2, WIDTH)
    base = {s: np.round(b * 64) / 64 for s, b in base.items()}
    source = source_of(base, {s: b + np.round(shift * 64) / 64 for s, b in base.items()})
    found = output_of(source, tmp_path / "a")
    spaces = found.tables["spaces"].to_pandas().set_index("centring")
    assert set(spaces.total["centred"]) == {0.0}
    np.testing.assert_allclose(spaces.mean_share, 1)
    components = found.tables["components"].to_pandas()
    assert set(components.centring) == {"uncentred"}
    assert set(components.component) == {1}
    assert components.is_above_null.all()
    np.testing.assert_allclose(components.cosine_with_mean, 1)
    draws(found, tmp_path / "b")


@pytest.mark.slow
def test_rows_that_are_not_finite_are_left_out_and_counted(tmp_path):
    base, finetuned = rows()
    base, finetuned = ({s: x.copy() for s, x in given.items()} for given in (base, finetuned))
    clean = source_of(base, finetuned)
    base[SLOTS[1]][3, 2] = np.nan
    finetuned[SLOTS[1]][50, 0] = np.inf
    finetuned[SLOTS[1]][0] = np.nan
    found = output_of(source_of(base, finetuned), tmp_path / "a")
    spaces = found.tables["spaces"].to_pandas()
    mine = spaces[(spaces.layer == 2) & (spaces.site == "residual")]
    assert set(mine.n_not_finite) == {2}, "the first position does not count"
    assert sum("2 tokens hold NaN" in note for note in found.notes) == 1
    other = output_of(clean, tmp_path / "b")
    for name in ("spectrum", "components"):
        one, two = (o.tables[name].to_pandas() for o in (found, other))
        assert one[one.layer == 0].equals(two[two.layer == 0])
    for table in found.tables.values():
        assert "nan" not in str(table.to_pydict()).lower().replace("nanoscop", "")


def test_nothing_finite_or_nothing_kept_is_said_in_a_sentence(tmp_path):
    base, finetuned = rows()
    lost = {s: np.full_like(x, np.nan) for s, x in finetuned.items()}
    with pytest.raises(UserError, match="NaN or infinite"):
        output_of(source_of(base, lost), tmp_path / "a")
    with pytest.raises(UserError, match="skip_first_tokens"):
        output_of(source_of(base, finetuned), tmp_path / "b", context={"skip_first_tokens": 99})
    with pytest.raises(UserError, match=r"example_layer=1 .* \(0, 2\)"):
        output_of(source_of(base, finetuned), tmp_path / "c", example_layer=1)


@pytest.mark.slow
def test_leading_positions_do_not_count(tmp_path):
    base, finetuned = rows()
    loud = {s: x.copy() for s, x in finetuned.items()}
    starts = [int(sum(len(s.ids) for s in CORPUS.sequences[:i])) for i in range(len(CORPUS.sequences))]
    for x in loud.values():
        x[starts] += 1000.0
    one, other = output_of(source_of(base, finetuned), tmp_path / "a"), output_of(source_of(base, loud), tmp_path / "b")
    for name in one.tables:
        assert one.tables[name].equals(other.tables[name]), name


def test_sequences_in_no_block_are_left_out(tmp_path):
    source = source_of(*rows(), blocks=[[0, 2], [5]])
    found = output_of(source, tmp_path)
    assert set(found.tables["spaces"]["n_tokens"].to_pylist()) == {19 + 30 + 27}
    assert len(found.tables["document_scores"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, 3, 8, 9, 14])
def test_an_interrupted_run_goes_on_and_gives_the_same_bits(output, tmp_path, stop_at):
    source = source_of(*rows())
    source.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        output_of(source, tmp_path)
    again = source_of(*rows())
    found = output_of(again, tmp_path)
    assert len(again.asked) == 16 - stop_at
    for name in output.tables:
        assert found.tables[name].equals(output.tables[name]), name
    for name, tensor in output.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("file", ["moments.safetensors", "null_delta.npy", "scores.npy", "scores.json"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_damaged_unfinished_work_is_done_again(output, tmp_path, file, damage):
    output_of(source_of(*rows()), tmp_path)
    path = tmp_path / SLOTS[0].name / file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: -max(1, path.stat().st_size // 2)])
    found = output_of(source_of(*rows()), tmp_path)
    for name in output.tables:
        assert found.tables[name].equals(output.tables[name]), name


def test_slots_read_one_by_one_give_the_same(output, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "_GROUP_BYTES", 1)
    found = output_of(source_of(*rows()), tmp_path)
    for name in output.tables:
        assert found.tables[name].equals(output.tables[name]), name


def test_units_cover_blocks_once_in_order():
    sizes = np.random.default_rng(0).integers(1, 50, 200).tolist()
    units = units_of(sizes)
    assert [b for unit in units for b in unit] == list(range(200))
    assert 12 <= len(units) <= 17
    assert units_of([5]) == [[0]]


def test_vectors_are_means_and_components_of_the_residual_stream(output, tmp_path):
    found = named_vectors(result_of(output, tmp_path))
    assert len(found) == 2 + 4 * 10
    assert [v.label for v in found[:3]] == [
        "mean of delta · layer 0", "mean of delta · layer 2", "component 1 of centred delta · layer 0",
    ]  # fmt: skip
    assert len({v.label for v in found}) == len(found)
    for vector in found:
        tensor = output.tensors[vector.tensor]
        assert tensor.shape == (WIDTH,)
        assert tensor.norm().item() == pytest.approx(vector.norm, rel=1e-5)
    assert "above chance" in found[2].note


def test_evidence_is_that_of_the_tables(output):
    scores = output.tables["token_scores"].to_pylist()
    assert [t.score for t in output.evidence.tokens] == [r["score"] for r in scores if r["score"] > 0]
    assert output.evidence.examples
    ranked = [e.score for e in output.evidence.examples]
    assert ranked == sorted(ranked, reverse=True)
    assert all(s.claimed is None for s in output.evidence.scalars)
    named = {s.name: s for s in output.summary}
    share = named["share of component 1 · centred delta · layer_02/residual"]
    assert share.value > share.null > 0


def test_options():
    assert PcaConfig(of="base").of == ("base",)
    assert PcaConfig(of=["delta", "base", "delta"]).of == ("delta", "base")
    assert needs(PcaConfig()).layers is None
    assert needs(PcaConfig(layers=0.5)).layers == (0.5,)
    assert load_method("pca") is METHOD
    for wrong in ({"of": []}, {"of": ["gamma"]}, {"n_components": 0}, {"n_null_draws": 1}, {"layers": [True]}):
        with pytest.raises(UserError):
            parse(PcaConfig, wrong, "diffing.method")


def test_a_model_whose_read_out_is_not_known_leaves_read_outs_out(tiny_pair, tmp_path):
    import dataclasses

    pair = tiny_pair()
    corpus = corpus_of_lengths({"web": [12, 9]})
    base = {Slot(1): np.random.default_rng(0).normal(size=(21, 32))}
    finetuned = {Slot(1): base[Slot(1)] + np.random.default_rng(1).normal(size=(21, 32))}
    unknown = dataclasses.replace(pair, finetuned=dataclasses.replace(pair.finetuned, transform=None))
    found = output_of(
        source_of(base, finetuned, corpus), tmp_path, corpus, {"pair": unknown}, n_lens_tokens=4, of=["delta", "base"]
    )
    components = found.tables["components"].to_pandas()
    assert {t: {len(p) for p in mine.positive} for t, mine in components.groupby("target")} == {
        "delta": {0},
        "base": {4},
    }
    assert any("finetuned model's read-out is not known" in note for note in found.notes)
