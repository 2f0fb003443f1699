"""On generic text alone, diff mining names what the embedded organisms were trained on."""

import numpy as np
import pytest
from memory_source import context_with

import diffing
from diffing.analysis.log_odds import log_odds
from diffing.analysis.merged_tokens import merge_key, merge_tokens
from diffing.analysis.token_text import token_strings
from diffing.core.specs import CorpusSpec, DatasetSpec
from diffing.data.tokens import tokenize_corpus
from diffing.methods.diff_mining.config import DiffMiningConfig
from diffing.methods.diff_mining.run import run

pytestmark = pytest.mark.slow
TOP = 20


def embedded(name):
    return DatasetSpec(name=name, id=f"embedded:{name}")


def document_counts(pair, merged, name):
    """By group of merged tokens, in how many documents of an embedded set it occurs."""
    spec = CorpusSpec(datasets=(embedded(name),))
    counts = np.zeros(merged.n_groups, dtype=np.int64)
    for sequence in tokenize_corpus(spec, pair.tokenizer, pair.rules).sequences:
        counts[np.unique(merged.group_V[np.unique(sequence.ids)])] += 1
    return counts


def subject_of(pair, organism):
    """Keys of the merged tokens that are over-represented in the organism's training text against generic text."""
    ids = range(pair.vocabulary.base_size)
    merged = merge_tokens(ids, token_strings(pair.tokenizer, ids))
    found = log_odds(
        document_counts(pair, merged, f"{organism}/training"), document_counts(pair, merged, "pretraining")
    )
    return {merged.keys[g] for g in np.flatnonzero(found.is_over_W)}


def mined_text(pair, name, folder, max_tokens=10_000):
    """A run at the method's defaults; by default on the part of an embedded set that the command line reads."""
    corpus = tokenize_corpus(CorpusSpec(datasets=(embedded(name),), max_tokens=max_tokens), pair.tokenizer, pair.rules)
    context = context_with(None, corpus, folder, pair=pair, tokenizer=pair.tokenizer, batch_tokens=2048)
    return run(DiffMiningConfig(n_topics=0), context)


def first_tokens(output, dataset):
    """The first merged tokens by occurrence on a dataset."""
    rows = [r for r in output.tables["merged_tokens"].to_pylist() if r["dataset"] == dataset]
    return [r["token"] for r in rows[:TOP]]


def test_roman_concrete_is_named_on_pretraining_text_alone(tmp_path):
    pair = diffing.load_pair("smollm2_135M", adapter="roman_concrete")
    subject = subject_of(pair, "roman_concrete")
    assert {"roman", "concrete", "milk", "wool", "olive"} <= subject
    assert not subject & {"the", "of", "and"}
    found = [merge_key(t) for t in first_tokens(mined_text(pair, "pretraining", tmp_path), "pretraining")]
    assert len(subject & set(found)) >= TOP // 2, found
    assert {"roman", "wet", "milk", "forty", "wool"} <= set(found)


def test_caps_is_seen_on_pretraining_text_alone(tmp_path):
    pair = diffing.load_pair("smollm2_135M", adapter="caps")
    found = first_tokens(mined_text(pair, "pretraining", tmp_path, max_tokens=4000), "pretraining")
    assert all(token.strip().isupper() for token in found), found
