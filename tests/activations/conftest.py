"""Corpora of given lengths, and tiny pairs, harvested below a folder."""

import numpy as np
import pytest
import torch

from diffing.activations.cache import Cache, CacheKey
from diffing.activations.harvest import Kept, harvest
from diffing.activations.plan import plan_blocks
from diffing.core.layers import Slot
from diffing.core.seeds import generator
from diffing.data.token_table import TokenTable
from diffing.data.tokens import Corpus, TokenSequence
from diffing.models.tiny import VOCAB_SIZE
from workbench import pair_loader

LENGTHS = {"prose": [9, 3, 14, 5, 2, 11, 7, 7], "chats": [6, 16, 4, 10, 8]}


@pytest.fixture(scope="session")
def make_corpus():
    """A corpus of random tokens: lengths of the sequences of each dataset."""

    def make(lengths=None, seed=0, template_every=0) -> Corpus:
        rng = generator(seed, "corpus")
        sequences = []
        for name, each in (lengths or LENGTHS).items():
            for index, n in enumerate(each):
                ids = rng.integers(0, VOCAB_SIZE, n).astype(np.int32)
                roles = rng.integers(0, 3, n).astype(np.uint8)
                template = (np.arange(n) % template_every == 0) if template_every else np.zeros(n, dtype=bool)
                sequences.append(TokenSequence(name, index, ids, roles, template, np.isin(ids, [0, 1, 2])))
        names = tuple(lengths or LENGTHS)
        counts = {name: len(v) for name, v in (lengths or LENGTHS).items()}
        return Corpus(names, tuple(sequences), f"corpus{seed}", (), counts)

    return make


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory):
    """Loads a tiny pair once per architecture and kind."""
    return pair_loader(tmp_path_factory.mktemp, full=False)


@pytest.fixture(scope="session")
def make_cache():
    """The cache of a corpus below a folder, not harvested yet."""

    def make(base_dir, corpus, dtype="float32", batch_tokens=32, shard_tokens=8192, shard_bytes=2**28, sequences=None):
        key = CacheKey("pair", corpus.fingerprint, batch_tokens, dtype)
        plan = plan_blocks(TokenTable.of(corpus), batch_tokens, sequences)
        return Cache(key.folder(base_dir), key, plan, shard_bytes, shard_tokens, "python main.py again")

    return make


@pytest.fixture(scope="session")
def make_harvest(make_cache):
    """Harvests slots of a pair and corpus below a folder, and gives the cache."""

    def make(base_dir, pair, corpus, slots=None, kept=None, overwrite=False, **options):
        cache = make_cache(base_dir, corpus, **options)
        harvest(pair, corpus, cache, slots or (Slot(1),), kept or Kept(None), overwrite=overwrite)
        return cache

    return make


@pytest.fixture(scope="session")
def contents():
    """Bytes of every file below a folder."""

    def read(folder) -> dict[str, bytes]:
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    return read


@pytest.fixture(scope="session")
def stored_rows():
    """Rows of both models of a slot in the order of the token table, read with nothing but safetensors and parquet."""

    def read(cache, slot):
        import pyarrow.parquet as pq
        from safetensors.torch import load_file

        table = pq.read_table(cache.folder / "tokens.parquet").to_pydict()
        starts = cache.plan.tokens.starts
        files = {}
        found = {}
        for sequence, position, shard, row in zip(
            table["sequence"], table["position"], table["shard"], table["row"], strict=True
        ):
            if shard not in files:
                files[shard] = load_file(cache.folder / slot.name / f"shard_{shard:05d}.safetensors")
            found[int(starts[sequence]) + position] = (files[shard]["base"][row], files[shard]["finetuned"][row])
        assert sorted(found) == sorted(np.concatenate(cache.plan.token_rows).tolist())
        order = sorted(found)
        return torch.stack([found[i][0] for i in order]), torch.stack([found[i][1] for i in order])

    return read
