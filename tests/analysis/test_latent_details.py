"""The second pass against dense activations: values in windows, scores of tokens, and latents active together."""

import numpy as np
import pytest
from latent_makers import CORPUS, SLOT, activity_of, dense, random_dictionary, random_rows, setting_of, source_of

from diffing.activations.rows import SlotRows
from diffing.analysis.latents.config import DictionaryConfig
from diffing.analysis.latents.details import read_details
from diffing.analysis.latents.output import coactivation_rows
from diffing.analysis.top_examples import Ranked
from diffing.analysis.windows import windows

CONTEXT = (4, 2)


def details_of(tmp_path, kind, n_damaged=0, chosen=(0, 2, 3, 5, 8, 16)):
    """(tokens, rows that count, dense activations, activity, examples, weights, details)."""
    rows = random_rows()
    dictionary = random_dictionary(2 if kind == "pair" else 1)
    acts_NF = dense(dictionary, rows, kind).acts_NF
    if n_damaged:
        rows[5 : 5 + n_damaged, 0, 0] = float("nan")
    source = source_of(rows)
    setting = setting_of(DictionaryConfig(name="x"), source, tmp_path, kind)
    fine_N = setting.split.kept_N.copy()
    fine_N[5 : 5 + n_damaged] = False
    activity = activity_of(dictionary, source, kind, setting.split)
    columns = ((r.unit, r.rank, r.row, r.value, r.sequence) for r in (activity.top, activity.sample))
    examples = Ranked(*(np.concatenate(both) for both in zip(*columns, strict=True)))
    weight_F = np.random.default_rng(5).uniform(0, 1, dictionary.spec.n_latents)
    found = read_details(
        dictionary, SlotRows(source, SLOT, 0, 10**6), kind, setting.split.kept_N, source.tokens, examples, CONTEXT,
        weight_F, np.array(chosen, dtype=np.int64),
    )  # fmt: skip
    return source.tokens, fine_N, acts_NF, activity, examples, (dictionary, weight_F), found


@pytest.mark.parametrize("n_damaged", [0, 3])
@pytest.mark.parametrize("kind", ["pair", "difference"])
def test_values_in_windows_are_dense_activations(tmp_path, kind, n_damaged):
    tokens, fine_N, acts_NF, _, examples, _, found = details_of(tmp_path, kind, n_damaged)
    start_M, stop_M = windows(tokens, examples.row, *CONTEXT)
    assert len(found.values) == len(examples) > 40
    n_zero = 0
    for i, values in enumerate(found.values):
        here = np.arange(start_M[i], stop_M[i])
        expected = np.where(fine_N[here], acts_NF[here, examples.unit[i]], np.nan)
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)
        assert values[examples.row[i] - start_M[i]] == pytest.approx(examples.value[i])
        n_zero += (values == 0).sum()
    assert n_zero > 10
    assert any(np.isnan(v).any() for v in found.values)


def test_scores_of_tokens_are_weighted_sums(tmp_path):
    tokens, fine_N, acts_NF, _, _, (dictionary, weight_F), found = details_of(tmp_path, "pair", n_damaged=2)
    lengths_F = dictionary.norms_FM().detach().double().numpy().sum(1)
    expected = np.where(fine_N, acts_NF @ (lengths_F * weight_F), np.nan)
    np.testing.assert_allclose(found.score_N, expected, rtol=1e-5, atol=1e-7)
    assert len(tokens) == CORPUS.n_tokens


def test_latents_active_together_are_counted(tmp_path):
    chosen = (0, 2, 3, 5, 8, 16)
    _, fine_N, acts_NF, activity, _, _, found = details_of(tmp_path, "pair", n_damaged=2, chosen=chosen)
    active_NC = acts_NF[fine_N][:, chosen] > 0
    expected = [[(active_NC[:, a] & active_NC[:, b]).sum() for b in range(6)] for a in range(6)]
    np.testing.assert_array_equal(found.n_both_CC, expected)
    n = fine_N.sum()
    rows = coactivation_rows(found.n_both_CC, np.array(chosen), activity)
    assert len(rows) == sum(expected[a][b] > 0 for a in range(6) for b in range(a))
    assert [r.jaccard for r in rows] == sorted((r.jaccard for r in rows), reverse=True)
    for row in rows:
        one, two = (acts_NF[fine_N][:, j] > 0 for j in (row.latent, row.other))
        assert row.latent < row.other
        assert row.n_both == (one & two).sum()
        assert row.jaccard == pytest.approx((one & two).sum() / (one | two).sum())
        assert row.lift == pytest.approx((one & two).sum() * n / (one.sum() * two.sum()))


def test_nothing_is_chosen_and_no_example_wanted(tmp_path):
    source = source_of(random_rows())
    setting = setting_of(DictionaryConfig(name="x"), source, tmp_path)
    none, dictionary = np.empty(0, dtype=np.int64), random_dictionary()
    found = read_details(
        dictionary, SlotRows(source, SLOT, 0, 10**6), "pair", setting.split.kept_N, source.tokens,
        Ranked(none, none, none, np.empty(0), none), CONTEXT, np.ones(17), none,
    )  # fmt: skip
    assert len(found.values) == 0
    assert found.n_both_CC.shape == (0, 0)
    np.testing.assert_array_equal(np.isnan(found.score_N), ~setting.split.kept_N)
