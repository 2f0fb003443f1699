"""Logits by stretches of tokens are those of the whole forward pass, at the output and through the lens."""

import pytest
import torch

from diffing.analysis import logit_rows
from diffing.analysis.logit_rows import LogitRows, paired_blocks
from diffing.core.specs import CorpusSpec
from diffing.data.batches import make_batch
from diffing.data.documents import documents_from_texts
from diffing.data.tokens import tokenize_documents
from workbench import pair_loader

TEXTS = ["The heron stood in the shallows and waited.", "Nine people signed.", "A thin line of smoke hung over it."]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return pair_loader(tmp_path_factory.mktemp, full=False)(sharing="adapter")


@pytest.fixture(scope="module")
def batch(pair):
    documents = {"web": documents_from_texts("web", TEXTS)}
    corpus = tokenize_documents(documents, CorpusSpec(datasets=()), pair.tokenizer, pair.rules)
    return make_batch(corpus, [0, 1, 2], pad_id=0)


def whole(handle, batch):
    logits_BTV = handle.forward_logits(batch.ids_BT)
    return torch.cat([logits_BTV[row, :length] for row, length in enumerate(batch.lengths)])


@pytest.mark.parametrize(("head", "inner"), [(256, 16), (10, 3), (7, 7), (1, 1)])
def test_blocks_cover_every_token_once_within_sequences(pair, batch, head, inner, monkeypatch):
    monkeypatch.setattr(logit_rows, "_HEAD_ROWS", head)
    monkeypatch.setattr(logit_rows, "_ROWS", inner)
    rows = [LogitRows.of(h, batch) for h in (pair.finetuned, pair.base)]
    blocks = list(paired_blocks(*rows, batch.lengths))
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
    ends = torch.tensor(batch.lengths).cumsum(0).tolist()
    assert all(ends[b.row] - batch.lengths[b.row] <= b.start < b.stop <= ends[b.row] for b in blocks)
    assert all(b.stop - b.start <= inner for b in blocks)
    for found, handle in (("finetuned_NV", pair.finetuned), ("base_NV", pair.base)):
        torch.testing.assert_close(torch.cat([getattr(b, found) for b in blocks]), whole(handle, batch))


def test_the_last_layer_through_the_lens_is_the_output(pair, batch):
    for handle in (pair.finetuned, pair.base):
        last = LogitRows.at_layer(handle, batch, 2)
        torch.testing.assert_close(last.logits(0, sum(batch.lengths)), whole(handle, batch))


def test_a_layer_is_read_by_norm_and_head(pair, batch):
    for handle in (pair.finetuned, pair.base):
        seen = []
        hook = handle.sites.layers[1].register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
        with handle.active(), torch.no_grad():
            handle.module(batch.ids_BT[:1, : batch.lengths[0]])
            stream = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
            expected = handle.module.get_output_embeddings()(handle.sites.final_norm(stream))[0]
        hook.remove()
        found = LogitRows.at_layer(handle, batch, 1).logits(0, batch.lengths[0])
        torch.testing.assert_close(found, expected.float())
