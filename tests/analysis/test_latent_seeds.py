"""Latents that come back in another seed."""

import numpy as np
import pytest
import torch
from latent_makers import random_dictionary

from diffing.analysis.latents import seeds as module
from diffing.analysis.latents.seeds import best_matches


def shuffled(dictionary, seed=0):
    """The same latents in another order, and where each went."""
    other = random_dictionary()
    place = torch.from_numpy(np.random.default_rng(seed).permutation(dictionary.spec.n_latents))
    with torch.no_grad():
        other.decoder_FMD[place] = dictionary.decoder_FMD
    return other, place.numpy()


@pytest.mark.parametrize("at_once", [1, 5, 4096])
def test_a_shuffled_dictionary_comes_back_whole(monkeypatch, at_once):
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", at_once)
    dictionary = random_dictionary()
    other, place = shuffled(dictionary)
    match_F, cosine_F = best_matches(dictionary, other, np.ones(17, dtype=bool))
    np.testing.assert_array_equal(match_F, place)
    np.testing.assert_allclose(cosine_F, 1, atol=1e-6)


def test_matches_are_those_of_a_loop_over_live_latents():
    one, two = random_dictionary(seed=1), random_dictionary(seed=2)
    alive_F = np.random.default_rng(0).random(17) < 0.5
    match_F, cosine_F = best_matches(one, two, alive_F)
    rows = [d.decoder_FMD.detach().double().numpy().reshape(17, -1) for d in (one, two)]
    for j in range(17):
        cosines = {
            k: rows[0][j] @ rows[1][k] / np.linalg.norm(rows[0][j]) / np.linalg.norm(rows[1][k])
            for k in range(17)
            if alive_F[k]
        }
        assert match_F[j] == max(cosines, key=lambda k: cosines[k])
        assert cosine_F[j] == pytest.approx(max(cosines.values()), abs=1e-6)


def test_nothing_to_match_with():
    match_F, cosine_F = best_matches(random_dictionary(), random_dictionary(), np.zeros(17, dtype=bool))
    assert (match_F == -1).all()
    assert np.isnan(cosine_F).all()


def test_rows_of_length_0_match_nothing():
    one, two = random_dictionary(), random_dictionary()
    with torch.no_grad():
        one.decoder_FMD[5] = 0
    _, cosine_F = best_matches(one, two, np.ones(17, dtype=bool))
    assert cosine_F[5] == 0
    assert np.isfinite(cosine_F).all()
