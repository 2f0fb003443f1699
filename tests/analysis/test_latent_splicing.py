"""Losses with reconstructions in the stream, against one text at a time and a hook of its own."""

import numpy as np
import pytest
import torch
from latent_makers import TEXTS, alone, dense, kl_of, loss_of, perfect

from diffing.analysis.latents.recovered import spliced_rows
from diffing.analysis.latents.sites import Split
from diffing.analysis.latents.splicing import pair_batches, some_sequences
from diffing.analysis.losses import LossReader
from diffing.core.layers import Slot
from diffing.data.batches import make_batch
from diffing.data.token_table import TokenTable
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.spec import DictionarySpec
from methods.memory_source import context_with
from workbench import pair_loader

TABLE = TokenTable.of(TEXTS)
KEPT = TABLE.position_N > 0
SEQUENCES = {"web": [3, 0, 1], "chat": [7, 4, 5]}
ALL = [s for chosen in SEQUENCES.values() for s in chosen]
INFINITE = float("inf")
SLOT = Slot(1)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    return pair_loader(tmp_path_factory.mktemp, full=True)


@pytest.fixture(scope="module", params=["llama", "falcon"])
def pair(load, request):
    return load(request.param)


def context_of(pair, folder):
    return context_with(None, TEXTS, folder, pair)


def wide_dictionary(n_sites, width=32, seed=0):
    """Random weights of the models' width, with a threshold."""
    rng = np.random.default_rng(seed)
    dictionary = Dictionary(
        DictionarySpec(n_sites=n_sites, width=width, n_latents=40, k=4), torch.full((n_sites,), 0.7)
    )
    with torch.no_grad():
        for weights in dictionary.parameters():
            weights.copy_(torch.from_numpy(rng.normal(size=weights.shape) * 0.3))
        dictionary.threshold.fill_(4.0)
    return dictionary


def streams_alone(pair, layer=1):
    """Both models' streams of every sequence read alone, (T, 2, D) each, and their means at kept tokens."""
    found = {}
    for s in ALL:
        ids = TEXTS.sequences[s].ids
        found[s] = torch.stack([alone(h, ids, layer)[1] for h in (pair.base, pair.finetuned)], 1)
    kept = torch.cat([found[s][1:] for s in ALL])
    return found, kept.mean(0)


@pytest.mark.parametrize("kind", ["pair", "difference"])
def test_losses_are_those_of_texts_read_alone(pair, kind, tmp_path):
    dictionary = wide_dictionary(2 if kind == "pair" else 1)
    streams, mean_2D = streams_alone(pair)
    done = []
    rows = spliced_rows(
        context_of(pair, tmp_path), dictionary, kind, SLOT, TABLE, KEPT, mean_2D, SEQUENCES, INFINITE, done.append
    )
    assert sum(done) == sum(len(TEXTS.sequences[s].ids) for s in ALL)
    assert [(r.dataset, r.model) for r in rows] == [
        (name, model) for name in SEQUENCES for model in (("base", "finetuned") if kind == "pair" else ("finetuned",))
    ]
    scale = dictionary.scale_M.double().numpy()[:, None]
    for row in rows:
        m = ("base", "finetuned").index(row.model)
        handle, n, sums = (pair.base, pair.finetuned)[m], 0, np.zeros(3)
        for s in SEQUENCES[row.dataset]:
            ids, both_T2D = TEXTS.sequences[s].ids, streams[s]
            made = torch.from_numpy(dense(dictionary, both_T2D, kind).made_NMD / scale).float()
            if kind == "pair":
                parts = (None, made[:, m], mean_2D[m].expand(len(ids), -1))
            else:
                parts = (None, both_T2D[:, 0] + made[:, 0], both_T2D[:, 0] + mean_2D[1] - mean_2D[0])
            for i, part in enumerate(parts):
                changed = None if part is None else lambda stream, p=part: torch.cat([stream[:1], p[1:]])
                sums[i] += loss_of(alone(handle, ids, 1, changed)[0], ids)
            n += len(ids) - 1
        assert row.n_tokens == n
        np.testing.assert_allclose([row.ce, row.ce_spliced, row.ce_mean], sums / n, rtol=2e-5)
        assert row.recovered == pytest.approx((sums[2] - sums[1]) / (sums[2] - sums[0]), rel=1e-2)


@pytest.mark.parametrize("kind", ["pair", "difference"])
def test_a_perfect_dictionary_recovers_everything_and_an_empty_one_nothing(pair, kind, tmp_path):
    n_sites = 2 if kind == "pair" else 1
    _, mean_2D = streams_alone(pair)
    context = context_of(pair, tmp_path)
    given = (kind, SLOT, TABLE, KEPT, mean_2D, SEQUENCES, INFINITE, lambda n: None)
    for row in spliced_rows(context, perfect(n_sites, 32), *given):
        assert row.ce_spliced == pytest.approx(row.ce, abs=1e-5)
        assert row.recovered == pytest.approx(1, abs=1e-4)
        assert abs(row.ce_mean - row.ce) > 1e-2
    empty = Dictionary(DictionarySpec(n_sites=n_sites, width=32, n_latents=3, sparsity="l1"))
    with torch.no_grad():
        empty.decoder_bias_MD.copy_(mean_2D if kind == "pair" else mean_2D[1:] - mean_2D[:1])
    for row in spliced_rows(context, empty, *given):
        assert row.ce_spliced == pytest.approx(row.ce_mean, abs=1e-5)
        assert row.recovered == pytest.approx(0, abs=1e-3)


def test_nothing_to_recover_is_null(load, tmp_path):
    pair = load("llama")
    none = np.zeros_like(KEPT)
    given = (perfect(2, 32), "pair", SLOT, TABLE, none, torch.zeros(2, 32), {"web": [0]}, INFINITE, lambda n: None)
    for row in spliced_rows(context_of(pair, tmp_path), *given):
        assert row.ce == row.ce_spliced == row.ce_mean
        assert row.recovered is None


def test_batches_hold_what_texts_alone_give(pair, tmp_path):
    dictionary = wide_dictionary(2)
    streams, _ = streams_alone(pair)
    seen = []
    batches = pair_batches(context_of(pair, tmp_path), dictionary, "pair", SLOT, TABLE, KEPT, ALL, INFINITE)
    for batch in batches:
        seen += batch.batch.sequences
        for i, s in enumerate(batch.batch.sequences):
            mask_T, n = batch.is_kept_BT[i], TABLE.length_of(s)
            assert mask_T.nonzero().flatten().tolist() == list(range(1, n))
            for m in range(2):
                torch.testing.assert_close(batch.streams[m][i, :n], streams[s][:, m], atol=2e-5, rtol=1e-5)
        expected = np.concatenate([dense(dictionary, streams[s][1:], "pair").acts_NF for s in batch.batch.sequences])
        np.testing.assert_allclose(batch.codes.dense().detach().numpy(), expected, atol=1e-4)
        new = batch.replaced(1, torch.zeros_like(batch.kept(1)))
        assert not new[batch.is_kept_BT].any()
        assert torch.equal(new[~batch.is_kept_BT], batch.streams[1].float()[~batch.is_kept_BT])
    assert sorted(seen) == sorted(ALL)


def test_states_above_the_limit_are_never_changed(load, tmp_path):
    pair = load("llama")
    streams, _ = streams_alone(pair)
    norms = torch.cat([streams[s][1:].norm(dim=2).amax(1) for s in ALL])
    limit = float(norms.median()) * 1.01
    batches = list(pair_batches(context_of(pair, tmp_path), perfect(2, 32), "pair", SLOT, TABLE, KEPT, ALL, limit))
    assert sum(int(b.is_kept_BT.sum()) for b in batches) == int((norms <= limit).sum()) < len(norms)
    assert max(float(b.kept(m).norm(dim=1).max()) for b in batches for m in range(2)) <= limit


def test_losses_with_and_without_a_change(pair):
    handle = pair.finetuned
    chosen = [0, 3, 4]
    batch = make_batch(TEXTS, chosen, 0)
    reader = LossReader(handle, batch, 1)
    own = reader.unchanged
    assert not own.kl_B.any()
    width = int(batch.ids_BT.shape[1])
    streams = torch.zeros(3, width, 32)
    for i, s in enumerate(chosen):
        ids = TEXTS.sequences[s].ids
        streams[i, : len(ids)] = alone(handle, ids, 1)[1]
        assert own.nll_B[i] == pytest.approx(loss_of(alone(handle, ids, 1)[0], ids), rel=1e-5)
        assert own.n_B[i] == len(ids) - 1
    same = reader.changed(streams)
    np.testing.assert_allclose(same.nll_B, own.nll_B, rtol=1e-5)
    assert (np.abs(same.kl_B) / own.n_B < 1e-6).all()
    for size in (1e-3, 0.1, 3):
        noise = size * torch.randn(streams.shape, generator=torch.Generator().manual_seed(1))
        found = reader.changed(streams + noise)
        assert (found.kl_B / own.n_B >= -1e-6).all()
        for i, s in enumerate(chosen):
            ids = TEXTS.sequences[s].ids
            change = noise[i, : len(ids)]
            changed = alone(handle, ids, 1, lambda stream, d=change: stream + d)[0]
            assert found.nll_B[i] == pytest.approx(loss_of(changed, ids), rel=1e-4)
            assert found.kl_B[i] == pytest.approx(kl_of(alone(handle, ids, 1)[0], changed), rel=1e-3, abs=1e-5)
    assert not handle.sites.layers[1]._forward_hooks


def test_some_sequences_of_held_out_documents():
    held = np.isin(TABLE.sequence_N, [0, 2, 3, 4, 6, 7])
    split = Split(KEPT & ~held, KEPT & held, True)
    found = some_sequences(TABLE, split, 10, 0)
    assert found == some_sequences(TABLE, split, 10, 0)
    assert set(found) == {"web", "chat"}
    for chosen in found.values():
        assert set(chosen) <= {0, 2, 3, 4, 7}  # 6 has one token: no next one
        lengths = [TABLE.length_of(s) for s in chosen]
        assert sum(lengths) >= 10
        assert sum(lengths[:-1]) < 10
    assert sorted(s for chosen in some_sequences(TABLE, split, 10**6, 0).values() for s in chosen) == [0, 2, 3, 4, 7]
    only_web = Split(KEPT & ~held, KEPT & held & (TABLE.dataset_N == 0), True)
    assert set(some_sequences(TABLE, only_web, 10, 0)) == {"web"}
