"""Counts, sums, maxima and quality of latents against loops over dense codes; what is left out is counted."""

import numpy as np
import pytest
import torch
from latent_makers import CORPUS, SLOT, WIDTH, activity_of, dense, random_dictionary, random_rows, setting_of, source_of

from diffing.activations.rows import SlotRows
from diffing.analysis.latents.activity import POSITION_EDGES, measure_activity
from diffing.analysis.latents.config import DictionaryConfig
from diffing.analysis.latents.output import quality_rows

KINDS = ("pair", "difference")


def measured(tmp_path, kind, rows_N2D, sparsity="batch_topk", **options):
    """(setting, dictionary, activity) of one pass."""
    dictionary = random_dictionary(2 if kind == "pair" else 1, sparsity)
    source = source_of(rows_N2D)
    setting = setting_of(DictionaryConfig(name="x"), source, tmp_path, kind)
    return setting, dictionary, activity_of(dictionary, source, kind, setting.split, **options)


@pytest.mark.parametrize("sparsity", ["batch_topk", "topk", "l1"])
@pytest.mark.parametrize("kind", KINDS)
def test_counts_sums_and_maxima_are_those_of_loops(tmp_path, kind, sparsity):
    rows = random_rows()
    setting, dictionary, found = measured(tmp_path, kind, rows, sparsity)
    tokens = setting.context.activations.tokens
    kept = tokens.position_N > 0
    np.testing.assert_array_equal(setting.split.kept_N, kept)
    acts_NF = dense(dictionary, rows, kind).acts_NF
    n_latents = dictionary.spec.n_latents
    for g in range(2):
        mine = kept & (tokens.dataset_N == g)
        assert found.n_tokens_G[g] == mine.sum()
        for j in range(n_latents):
            values = [acts_NF[i, j] for i in np.flatnonzero(mine) if acts_NF[i, j] > 0]
            assert found.counts_GF[g, j] == len(values)
            assert found.sums_GF[g, j] == pytest.approx(sum(values), rel=1e-5)
    for p, first in enumerate(POSITION_EDGES):
        last = POSITION_EDGES[p + 1] if p + 1 < len(POSITION_EDGES) else 10**9
        mine = kept & (tokens.position_N >= first) & (tokens.position_N < last)
        assert found.n_tokens_P[p] == mine.sum()
        np.testing.assert_array_equal(found.counts_PF[p], (acts_NF[mine] > 0).sum(0))
    np.testing.assert_allclose(found.squares_F, (acts_NF[kept] ** 2).sum(0), rtol=1e-5)
    np.testing.assert_allclose(found.maximum_F, acts_NF[kept].max(0), rtol=1e-5)
    np.testing.assert_allclose(found.frequency_F, (acts_NF[kept] > 0).mean(0), rtol=1e-12)
    assert found.maximum_F[0] == 0
    assert found.counts_GF.sum() > 50


@pytest.mark.parametrize("kind", KINDS)
def test_quality_by_dataset_and_split_is_that_of_the_definitions(tmp_path, kind):
    rows = random_rows()
    setting, dictionary, found = measured(tmp_path, kind, rows)
    tokens, d = setting.context.activations.tokens, dense(dictionary, rows, kind)
    scale = dictionary.scale_M.double().numpy()[:, None]
    assert set(found.quality) == {(n, held) for n in ("all", "web", "chat") for held in (True, False)}
    for (name, held), quality in found.quality.items():
        mine = setting.split.held_N if held else setting.split.train_N
        if name != "all":
            mine = mine & (tokens.dataset_N == tokens.datasets.index(name))
        assert quality.n_tokens == mine.sum() > 0
        x, made = d.x_NMD[mine], d.made_NMD[mine]
        for m in range(x.shape[1]):
            spread = ((x[:, m] - x[:, m].mean(0)) ** 2).sum()
            assert quality.fve_M[m] == pytest.approx(1 - ((x[:, m] - made[:, m]) ** 2).sum() / spread, rel=1e-5)
        assert quality.l0 == pytest.approx((d.acts_NF[mine] > 0).sum(1).mean())
        assert quality.dead_share == pytest.approx((d.acts_NF[mine].max(0) == 0).mean())
        if kind == "pair":
            delta, guess = ((v / scale)[:, 1] - (v / scale)[:, 0] for v in (x, made))
            spread = ((delta - delta.mean(0)) ** 2).sum()
            assert quality.explained_difference == pytest.approx(1 - ((delta - guess) ** 2).sum() / spread, rel=1e-5)
    table = quality_rows(found.quality, setting)
    sites = {"base", "finetuned", "explained difference"} if kind == "pair" else {"difference"}
    assert {r.site for r in table} == sites
    assert len(table) == 6 * len(sites)
    assert [r.dataset for r in table[: 2 * len(sites)]] == ["all"] * 2 * len(sites)


def test_held_out_documents_are_none_of_those_learned_from(tmp_path):
    setting, _, _ = measured(tmp_path, "pair", random_rows())
    tokens, held = setting.context.activations.tokens, setting.split
    assert held.is_held_out
    assert not set(tokens.sequence_N[held.held_N]) & set(tokens.sequence_N[held.train_N])
    for g in range(2):
        assert held.held_N[tokens.dataset_N == g].any()


def test_examples_are_the_strongest_sequences(tmp_path):
    rows = random_rows()
    setting, dictionary, found = measured(tmp_path, "pair", rows, n_examples=3)
    tokens = setting.context.activations.tokens
    acts_NF = np.where(setting.split.kept_N[:, None], dense(dictionary, rows, "pair").acts_NF, 0)
    for j in range(dictionary.spec.n_latents):
        best = {s: acts_NF[tokens.sequence_N == s, j].max() for s in range(tokens.n_sequences)}
        expected = sorted((s for s in best if best[s] > 0), key=lambda s: -best[s])
        mine = found.top.unit == j
        assert found.top.sequence[mine].tolist() == expected[:3]
        for row, value in zip(found.top.row[mine], found.top.value[mine], strict=True):
            assert value == pytest.approx(acts_NF[row, j], rel=1e-5)
        sampled = found.sample.sequence[found.sample.unit == j].tolist()
        assert len(sampled) == min(2, max(0, len(expected) - 3))
        assert set(sampled) <= set(expected[3:])


def test_tokens_that_are_not_finite_count_once_and_nowhere_else(tmp_path):
    rows = random_rows()
    table = source_of(rows).tokens
    sequence_4 = np.flatnonzero(table.sequence_N == 4)  # a block of its own
    lost = [3, 12, *sequence_4[1:].tolist()]
    damaged = rows.clone()
    damaged[lost, 1, 2] = torch.tensor([float("nan"), float("inf")] * 10)[: len(lost)]
    damaged[0, 0] = float("nan")  # position 0 is not kept in any case
    setting, dictionary, found = measured(tmp_path, "pair", damaged)
    assert found.n_not_finite == len(lost)
    fine = setting.split.kept_N.copy()
    fine[lost] = False
    assert found.n_tokens_G.sum() == fine.sum()
    acts_NF = dense(dictionary, rows, "pair").acts_NF[fine]
    np.testing.assert_array_equal(found.counts_GF.sum(0), (acts_NF > 0).sum(0))
    np.testing.assert_allclose(found.squares_F, (acts_NF**2).sum(0), rtol=1e-5)
    assert all(np.isfinite(q.fve_M).all() for q in found.quality.values())


def test_tokens_of_unusual_norm_are_left_out_and_counted(tmp_path):
    rows = random_rows()
    loud = rows.clone()
    loud[[20, 40]] *= 100
    dictionary, source = random_dictionary(), source_of(loud)
    setting = setting_of(DictionaryConfig(name="x"), source, tmp_path)
    limited = SlotRows(source, SLOT, 0, 10**6, limit=10 * float(rows.norm(dim=2).median()))
    kept = setting.split
    found = measure_activity(dictionary, limited, "pair", kept, source.tokens, torch.zeros(2, WIDTH), 3, 2, 0)
    assert found.n_unusual == 2
    fine = kept.kept_N.copy()
    fine[[20, 40]] = False
    acts_NF = dense(dictionary, rows, "pair").acts_NF[fine]
    np.testing.assert_array_equal(found.counts_GF.sum(0), (acts_NF > 0).sum(0))
    assert found.n_tokens_G.sum() == CORPUS.n_tokens - len(CORPUS.sequences) - 2


def test_the_order_and_size_of_blocks_change_nothing(tmp_path):
    rows, dictionary = random_rows(), random_dictionary()
    found = []
    for i, blocks in enumerate([None, [[s] for s in range(11)], [list(range(6)), list(range(6, 11))]]):
        source = source_of(rows, blocks=blocks)
        setting = setting_of(DictionaryConfig(name="x"), source, tmp_path / str(i))
        found.append(activity_of(dictionary, source, "pair", setting.split))
    for other in found[1:]:
        np.testing.assert_array_equal(other.counts_GF, found[0].counts_GF)
        np.testing.assert_array_equal(other.counts_PF, found[0].counts_PF)
        np.testing.assert_allclose(other.squares_F, found[0].squares_F, rtol=1e-6)
        np.testing.assert_array_equal(other.top.row, found[0].top.row)
        np.testing.assert_array_equal(other.sample.row, found[0].sample.row)
        for key, quality in other.quality.items():
            np.testing.assert_allclose(quality.fve_M, found[0].quality[key].fve_M, rtol=1e-6)
