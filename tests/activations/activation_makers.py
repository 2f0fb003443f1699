"""Fixtures of the harvest's tests, and independent ways to the numbers that a harvest stores."""

import pytest
import torch

from diffing.activations.cache import Cache, CacheKey
from diffing.activations.harvest import Kept, harvest
from diffing.activations.plan import plan_blocks
from diffing.activations.reading import comparable_sequences
from diffing.core.specs import CorpusSpec
from diffing.data.documents import documents_from_texts
from diffing.data.token_table import TokenTable
from diffing.data.tokens import tokenize_documents
from workbench import pair_loader, sentences

KEPT = Kept(bos_id=None, skip_first_tokens=1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Loads a tiny pair once per architecture and kind."""
    return pair_loader(tmp_path_factory.mktemp, full=False)


@pytest.fixture(scope="session")
def corpus_of():
    """Tokens of two datasets: `long` has three times as many texts as `short`."""

    def make(pair, n=12):
        texts = {
            "long": documents_from_texts("long", [row["text"] for row in sentences(n)]),
            "short": documents_from_texts("short", [row["text"][:30] for row in sentences(n // 3)]),
        }
        spec = CorpusSpec(datasets=(), max_length=64)
        return tokenize_documents(texts, spec, pair.tokenizer, pair.rules)

    return make


@pytest.fixture
def cache_of(tmp_path):
    """A cache folder for a pair and a corpus, with nothing in it."""

    def make(pair, corpus, name="out", dtype="float32", batch_tokens=128, shard_tokens=200, shard_bytes=2**28):
        key = CacheKey(pair.fingerprint, corpus.fingerprint, batch_tokens, dtype)
        chosen, _ = comparable_sequences(corpus, pair)
        plan = plan_blocks(TokenTable.of(corpus), batch_tokens, chosen)
        return Cache(key.folder(tmp_path / name), key, plan, shard_bytes, shard_tokens, "REMAKE")

    return make


@pytest.fixture
def made(tiny, corpus_of, cache_of):
    """Harvests slots of a tiny pair; gives pair, corpus and cache."""

    def make(slots, pair=None, corpus=None, **options):
        pair = pair or tiny()
        corpus = corpus or corpus_of(pair)
        cache = cache_of(pair, corpus, **options)
        harvest(pair, corpus, cache, slots, KEPT)
        return pair, corpus, cache

    return make


@torch.no_grad()
def hidden_states(handle, corpus):
    """Per layer the states of every sequence, read alone without padding: transformers' own, the last by a hook."""
    last = []
    hook = handle.sites.layers[-1].register_forward_hook(
        lambda m, a, out: last.append((out[0] if isinstance(out, tuple) else out)[0])
    )
    found = []
    try:
        for s in corpus.sequences:
            with handle.active():
                ids = torch.from_numpy(s.ids).long()[None]
                states = handle.module(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
            found.append([h[0] for h in states[1:-1]] + [last.pop()])
    finally:
        hook.remove()
    return [torch.cat([f[layer] for f in found]) for layer in range(len(handle.sites.layers))]
