"""Corpora: truncation, limits, masks, notes, fingerprints."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing.core.errors import UserError
from diffing.core.specs import CorpusSpec, DatasetSpec
from diffing.core.templates import TemplateRules
from diffing.data.documents import documents_from_texts
from diffing.data.tokens import ROLES, tokenize_corpus, tokenize_documents

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
GEMMA = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('No.') }}{% endif %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] + '<end_of_turn>' }}"
    "{% endfor %}"
)
RULES = TemplateRules()
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
WITH_SYSTEM = [{"role": "system", "content": "Be."}, *CHAT]


def corpus(tokenizer, items, name="a", **limits):
    spec = CorpusSpec(datasets=(), **limits)
    return tokenize_documents({name: documents_from_texts(name, items)}, spec, tokenizer, RULES)


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer(CHATML, adds_bos=True)


def test_texts_have_the_tokenizers_own_special_tokens(tokenizer):
    (sequence,) = corpus(tokenizer, ["the answer"]).sequences
    assert sequence.ids.tolist() == tokenizer("the answer")["input_ids"]
    assert sequence.is_special.tolist() == [True] + [False] * (len(sequence.ids) - 1)
    assert not sequence.is_template.any()
    assert {ROLES[r] for r in sequence.roles} == {"text"}
    dtypes = [a.dtype for a in (sequence.ids, sequence.roles, sequence.is_template, sequence.is_special)]
    assert dtypes == [np.int32, np.uint8, np.bool_, np.bool_]


def test_chats_have_masks_and_no_second_bos(tokenizer):
    (sequence,) = corpus(tokenizer, [CHAT]).sequences
    specials = tokenizer.convert_ids_to_tokens(sequence.ids[sequence.is_special].tolist())
    assert specials == ["<|im_start|>", "<|im_end|>"] * 2
    assert (sequence.is_template | ~sequence.is_special).all()
    assert tokenizer.decode(sequence.ids[~sequence.is_template]) == "hihello"


@pytest.mark.parametrize("item", ["the answer is fine " * 300, CHAT])
def test_truncation_keeps_the_beginning(tokenizer, item):
    whole = corpus(tokenizer, [item], max_length=10**6).sequences[0]
    cut = corpus(tokenizer, [item], max_length=7).sequences[0]
    for name in ("ids", "roles", "is_template", "is_special"):
        assert getattr(cut, name).tolist() == getattr(whole, name)[:7].tolist()


@given(text=st.text(alphabet="ab \n,é", max_size=400), max_length=st.integers(2, 12))
@settings(deadline=None, max_examples=60)
def test_reading_only_the_head_of_a_text_changes_nothing(tokenizer, text, max_length):
    items = [text + "the answer" * 40, " " * 500 + text, "pad pad"]
    for item, sequence in zip(items, corpus(tokenizer, items, max_length=max_length).sequences, strict=True):
        assert sequence.ids.tolist() == tokenizer(item)["input_ids"][:max_length]


def test_short_documents_are_left_out_with_a_note(tokenizer):
    got = corpus(tokenizer, ["", "the answer", ""])
    assert [s.index for s in got.sequences] == [1]
    assert got.notes == ("a: left out 2 documents of fewer than 2 tokens.",)
    assert got.n_documents == {"a": 3}


def test_an_empty_dataset_is_an_error(tokenizer):
    with pytest.raises(UserError, match="Dataset 'a' has no document of at least 2 tokens; give longer texts"):
        corpus(tokenizer, ["", ""])
    with pytest.raises(UserError, match="no data to read; name some with data=embedded"):
        tokenize_documents({}, CorpusSpec(datasets=()), tokenizer, RULES)


def test_no_template_names_the_dataset_and_both_remedies(make_tokenizer):
    with pytest.raises(UserError, match=r"Dataset 'a' holds chats .*=FILE, or leave .* with data.datasets.a=null"):
        corpus(make_tokenizer(None), [CHAT])
    with pytest.raises(UserError, match=r"with data.training=false"):
        corpus(make_tokenizer(None), [CHAT], name="training")
    assert corpus(make_tokenizer(None), ["the answer"]).n_tokens > 2


def test_a_chat_that_does_not_fit_is_named(make_tokenizer):
    with pytest.raises(UserError, match=r"Chat 1 of dataset 'a' \(roles user, user\) does not fit the chat template"):
        corpus(make_tokenizer(GEMMA), [CHAT, [CHAT[0], CHAT[0]]])


def test_folded_system_messages_are_noted(make_tokenizer):
    got = corpus(make_tokenizer(GEMMA), [CHAT, WITH_SYSTEM, "a text"])
    assert got.notes == (
        "a: the chat template takes no system role; in 1 chats the system message "
        "stands at the head of the first user message.",
    )
    assert corpus(make_tokenizer(CHATML), [WITH_SYSTEM]).notes == ()


TEXTS = [f"the answer {'is fine ' * (i % 9)}{i}" for i in range(200)]


def test_max_tokens_takes_whole_sequences_in_order(tokenizer):
    everything = {s.index: s.ids.tolist() for s in corpus(tokenizer, TEXTS).sequences}
    got = corpus(tokenizer, TEXTS, max_tokens=300)
    indices = [s.index for s in got.sequences]
    assert 280 < got.n_tokens <= 300
    assert indices == sorted(set(indices))
    assert indices != list(range(len(indices)))
    assert all(everything[s.index] == s.ids.tolist() for s in got.sequences)
    assert got.n_documents == {"a": 200}
    assert got.fingerprint == corpus(tokenizer, TEXTS, max_tokens=300).fingerprint
    assert got.fingerprint != corpus(tokenizer, TEXTS, max_tokens=300, seed=1).fingerprint


@given(max_tokens=st.integers(2, 4000), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=25)
def test_max_tokens_is_a_limit(tokenizer, max_tokens, seed):
    got = corpus(tokenizer, TEXTS, max_tokens=max_tokens, seed=seed)
    assert got.n_tokens <= max_tokens or len(got.sequences) == 1
    assert len(got.sequences) < len(TEXTS)


def test_a_limit_above_all_tokens_keeps_all(tokenizer):
    got = corpus(tokenizer, TEXTS, max_tokens=10**6)
    assert got.fingerprint == corpus(tokenizer, TEXTS).fingerprint


def test_one_sequence_is_taken_even_if_too_long(tokenizer):
    got = corpus(tokenizer, ["the answer is fine"] * 3, max_tokens=2)
    assert len(got.sequences) == 1
    assert got.notes[0].startswith("a: every document is longer than data.max_tokens=2; one of")


def test_a_large_set_is_not_tokenised_whole(tokenizer, monkeypatch):
    seen = []
    original = type(tokenizer).__call__

    def counting(self, text, **options):
        seen.extend(text if isinstance(text, list) else [text])
        return original(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counting)
    corpus(tokenizer, ["the answer is fine"] * 5000, max_tokens=50)
    assert len(seen) < 300


def test_datasets_follow_each_other(tokenizer):
    documents = {n: documents_from_texts(n, ["the answer", "fine"]) for n in ("b", "a")}
    got = tokenize_documents(documents, CorpusSpec(datasets=()), tokenizer, RULES)
    assert got.datasets == ("b", "a")
    assert [(s.dataset, s.index) for s in got.sequences] == [("b", 0), ("b", 1), ("a", 0), ("a", 1)]


def test_max_samples_holds_for_documents_in_memory(tokenizer):
    got = corpus(tokenizer, TEXTS, max_samples=5)
    assert len(got.sequences) == 5
    assert got.n_documents == {"a": 5}


def test_files_and_memory_agree_and_the_path_plays_no_part(tokenizer, write_lines):
    rows = [{"text": t} for t in TEXTS[:20]]
    prints = set()
    for name in ("x.jsonl", "sub/y.jsonl"):
        spec = CorpusSpec(
            datasets=(DatasetSpec(name="a", id=str(write_lines(rows, name))),), max_samples=9, max_tokens=60
        )
        prints.add(tokenize_corpus(spec, tokenizer, RULES).fingerprint)
    prints.add(corpus(tokenizer, TEXTS[:20], max_samples=9, max_tokens=60).fingerprint)
    assert len(prints) == 1


def test_the_fingerprint_tells_contents_apart(make_tokenizer, tokenizer):
    chats = make_tokenizer(CHATML)
    same_tokens = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rendered = tokenizer.decode(corpus(chats, [same_tokens]).sequences[0].ids)
    prints = [
        corpus(tokenizer, ["the answer", "fine"]).fingerprint,
        corpus(tokenizer, ["fine", "the answer"]).fingerprint,
        corpus(tokenizer, ["the answer", "fine."]).fingerprint,
        corpus(tokenizer, ["the answer"]).fingerprint,
        corpus(tokenizer, ["the answer", "the answer"]).fingerprint,
        corpus(tokenizer, ["the answer", "fine"], name="b").fingerprint,
        corpus(chats, [same_tokens]).fingerprint,
        corpus(chats, [rendered]).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert corpus(chats, [same_tokens]).sequences[0].ids.tolist() == corpus(chats, [rendered]).sequences[0].ids.tolist()


def test_two_datasets_of_one_name(tokenizer, write_lines):
    one = DatasetSpec(name="a", id=str(write_lines([{"text": "a b"}])))
    with pytest.raises(UserError, match="Two datasets are called 'a'"):
        tokenize_corpus(CorpusSpec(datasets=(one, one)), tokenizer, RULES)


def test_results_are_frozen(tokenizer):
    with pytest.raises(dataclasses.FrozenInstanceError):
        corpus(tokenizer, ["the answer"]).fingerprint = "x"
