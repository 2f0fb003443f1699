"""Predictions of both models against a plain float64 softmax of their own logits."""

import dataclasses

import numpy as np
import pytest
import torch

import diffing
from diffing.analysis.logit_rows import LogitRows
from diffing.analysis.predictions import top_predictions
from diffing.core.errors import UserError
from diffing.data.documents import documents_from_texts
from diffing.data.sequences import SequenceMaker
from diffing.models.tiny import perturbed, save_model, tiny_model, tiny_tokenizer
from workbench import pair_loader

TEXT = "The heron stood in the shallows and waited for the others to land on the far bank, then rang the bell twice."


@pytest.fixture(scope="module")
def tiny_pair(tmp_path_factory):
    return pair_loader(tmp_path_factory.mktemp, full=True)


def sequence_of(pair, text=TEXT):
    return next(SequenceMaker("text", pair.tokenizer, pair.rules, 256).sequences(documents_from_texts("text", [text])))


def plain_softmax(handle, ids, shared=None):
    with handle.active(), torch.no_grad():
        logits_TV = handle.module(torch.tensor([ids.tolist()])).logits[0].double()
    if shared is not None:
        logits_TV = logits_TV[:, shared]
    return logits_TV.softmax(-1).numpy()


def check(pair, sequence, k=10):
    shared = pair.vocabulary.shared_ids
    ids_V = np.arange(pair.base.vocab_size) if shared is None else shared.numpy()
    p = {"base": plain_softmax(pair.base, sequence.ids, shared)}
    p["finetuned"] = plain_softmax(pair.finetuned, sequence.ids, shared)
    found, rows = top_predictions(pair, sequence, k), np.arange(len(sequence.ids))[:, None]
    for side, other in (("base", "finetuned"), ("finetuned", "base")):
        mine, columns = getattr(found, side), np.searchsorted(ids_V, getattr(found, side).ids_TK)
        assert (ids_V[columns] == mine.ids_TK).all()
        np.testing.assert_allclose(mine.probabilities_TK, -np.sort(-p[side])[:, :k], atol=2e-6)
        np.testing.assert_allclose(mine.probabilities_TK, p[side][rows, columns], atol=2e-6)
        np.testing.assert_allclose(mine.other_probabilities_TK, p[other][rows, columns], atol=2e-6)
        for t, following in enumerate(np.searchsorted(ids_V, sequence.ids[1:]).tolist()):
            assert mine.next_probability_T[t] == pytest.approx(p[side][t, following], abs=2e-6)
            assert mine.next_rank_T[t] == 1 + (p[side][t] > p[side][t, following]).sum()
        assert (mine.next_probability_T[-1], mine.next_rank_T[-1]) == (None, None)
        assert len(mine.next_rank_T) == len(mine.next_probability_T) == len(sequence.ids)
    return found


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "cohere", "gpt2"])
def test_agrees_with_a_plain_softmax(architecture, tiny_pair):
    pair = tiny_pair(architecture)
    check(pair, sequence_of(pair))


@pytest.mark.parametrize("sharing", ["adapter", "merged"])
def test_agrees_for_adapters(sharing, tiny_pair):
    pair = tiny_pair(full=False, sharing=sharing)
    found = check(pair, sequence_of(pair))
    assert not np.array_equal(found.base.probabilities_TK, found.finetuned.probabilities_TK)


def test_a_read_out_that_could_not_be_verified(tiny_pair):
    pair = tiny_pair()
    sides = {s: dataclasses.replace(getattr(pair, s), transform=None) for s in ("base", "finetuned")}
    check(dataclasses.replace(pair, **sides), sequence_of(pair))


def test_few_rows_of_logits_exist_at_a_time(tiny_pair, monkeypatch):
    pair, logits, sizes = tiny_pair(), LogitRows.logits, []

    def counted(self, start, stop):
        sizes.append(stop - start)
        return logits(self, start, stop)

    monkeypatch.setattr(LogitRows, "logits", counted)
    sequence = sequence_of(pair, TEXT * 2)
    check(pair, sequence)
    assert len(sequence.ids) > 100
    assert max(sizes) == 32
    assert sum(sizes) == 2 * len(sequence.ids)


def test_a_length_that_leaves_the_last_token_alone(tiny_pair):
    pair = tiny_pair()
    sequence = sequence_of(pair)
    cut = {f: getattr(sequence, f)[:33] for f in ("ids", "roles", "is_template", "is_special")}
    check(pair, dataclasses.replace(sequence, **cut))
    two = {name: values[:2] for name, values in cut.items()}
    check(pair, dataclasses.replace(sequence, **two))


def test_no_more_than_the_vocabulary(tiny_pair):
    pair = tiny_pair()
    found = check(pair, sequence_of(pair), k=10_000)
    assert found.base.ids_TK.shape[1] == pair.base.vocab_size
    np.testing.assert_allclose(found.base.probabilities_TK.sum(1), 1, atol=1e-5)


def test_vocabularies_of_different_size(tmp_path):
    base = tiny_model()
    wider = perturbed(base, 1, 0.05)
    wider.resize_token_embeddings(base.config.vocab_size + 7, mean_resizing=False)
    save_model(tmp_path / "base", base, tiny_tokenizer())
    save_model(tmp_path / "wider", wider, tiny_tokenizer(tuple(f"<new{i}>" for i in range(7))))
    for one, other in (("base", "wider"), ("wider", "base")):
        pair = diffing.load_pair(str(tmp_path / one), finetuned=str(tmp_path / other))
        assert pair.vocabulary.shared_ids is not None
        check(pair, sequence_of(pair))
    with pytest.raises(UserError, match=r"2 tokens.*'<new3>'"):
        top_predictions(pair, sequence_of(pair, "a <new3> and <new0>"))
