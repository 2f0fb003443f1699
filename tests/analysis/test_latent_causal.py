"""Causal control against texts read alone, sets of matched size, and how far steering raises a latent."""

import numpy as np
import pytest
import torch
from latent_makers import TEXTS, alone, coded, dense, kl_of, loss_of, random_dictionary, random_rows

from diffing.analysis.latents.causal import LatentSet, causal_rows, contribution, matched_sets, of_equal_size
from diffing.analysis.latents.strengths import raised
from diffing.core.layers import Slot
from diffing.data.token_table import TokenTable
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.spec import DictionarySpec
from diffing.models.steering import Steering, steered
from methods.memory_source import context_with
from workbench import pair_loader

TABLE = TokenTable.of(TEXTS)
KEPT = TABLE.position_N > 0
SEQUENCES = {"web": [3, 0, 1], "chat": [7, 4]}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return pair_loader(tmp_path_factory.mktemp, full=True)("llama")


def energies(n=60, n_dead=10, seed=0):
    energy_F = np.exp(np.random.default_rng(seed).normal(size=n) * 3)
    energy_F[:n_dead] = 0
    return energy_F


def test_random_sets_are_of_other_live_latents_of_similar_energy():
    energy_F, claimed = energies(), np.array([15, 30, 31, 44, 59])
    sets = matched_sets(claimed, energy_F, 6, 0)
    assert [(s.name, s.number) for s in sets] == [("random", i) for i in range(6)]
    place = np.argsort(np.argsort(energy_F))
    for found in sets:
        assert len(set(found.latent_C.tolist())) == len(claimed)
        assert not set(found.latent_C.tolist()) & set(claimed.tolist())
        assert (energy_F[found.latent_C] > 0).all()
        # One of the eight nearest by energy, so that sorted by energy they lie near each other, one by one.
        gaps = np.sort(place[found.latent_C]) - np.sort(place[claimed])
        assert np.abs(gaps).max() <= 8 + len(claimed)
    assert len({tuple(s.latent_C.tolist()) for s in sets}) > 1


def test_matched_energy_is_nearer_than_chance():
    energy_F = energies(400, 0)
    claimed = np.argsort(-energy_F)[:16]
    sizes = [np.log(energy_F[s.latent_C]).mean() for s in matched_sets(claimed, energy_F, 20, 1)]
    mine, everywhere = np.log(energy_F[claimed]).mean(), np.log(energy_F).mean()
    assert max(abs(x - mine) for x in sizes) < 0.5 * abs(everywhere - mine)


def test_sets_are_the_same_for_a_seed_and_others_for_another():
    one, same, other = (
        [s.latent_C.tolist() for s in matched_sets(np.array([20, 40]), energies(), 5, k)] for k in (3, 3, 4)
    )
    assert one == same != other
    assert [s.latent_C.tolist() for s in matched_sets(np.array([20, 40]), energies(), 2, 3)] == one[:2]


@pytest.mark.parametrize(("n_live", "n_sets"), [(5, 0), (6, 2), (3, 0)])
def test_too_few_others_to_compare_with(n_live, n_sets):
    energy_F = np.zeros(20)
    energy_F[:n_live] = 1
    assert len(matched_sets(np.array([0, 1, 2]), energy_F, 2, 0)) == n_sets


@pytest.mark.parametrize("kind", ["pair", "difference"])
def test_contributions_are_dense_sums(kind):
    dictionary, rows = random_dictionary(2 if kind == "pair" else 1), random_rows(n=50)
    d = dense(dictionary, rows, kind)
    for chosen in ([2], [1, 4, 7, 11], list(range(17)), [0]):
        found = contribution(dictionary, coded(dictionary, rows, kind).codes, np.array(chosen))
        expected = d.acts_NF[:, chosen] @ d.rows_FMD[chosen, -1] / float(dictionary.scale_M[-1])
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert not found.any()  # dead


@pytest.mark.parametrize("kind", ["pair", "difference"])
def test_sets_of_equal_size_contribute_vectors_of_one_mean_length(kind):
    rows = random_rows()
    dictionary = random_dictionary(2 if kind == "pair" else 1)
    sets = [
        LatentSet("claimed", 0, np.array([2, 5])),
        LatentSet("random", 0, np.array([3])),
        LatentSet("random", 1, np.array([0])),
    ]
    block, found = coded(dictionary, rows, kind), dense(dictionary, rows, kind)
    scaled = of_equal_size(sets, dictionary, [block])

    def mean_length(latents):
        made = found.acts_NF[:, latents.latent_C] @ found.rows_FMD[latents.latent_C, -1]
        return latents.scale * np.linalg.norm(made, axis=1).mean()

    assert scaled[0].scale == 1
    assert mean_length(scaled[1]) == pytest.approx(mean_length(scaled[0]), rel=1e-5)
    assert scaled[2].scale == 1, "a dead latent stays at nothing"


@pytest.mark.parametrize("kind", ["pair", "difference"])
def test_effects_are_those_of_texts_read_alone(pair, kind, tmp_path):
    rng = np.random.default_rng(0)
    n_sites = 2 if kind == "pair" else 1
    spec = DictionarySpec(n_sites=n_sites, width=32, n_latents=40, sparsity="l1")
    dictionary = Dictionary(spec, torch.full((n_sites,), 0.7))
    with torch.no_grad():
        for weights in dictionary.parameters():
            weights.copy_(torch.from_numpy(rng.normal(size=weights.shape) * 0.2))
    sets = [LatentSet("claimed", 0, np.array([1, 5])), LatentSet("random", 0, np.array([7, 33]))]
    context = context_with(None, TEXTS, tmp_path, pair)
    rows = causal_rows(
        context, dictionary, kind, Slot(1), TABLE, KEPT, sets, SEQUENCES, float("inf"), lambda n: None
    )  # fmt: skip
    keys = [(r.dataset, r.change, r.latents, r.number) for r in rows]
    expected_keys = [
        (name, change, s.name, s.number) for name in SEQUENCES for change in ("ablate", "add") for s in sets
    ]
    assert sorted(keys) == sorted(expected_keys)
    for row in rows:
        (latents,) = (s.latent_C for s in sets if s.name == row.latents)
        handle, sign = (pair.finetuned, -1) if row.change == "ablate" else (pair.base, 1)
        effect, kl, n, sizes = 0.0, 0.0, 0, []
        for s in SEQUENCES[row.dataset]:
            ids = TEXTS.sequences[s].ids
            both = torch.stack([alone(h, ids, 1)[1] for h in (pair.base, pair.finetuned)], 1)
            d = dense(dictionary, both, kind)
            part = torch.from_numpy(d.acts_NF[:, latents] @ d.rows_FMD[latents, -1] / 0.7).float()
            part[0] = 0
            own, changed = (alone(handle, ids, 1, c)[0] for c in (None, lambda stream, p=sign * part: stream + p))
            effect += loss_of(changed, ids) - loss_of(own, ids)
            kl += kl_of(own, changed)
            n += len(ids) - 1
            sizes += part[1:].norm(dim=1).tolist()
        assert row.n_tokens == n
        assert row.n_latents == 2
        assert row.effect == pytest.approx(effect / n, rel=1e-3, abs=1e-5)
        assert row.kl == pytest.approx(kl / n, rel=1e-3, abs=1e-6)
        assert row.kl >= -1e-6
        assert row.size == pytest.approx(np.mean(sizes), rel=1e-4)
        assert row.low <= row.effect <= row.high
    assert max(r.kl for r in rows) > 1e-3


def pre_activation(dictionary, raw_2D, latent, kind):
    given = raw_2D if kind == "pair" else (raw_2D[1] - raw_2D[0])[None]
    return float(dictionary.pre_activations(dictionary.normalised(given[None]))[0, latent].detach())


@pytest.mark.parametrize("strength", [-0.5, 0.25, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["pair", "difference"])
def test_steering_along_a_latent_raises_it_by_what_encoder_and_decoder_say(kind, strength):
    dictionary, rows = random_dictionary(2 if kind == "pair" else 1), random_rows(n=50)
    d = dense(dictionary, rows, kind)
    for latent in (2, 5, 9):
        maximum = max(float(d.acts_NF[:, latent].max()), 0.5)
        found = raised(dictionary, latent, maximum, strength)
        row, encoder = d.rows_FMD[latent, -1], dictionary.encoder_FMD.detach()[latent, -1].double().numpy()
        np.testing.assert_allclose(found.vector_D, strength * maximum * row / float(dictionary.scale_M[-1]), rtol=1e-5)
        assert found.rise == pytest.approx(strength * maximum * encoder @ row, rel=1e-6)
        before = rows[7]
        after = before + torch.stack([torch.zeros(10), found.vector_D])
        change = pre_activation(dictionary, after, latent, kind) - pre_activation(dictionary, before, latent, kind)
        assert change == pytest.approx(found.rise, abs=1e-4)


def test_steering_the_running_model_raises_the_latent(pair):
    rng = np.random.default_rng(4)
    dictionary = Dictionary(DictionarySpec(n_sites=2, width=32, n_latents=6, k=2), torch.tensor([0.9, 0.4]))
    with torch.no_grad():
        for weights in dictionary.parameters():
            weights.copy_(torch.from_numpy(rng.normal(size=weights.shape)))
    ids = TEXTS.sequences[3].ids
    found = raised(dictionary, 3, 2.5, 0.8)
    base, plain = (alone(h, ids, 1)[1] for h in (pair.base, pair.finetuned))
    with steered(pair.finetuned, Steering(1, found.vector_D, "all"), 0, len(ids)):
        moved = alone(pair.finetuned, ids, 1)[1]
    for t in range(len(ids)):
        both = [torch.stack([base[t], f[t]]) for f in (plain, moved)]
        change = np.subtract(*(pre_activation(dictionary, x, 3, "pair") for x in reversed(both)))
        assert change == pytest.approx(found.rise if t else 0, rel=1e-3, abs=1e-4)
