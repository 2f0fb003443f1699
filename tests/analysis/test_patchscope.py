"""Patchscopes against a loop over prompts, vectors and pairs of tokens."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from diffing.analysis import patchscope as module
from diffing.analysis.patchscope import PROMPTS, n_rows, patchscope, unembeddings
from diffing.core.errors import UserError
from diffing.models.handle import make_handle
from diffing.models.patched_prompt import PatchedPrompt
from diffing.models.tiny import VOCAB_SIZE, tiny_model, tiny_tokenizer

LAYER, K, NORM = 1, 6, 9.0
SCALES = (0.5, 2.0)
IDS = [list(range(20, 26)), list(range(40, 44)), [50, 61]]


@pytest.fixture(scope="module")
def handle():
    return make_handle(tiny_model("llama"), tiny_tokenizer(), "llama")


def vectors(n, seed):
    return torch.randn(n, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 30


VECTORS, RANDOM = vectors(5, 1), vectors(4, 2)


@pytest.fixture(scope="module")
def found(handle):
    return patchscope(handle, IDS, LAYER, VECTORS, RANDOM, NORM, SCALES, K)


def distributions(handle, vector, scale):
    """One distribution for each prompt, float64."""
    state = (vector / vector.norm() * NORM * scale)[None]
    return [PatchedPrompt(handle, ids, LAYER).next_logits(state)[0].double().softmax(-1).numpy() for ids in IDS]


def coherence(handle, mean):
    rows = handle.sites.head.weight.double().numpy()[np.argsort(-mean)[:20]]
    return np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(rows, 2)])


def test_readings_are_those_of_a_loop(handle, found):
    for i, vector in enumerate(VECTORS):
        for s, scale in enumerate(SCALES):
            each = distributions(handle, vector, scale)
            mean = np.mean(each, 0)
            np.testing.assert_allclose(mean[found.ids_NSK[i, s]], found.probabilities_NSK[i, s], atol=1e-5)
            np.testing.assert_allclose(np.sort(mean)[::-1][:K], found.probabilities_NSK[i, s], atol=1e-5)
            tops = [set(np.argsort(-p)[:K].tolist()) for p in each]
            shared = [all(t in top for top in tops) for t in found.ids_NSK[i, s].tolist()]
            assert found.is_shared_NSK[i, s].tolist() == shared
            assert found.coherence_NS[i, s] == pytest.approx(coherence(handle, mean), abs=1e-5)


def test_random_directions_are_the_comparison(handle, found):
    for s, scale in enumerate(SCALES):
        means = [np.mean(distributions(handle, vector, scale), 0) for vector in RANDOM]
        np.testing.assert_allclose(np.mean(means, 0)[found.ids_NSK[:, s]], found.random_NSK[:, s], atol=1e-5)
        assert found.random_coherence_S[s] == pytest.approx(np.mean([coherence(handle, m) for m in means]), abs=1e-5)
    gain = found.coherence_NS - found.random_coherence_S
    assert found.chosen_N.tolist() == gain.argmax(1).tolist()
    assert len(set(found.chosen_N.tolist())) == 2, "both scales are chosen by some vector"


def test_the_length_of_a_vector_does_not_matter(handle, found):
    longer = patchscope(handle, IDS, LAYER, VECTORS * 7.5, RANDOM / 3, NORM, SCALES, K)
    np.testing.assert_allclose(longer.probabilities_NSK, found.probabilities_NSK, atol=1e-6)
    assert longer.scales == found.scales == SCALES


def test_few_rows_at_a_time_give_the_same(handle, found, monkeypatch):
    monkeypatch.setattr(module, "_LOGIT_BYTES", 1)
    counted = []
    slow = patchscope(handle, IDS, LAYER, VECTORS, RANDOM, NORM, SCALES, K, counted.append)
    np.testing.assert_allclose(slow.probabilities_NSK, found.probabilities_NSK, atol=1e-5)
    assert slow.ids_NSK.tolist() == found.ids_NSK.tolist()
    assert sum(counted) == n_rows(len(VECTORS), len(RANDOM), len(SCALES), len(IDS))
    assert set(counted) == {1}


def test_more_tokens_than_the_vocabulary_are_all(handle):
    read = patchscope(handle, IDS[:1], LAYER, VECTORS[:1], RANDOM[:1], NORM, (1.0,), 10_000)
    assert read.ids_NSK.shape == (1, 1, VOCAB_SIZE)
    assert read.is_shared_NSK.all()
    assert read.probabilities_NSK.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_vectors_without_a_direction_are_refused(handle, bad):
    with pytest.raises(UserError, match="no direction to read"):
        patchscope(handle, IDS, LAYER, torch.full((1, 32), bad), RANDOM, NORM, SCALES, K)


def test_a_head_that_holds_no_matrix_lends_the_embeddings(handle):
    ids = torch.tensor([3, 7])
    sites = dataclasses.replace(handle.sites, head=nn.Identity())
    other = dataclasses.replace(handle, sites=sites)
    assert torch.equal(unembeddings(handle, ids), handle.sites.head.weight[ids].double())
    assert torch.equal(unembeddings(other, ids), handle.module.get_input_embeddings().weight[ids].double())


def test_prompts_end_in_the_token_that_is_replaced():
    assert len(PROMPTS) > 2
    assert all(p.endswith("\n?") for p in PROMPTS)
    words = [p.split()[0].strip(":") for p in PROMPTS]
    between = [p.splitlines()[0].removeprefix(w).removesuffix(w) for p, w in zip(PROMPTS, words, strict=True)]
    assert len(set(between)) == len(PROMPTS), "what stands between two words is not likely in every prompt"
