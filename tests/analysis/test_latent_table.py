"""Tags, verdicts and the order of latents; what is unknown is null."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from latent_makers import WIDTH, activity_of, dense, random_dictionary, random_rows, setting_of, source_of

from diffing.analysis.latents.config import DictionaryConfig
from diffing.analysis.latents.results import LatentGroupRow, LatentRow, LatentTokenRow
from diffing.analysis.latents.scaling import Scaling
from diffing.analysis.latents.table import group_rows, latent_rows, latents_of, token_lines
from diffing.analysis.latents.tags import THRESHOLDS, relative_norms, tag, tag_names, verdict
from diffing.core.tables import table_of
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.spec import DictionarySpec


@pytest.mark.parametrize(
    ("relative_norm", "expected"),
    [
        (0.0, "ft_only"), (0.0999, "ft_only"), (0.1, "stronger_in_ft"), (0.3999, "stronger_in_ft"), (0.4, "shared"),
        (0.5, "shared"), (0.6, "shared"), (0.6001, "stronger_in_base"), (0.9, "stronger_in_base"),
        (0.9001, "base_only"), (1.0, "base_only"), (None, "difference"),
    ],
)  # fmt: skip
def test_tags_at_the_thresholds(relative_norm, expected):
    assert tag(relative_norm, is_dead=False) == expected
    assert tag(relative_norm, is_dead=True) == "dead"
    assert expected in (*THRESHOLDS, "difference")


@pytest.mark.parametrize(
    ("base", "finetuned", "expected"),
    [(0, 1, 0), (1, 0, 1), (2, 2, 0.5), (1, 4, 0.125), (4, 1, 0.875), (0, 0, 0.5), (1e-30, 1e-30, 0.5)],
)
def test_relative_norms(base, finetuned, expected):
    assert relative_norms(np.array([[base, finetuned]], dtype=float))[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tag", "nu_error", "nu_reconstruction", "expected"),
    [
        ("ft_only", 0.0, 0.0, "specific"), ("ft_only", 0.199, 0.499, "specific"), ("ft_only", 0.2, 0.0, "shrunk"),
        ("ft_only", -0.2, 0.0, "shrunk"), ("ft_only", 0.9, 0.9, "shrunk"), ("ft_only", 0.1, 0.5, "decoupled"),
        ("ft_only", 0.1, -0.5, "decoupled"), ("ft_only", math.nan, 0.0, None), ("ft_only", 0.0, math.nan, None),
        ("stronger_in_ft", 0.0, 0.0, None), ("base_only", 0.0, 0.0, None), ("dead", 0.0, 0.0, None),
        ("difference", 0.0, 0.0, None),
    ],
)  # fmt: skip
def test_verdicts_at_the_thresholds(tag, nu_error, nu_reconstruction, expected):
    assert verdict(tag, nu_error, nu_reconstruction) == expected


def crosscoder_of(lengths):
    """One latent for each pair of decoder norms, all along one direction, scales 2 and ½."""
    spec = DictionarySpec(n_sites=2, width=WIDTH, n_latents=len(lengths), sparsity="l1")
    dictionary = Dictionary(spec, torch.tensor([2.0, 0.5]))
    with torch.no_grad():
        dictionary.decoder_FMD[:, :, 0] = torch.tensor(lengths)
    return dictionary


def activity_with(tmp_path, dictionary, kind="pair", squares=None, maxima=None, nu=None, **changes):
    """An activity whose sums are given; `nu` by latent for errors and reconstructions alike."""
    n = dictionary.spec.n_latents
    source = source_of(random_rows())
    setting = setting_of(DictionaryConfig(name="x"), source, tmp_path, kind)
    found = activity_of(dictionary, source, kind, setting.split)
    squares = np.ones(n) if squares is None else np.array(squares, dtype=float)
    maxima = np.sqrt(squares) if maxima is None else np.array(maxima, dtype=float)
    beta = np.stack([np.array([0.0] * n if nu is None else nu, dtype=float), np.ones(n)])
    scaling = Scaling(dict.fromkeys(("error", "reconstruction", "activation"), beta))
    return dataclasses.replace(found, squares_F=squares, maximum_F=maxima, scaling=scaling, **changes)


def test_the_most_telling_come_first(tmp_path):
    #       shared  ft, shrunk  ft, specific  ft, specific  base only  stronger ft  dead    shared
    norms = [(1, 1), (0.01, 1), (0.05, 0.9), (0.05, 0.9), (1, 0.01), (0.5, 1.0), (0, 1), (1, 0.99)]
    dictionary = crosscoder_of(norms)
    nu = [1.0, 0.5, 0.0, 0.1, np.nan, 0.4, 0.0, 1.0]
    squares = [100.0, 16.0, 1.0, 2.0, 4.0, 9.0, 0.0, 1000.0]
    activity = activity_with(tmp_path, dictionary, squares=squares, nu=nu)
    latents = latents_of(dictionary, "pair", activity)
    assert latents.tags == (
        "shared", "ft_only", "ft_only", "ft_only", "base_only", "stronger_in_ft", "dead", "shared"
    )  # fmt: skip
    assert latents.verdicts == (None, "shrunk", "specific", "specific", None, None, None, None)
    raw = np.array(norms) / [2.0, 0.5]
    energy = np.array(squares) * (raw**2).sum(1)
    lean = 1 - 2 * relative_norms(np.array(norms))
    np.testing.assert_allclose(latents.raw_FM, raw, rtol=1e-6)
    np.testing.assert_allclose(latents.energy_F, energy, rtol=1e-6)
    np.testing.assert_allclose(latents.ft_energy_F, np.array(squares) * raw[:, 1] ** 2, rtol=1e-6)
    telling = [lean[j] ** 2 * energy[j] ** 0.5 for j in (1, 4, 5)]
    others = [j for _, j in sorted(zip(telling, (1, 4, 5), strict=True), reverse=True)]
    # Believed ones, others by how unequal they are, equal ones by energy, dead ones.
    assert latents.order.tolist() == [3, 2, *others, 7, 0, 6]
    expected = np.array([0, lean[1], lean[2], lean[3], 0, lean[5], 0, 0])
    np.testing.assert_allclose(latents.specificity_F, expected, rtol=1e-6)
    assert latents.claimed(2).tolist() == [2, 3]
    assert latents.claimed(99).tolist() == [1, 2, 3, 5]
    assert tag_names(dictionary, "pair", activity.maximum_F > 0) == list(latents.tags)


def test_cosines_of_rows(tmp_path):
    dictionary = crosscoder_of([(1, 1), (1, 1), (0, 1)])
    with torch.no_grad():
        dictionary.decoder_FMD[1, 1, 0] = 0.6
        dictionary.decoder_FMD[1, 1, 1] = 0.8
    latents = latents_of(dictionary, "pair", activity_with(tmp_path, dictionary))
    np.testing.assert_allclose(latents.cosine_F, [1, 0.6, np.nan], rtol=1e-6)


def test_nothing_is_specific_to_equal_models(tmp_path):
    """What rounding makes of equal norms counts for nothing."""
    dictionary = crosscoder_of([(1, 1 + d) for d in (0, 1e-4, -1e-4, 0.01, -0.015)])
    latents = latents_of(dictionary, "pair", activity_with(tmp_path, dictionary, squares=[1, 5, 3, 4, 2]))
    assert set(latents.tags) == {"shared"}
    assert not latents.specificity_F.any()
    assert not len(latents.claimed(16))
    assert latents.order.tolist() == [1, 3, 2, 4, 0]


def test_a_difference_is_ranked_by_energy(tmp_path):
    dictionary = random_dictionary(1)
    squares = np.random.default_rng(0).uniform(0, 3, 17)
    squares[[0, 4]] = 0
    latents = latents_of(dictionary, "difference", activity_with(tmp_path, dictionary, "difference", squares))
    energy = squares * (latents.raw_FM**2).sum(1)
    np.testing.assert_allclose(latents.energy_F, energy)
    np.testing.assert_allclose(latents.energy_F, latents.ft_energy_F)
    assert latents.order.tolist()[:15] == np.argsort(-energy)[:15].tolist()
    assert {latents.tags[j] for j in (0, 4)} == {"dead"}
    assert {t for j, t in enumerate(latents.tags) if j not in (0, 4)} == {"difference"}
    np.testing.assert_array_equal(latents.specificity_F, squares > 0)
    assert np.isnan(latents.relative_F).all()
    assert latents.claimed(3).tolist() == sorted(np.argsort(-energy)[:3].tolist())


NULLABLE = {f.name for f in dataclasses.fields(LatentRow) if "None" in str(f.type)}


@pytest.mark.parametrize("kind", ["pair", "difference"])
def test_rows_of_the_table(tmp_path, kind):
    rows_N2D = random_rows()
    dictionary = random_dictionary(2 if kind == "pair" else 1)
    source = source_of(rows_N2D)
    setting = setting_of(DictionaryConfig(name="x"), source, tmp_path, kind)
    activity = activity_of(dictionary, source, kind, setting.split)
    latents = latents_of(dictionary, kind, activity)
    d = dense(dictionary, rows_N2D[torch.from_numpy(setting.split.kept_N)], kind)
    rows = latent_rows(latents, activity, None, None, {(3, "promoted"): "a  b"})
    table = table_of(LatentRow, rows)
    assert table.column_names == [f.name for f in dataclasses.fields(LatentRow)]
    for name in table.column_names:
        values = table[name].to_pylist()
        assert not any(isinstance(v, float) and not math.isfinite(v) for v in values), name
        assert name in NULLABLE or None not in values, name
    assert [r.rank for r in rows] == list(range(17))
    assert sorted(r.latent for r in rows) == list(range(17))
    scale = dictionary.scale_M.double().numpy()
    energies = [(d.acts_NF[:, j] ** 2).sum() * ((d.rows_FMD[j] / scale[:, None]) ** 2).sum() for j in range(17)]
    for row in rows:
        a_N = d.acts_NF[:, row.latent]
        lengths = np.linalg.norm(d.rows_FMD[row.latent], axis=1)
        assert row.is_dead == (row.tag == "dead") == (not (a_N > 0).any())
        assert row.frequency == pytest.approx((a_N > 0).mean())
        assert row.maximum == pytest.approx(a_N.max(), rel=1e-5)
        assert row.maximum_raw == pytest.approx(a_N.max() * lengths[-1] / scale[-1], rel=1e-5)
        assert row.energy_share == pytest.approx(energies[row.latent] / sum(energies), rel=1e-5)
        assert row.norm_ft == pytest.approx(lengths[-1], rel=1e-6)
        assert row.norm_ft_raw == pytest.approx(lengths[-1] / scale[-1], rel=1e-6)
        assert row.other_seed_cosine is None
        assert row.comes_back is None
        assert row.promoted == ("a  b" if row.latent == 3 else "")
        unknown = {"nu_error", "nu_reconstruction", "nu_activation", "mean_activation"}
        if row.is_dead:
            assert all(getattr(row, name) is None for name in unknown)
        else:
            assert row.mean_activation == pytest.approx(a_N[a_N > 0].mean(), rel=1e-5)
        of_pair = {"norm_base", "norm_base_raw", "relative_norm", "decoder_cosine"}
        if kind == "difference":
            assert all(getattr(row, name) is None for name in of_pair | {"nu_error", "nu_reconstruction"})
        else:
            assert row.norm_base == pytest.approx(lengths[0], rel=1e-6)
            assert row.norm_base_raw == pytest.approx(lengths[0] / scale[0], rel=1e-6)
    assert 1 < sum(r.is_dead for r in rows) < 10 or kind == "pair"


def test_rows_by_dataset_and_position(tmp_path):
    rows_N2D, dictionary = random_rows(), random_dictionary()
    source = source_of(rows_N2D)
    setting = setting_of(DictionaryConfig(name="x"), source, tmp_path)
    activity, tokens, kept = activity_of(dictionary, source, "pair", setting.split), source.tokens, setting.split.kept_N
    acts_NF = dense(dictionary, rows_N2D, "pair").acts_NF
    found = group_rows(latents_of(dictionary, "pair", activity), activity, tokens.datasets, np.array([2, 0]))
    assert list(dict.fromkeys(r.latent for r in found)) == [2, 0]
    assert [r.group for r in found if r.latent == 2] == ["web", "chat", "1", "2–3", "4–7", "8–15", "16–31"]
    table_of(LatentGroupRow, found)
    for row in found:
        if row.kind == "dataset":
            mine = kept & (tokens.dataset_N == tokens.datasets.index(row.group))
            assert row.first is None
        else:
            first, _, last = row.group.partition("–")
            mine = kept & (tokens.position_N >= int(first)) & (tokens.position_N <= int(last or first))
            assert row.first == int(first)
        a_N = acts_NF[mine, row.latent]
        assert row.n_tokens == mine.sum()
        assert row.frequency == pytest.approx((a_N > 0).mean())
        if row.kind == "dataset" and (a_N > 0).any():
            assert row.mean_activation == pytest.approx(a_N[a_N > 0].mean(), rel=1e-5)
        else:
            assert row.mean_activation is None


def test_tokens_in_one_line():
    rows = [LatentTokenRow(1, side, i, i, t, 0.1) for side in ("promoted", "suppressed") for i, t in enumerate("a\nb")]
    assert token_lines(rows) == {(1, "promoted"): "a  \\n  b", (1, "suppressed"): "a  \\n  b"}
