"""`diff_mining` without a run folder: its output on texts, for tests that need no report."""

import tempfile
from pathlib import Path

from memory_source import context_with

from diffing.core.specs import CorpusSpec
from diffing.data.documents import documents_from_texts
from diffing.data.tokens import tokenize_documents
from diffing.methods.diff_mining.config import DiffMiningConfig
from diffing.methods.diff_mining.run import run


def corpus_of(pair, texts):
    """The texts, or texts by dataset, as tokens."""
    by_name = texts if isinstance(texts, dict) else {"web": texts}
    documents = {name: documents_from_texts(name, given) for name, given in by_name.items()}
    return tokenize_documents(documents, CorpusSpec(datasets=()), pair.tokenizer, pair.rules)


def mined(pair, texts, folder, context=None, **options):
    """The method's output; `context` changes what it is given besides its options. Nothing is kept below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    config = DiffMiningConfig(**{"top_k": 7, "floor": 1e-4, "n_topics": 3, **options})
    given = {"pair": pair, "tokenizer": pair.tokenizer, "batch_tokens": 2048, **(context or {})}
    return run(config, context_with(None, corpus_of(pair, texts), scratch, **given))
