"""Texts with latents held up and down: directions and lengths against dense sums, scores against texts read alone."""

import numpy as np
import pytest
import torch
from latent_makers import TEXTS, alone, coded, dense, random_dictionary, random_rows

from diffing.analysis.latents.causal import LatentSet
from diffing.analysis.latents.results import CausalTextRow
from diffing.analysis.latents.texts import SetVector, opening_seed, set_vectors, text_means, text_rows
from diffing.analysis.text_scores import continuation_log_probs
from diffing.data.token_table import TokenTable
from diffing.models.generation import generate
from diffing.models.sampling import Sampling
from diffing.models.steering import Steering
from methods.memory_source import context_with
from workbench import pair_loader

TABLE = TokenTable.of(TEXTS)
SEQUENCES = {"web": [3, 0, 1], "chat": [7, 6, 4]}
N_NEW = 6


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return pair_loader(tmp_path_factory.mktemp, full=True)("llama")


@pytest.fixture(scope="module")
def vectors():
    claimed = LatentSet("claimed", 0, np.array([2, 5]))
    random = [LatentSet("random", i, np.array([7 + i])) for i in range(2)]
    directions = torch.from_numpy(np.random.default_rng(3).normal(size=(3, 32))).float()
    return [SetVector(s, 20 * d) for s, d in zip([claimed, *random], directions, strict=True)]


@pytest.fixture(scope="module")
def rows(pair, vectors, tmp_path_factory):
    context = context_with(None, TEXTS, tmp_path_factory.mktemp("texts"), pair)
    return text_rows(context, TABLE, SEQUENCES, 1, vectors, 2, N_NEW)


@pytest.mark.parametrize("kind", ["pair", "difference"])
def test_vectors_are_mean_contributions_as_long_as_the_claimed_ones_are(kind):
    given = random_rows()
    dictionary = random_dictionary(2 if kind == "pair" else 1)
    sets = [
        LatentSet("claimed", 0, np.array([2, 5])),
        LatentSet("random", 0, np.array([3, 9])),
        LatentSet("random", 1, np.array([0])),
    ]
    found = set_vectors(sets, dictionary, [coded(dictionary, part, kind) for part in given.split(40)])
    assert [v.latents.number for v in found] == [0, 0], "a dead latent has no direction"
    d = dense(dictionary, given, kind)
    made = [d.acts_NF[:, s.latent_C] @ d.rows_FMD[s.latent_C, -1] / float(dictionary.scale_M[-1]) for s in sets[:2]]
    length = np.linalg.norm(made[0], axis=1).mean()
    for one, part in zip(found, made, strict=True):
        mean = part.mean(0)
        np.testing.assert_allclose(one.vector_D.numpy(), length * mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-5)


def test_texts_are_those_of_the_steered_model_alone(pair, vectors, rows):
    by_key = {(r.dataset, r.document, r.change, r.latents, r.number): r for r in rows}
    # A text of one token has no half to give, so that another document stands in for it.
    openings = {(d, int(TABLE.documents[s])) for d, s in (("web", 3), ("web", 0), ("chat", 7), ("chat", 4))}
    assert {key[:2] for key in by_key} == openings
    assert len(rows) == len(openings) * 2 * 4
    for (dataset, document, change, latents, number), row in by_key.items():
        sequence = next(s for s in SEQUENCES[dataset] if TABLE.documents[s] == document)
        ids = TEXTS.sequences[sequence].ids[: min(12, TABLE.length_of(sequence) // 2)].tolist()
        handle, sign = (pair.finetuned, -1) if change == "ablate" else (pair.base, 1)
        steering = None
        if latents != "unchanged":
            vector = next(v for v in vectors if (v.latents.name, v.latents.number) == (latents, number))
            steering = Steering(1, sign * vector.vector_D, "all")
        sampling = Sampling(max_new_tokens=N_NEW, seed=opening_seed(0, dataset, document))
        text = [t.id for t in generate(handle, ids, sampling, (), steering)]
        assert row.prompt == pair.tokenizer.decode(ids, skip_special_tokens=True)
        assert row.score == pytest.approx(_score_alone(pair, ids, text), abs=1e-4)
        own = by_key[dataset, document, change, "unchanged", 0]
        assert row.change_of_score == pytest.approx(row.score - own.score, abs=1e-9)
        assert (row.shared_tokens == N_NEW) == (row.text == own.text)


def _score_alone(pair, prompt, new):
    ids = np.array([*prompt, *new])
    read = [alone(h, ids, 1)[0] for h in (pair.finetuned, pair.base)]
    places = range(len(prompt) - 1, len(ids) - 1)
    return float(np.mean([read[0][t, ids[t + 1]] - read[1][t, ids[t + 1]] for t in places]))


def test_steering_changes_the_texts(rows):
    assert any(r.shared_tokens < N_NEW for r in rows if r.latents == "claimed")
    assert all(r.shared_tokens == N_NEW for r in rows if r.latents == "unchanged")


def test_log_probs_of_continuations_are_those_of_texts_read_alone(pair):
    texts = [([5, 6, 7], [41, 42]), ([9], [50, 51, 52, 53]), ([8, 9], [])]
    found = continuation_log_probs(pair.base, texts)
    assert [len(f) for f in found] == [2, 4, 0]
    for (prompt, new), values in zip(texts, found, strict=True):
        ids = np.array([*prompt, *new])
        read = alone(pair.base, ids, 1)[0]
        expected = [float(read[t, ids[t + 1]]) for t in range(len(prompt) - 1, len(ids) - 1)]
        np.testing.assert_allclose(values, expected, atol=1e-4)


def test_means_are_over_the_texts_of_a_set():
    def row(latents, number, change):
        return CausalTextRow("web", 1, "add", latents, number, "p", "t", 3, 0.0, change)

    rows = [row("unchanged", 0, 0.0), row("claimed", 0, 1.0), row("claimed", 0, 2.0), row("random", 1, None)]
    (mean,) = text_means(rows, 0)
    assert (mean.latents, mean.n_texts, mean.change_of_score, mean.shared_tokens) == ("claimed", 2, 1.5, 3)
    assert 1 <= mean.low <= mean.high <= 2
