"""Planted features come back with the right tag under BatchTopK; under L1 the weaker model's share shrinks away."""

import numpy as np
import pytest
import torch

from diffing.analysis.latents.tags import tag_names
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.initial import initial_dictionary, measure_scale
from diffing.dictionaries.metrics import evaluate
from diffing.dictionaries.planted import KINDS, plant, recovery
from diffing.dictionaries.schedules import TrainingSpec
from diffing.dictionaries.spec import DictionarySpec
from diffing.dictionaries.trainer import Trainer, train


class Found:
    """What a trained crosscoder made of planted features.

    Attributes:
        is_found_G: Cosine above 0.9.
        tag_G: Tag of the best latent.
        kind_G: The truth.
    """

    def __init__(self, planted, n_latents, k, n_rows, batch_rows, lr=2e-3, sparsity="batch_topk", penalty=0.2):
        scale = measure_scale(planted.batches(20_000, 2000, 1))
        width = planted.direction_GD.shape[1]
        spec = DictionarySpec(n_sites=2, width=width, n_latents=n_latents, k=k, sparsity=sparsity)
        training = TrainingSpec(n_steps=n_rows // batch_rows, lr=lr, penalty=penalty)
        trainer = Trainer(initial_dictionary(spec, scale, 0), training, scale.variance)
        train(trainer, planted.batches(n_rows, batch_rows, 2))
        alive_F = evaluate(trainer.dictionary, planted.batches(20_000, 2000, 3)).frequency_F > 0
        matched = recovery(planted, trainer.dictionary, torch.from_numpy(alive_F))
        self.is_found_G, self.kind_G = matched.cosine_G > 0.9, np.array(planted.kinds)
        self.tag_G = np.array(tag_names(trainer.dictionary, "pair", alive_F))[matched.latent_G]

    @property
    def share(self):
        return self.is_found_G.mean()

    @property
    def right(self):
        return (self.tag_G == self.kind_G)[self.is_found_G].mean()

    @property
    def n_shrunk(self):
        """Features that are in both models, weaker in the base, and tagged as the finetuned model's alone."""
        return int(((self.kind_G == "stronger_in_ft") & (self.tag_G == "ft_only")).sum())


@pytest.mark.slow
def test_thirty_features_come_back_from_100_000_rows():
    found = Found(plant(6, 32), 64, 1, 100_000, 256)
    assert found.share >= 0.75
    assert found.right >= 0.95
    assert found.n_shrunk == 0
    assert set(found.kind_G[found.is_found_G]) == set(KINDS)


@pytest.mark.slow
def test_l1_makes_shared_features_look_like_those_of_one_model():
    found = Found(plant(6, 32), 64, 1, 100_000, 256, sparsity="l1", penalty=0.5)
    assert found.share >= 0.75
    assert found.n_shrunk >= 4


@pytest.mark.slow
def test_120_features_come_back_from_a_million_and_a_half_rows():
    found = Found(plant(), 256, 4, 1_500_000, 1024)
    assert found.share >= 0.9
    assert found.right >= 0.95
    assert found.n_shrunk == 0


@pytest.mark.slow
def test_l1_shrinks_most_features_that_are_weaker_in_the_base_model():
    found = Found(plant(), 256, 4, 1_000_000, 1024, sparsity="l1", penalty=0.2)
    assert found.share >= 0.9
    assert found.n_shrunk >= 18


def test_planted_rows_are_sums_of_the_directions_that_are_active():
    planted = plant(4, 16, density=0.1, noise=0.0)
    rows = torch.cat(list(planted.batches(4000, 700, 5))).double()
    assert rows.shape == (4000, 2, 16)
    basis = torch.cat([planted.direction_GD.double() * planted.strength_GM[:, [m]] for m in range(2)], 1)
    solved = torch.linalg.lstsq(basis.T, rows.flatten(1).T).solution.T
    sizes = solved[:, planted.partner_G < 0]
    active = sizes.abs() > 1e-3
    assert float(active.double().mean()) == pytest.approx(0.1, abs=0.01)
    assert sizes[active].min() > 1 - 1e-3
    assert sizes[active].max() < 2 + 1e-3
    assert torch.equal(rows, torch.cat(list(planted.batches(4000, 700, 5))).double())


def test_partners_are_active_together():
    planted = plant(8, 64, density=0.05, noise=0.0)
    rows = torch.cat(list(planted.batches(6000, 2000, 5))).double()
    basis = torch.cat([planted.direction_GD.double() * planted.strength_GM[:, [m]] for m in range(2)], 1)
    active = (torch.linalg.lstsq(basis.T, rows.flatten(1).T).solution.T.abs() > 1e-3).numpy()
    second = np.flatnonzero(planted.partner_G >= 0)
    assert len(second) == 10
    given = [active[active[:, planted.partner_G[g]], g].mean() for g in second]
    assert np.mean(given) == pytest.approx(0.5 + 0.5 * 0.05, abs=0.03)


def ideal(planted):
    """A dictionary whose rows are the planted ones."""
    g, d = planted.direction_GD.shape
    dictionary = Dictionary(DictionarySpec(n_sites=2, width=d, n_latents=g, k=1), torch.tensor([3.0, 0.2]))
    with torch.no_grad():
        rows = planted.direction_GD[:, None] * planted.strength_GM[:, :, None] * dictionary.scale_M[:, None]
        dictionary.decoder_FMD.copy_(rows.flip(0))
    return dictionary


def test_the_truth_is_recovered_whatever_the_scale():
    planted = plant(4, 16)
    g = len(planted.kinds)
    matched = recovery(planted, ideal(planted), torch.ones(g, dtype=torch.bool))
    assert matched.latent_G.tolist() == list(range(g))[::-1]
    assert matched.cosine_G == pytest.approx(np.ones(g), abs=1e-5)


def test_dead_latents_recover_nothing():
    planted = plant(4, 16)
    alive = torch.ones(len(planted.kinds), dtype=torch.bool)
    alive[-1] = False
    matched = recovery(planted, ideal(planted), alive)
    assert matched.cosine_G[0] < 0.9
    assert matched.cosine_G[1:] == pytest.approx(np.ones(len(alive) - 1), abs=1e-5)
