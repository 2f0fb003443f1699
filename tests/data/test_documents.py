"""Reading datasets: column choice, sampling, embedded sets, sets in memory."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing.core.errors import UserError
from diffing.core.specs import DatasetSpec
from diffing.data import documents
from diffing.data.documents import Document, Message, documents_from_texts, read_documents, sample

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def spec(path, name="custom", **options):
    return DatasetSpec(name=name, id=str(path), **options)


def read(path, max_samples=None, seed=0, **options):
    return read_documents(spec(path, **options), max_samples, seed)


def test_texts_keep_name_and_row(write_lines):
    path = write_lines([{"text": "a", "id": 1}, {"text": "b"}])
    assert read(path) == [Document("custom", 0, "a", None), Document("custom", 1, "b", None)]


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_chat_column_is_found_before_text(write_lines, column):
    path = write_lines([{"text": "a", column: CHAT}])
    assert read(path)[0].messages == (Message("user", "hi"), Message("assistant", "hello"))


@pytest.mark.parametrize(
    ("options", "is_text"),
    [
        ({"is_chat": False}, True),
        ({"is_chat": True}, False),
        ({"text_column": "text"}, True),
        ({"text_column": "text", "is_chat": True}, False),
        ({"text_column": "text", "messages_column": "messages"}, False),
        ({"text_column": "text", "messages_column": "messages", "is_chat": False}, True),
    ],
)
def test_options_decide_the_column(write_lines, options, is_text):
    path = write_lines([{"text": "a", "messages": CHAT}])
    assert (read(path, **options)[0].text is not None) is is_text


def test_a_chat_column_of_another_name(write_lines):
    path = write_lines([{"text": CHAT, "other": 1}])
    assert read(path, text_column="text", is_chat=True)[0].messages[0].content == "hi"


def test_null_text_is_the_empty_text(write_lines):
    assert read(write_lines([{"text": None}]))[0].text == ""


@pytest.mark.parametrize(
    ("rows", "options", "sentence"),
    [
        ([{"body": "a", "id": 1}], {}, r"no column 'text'.*columns are body, id; set data.text_column=COLUMN"),
        ([{"txt": "a"}], {}, r"did you mean txt\?"),
        ([{"text": "a"}], {"is_chat": True}, r"no column 'messages'.*set data.messages_column=COLUMN"),
        ([{"text": "a"}], {"name": "chat", "text_column": "b"}, r"set data.datasets.chat.text_column=COLUMN"),
        ([{"text": "a"}], {"name": "training", "text_column": "b"}, r"set organism.training.text_column=COLUMN"),
        ([{"text": "a"}, {"texts": "a"}], {}, r"line 2 has no 'text' \(it has texts\); mend or remove it"),
        ([{"text": 3}], {}, r"line 1, column 'text' holds the number 3, not text; name the column with"),
        ([{"text": [1]}], {}, r"holds a list, not text"),
        (['{"text": "\\ud800"}'], {}, r"half a surrogate pair at character 0"),
        ([], {}, r"Dataset 'custom' .* is empty; give a source with at least one document"),
        ([{"messages": "hi"}], {}, r"holds text, not a chat"),
        ([{"messages": 1}], {}, r"holds the number 1, not a chat"),
        ([{"messages": []}], {}, r"is a chat without messages"),
        ([{"messages": ["hi"]}], {}, r"line 1, column 'messages', message 1 is text; a message is an object"),
        ([{"messages": [{"role": "user"}]}], {}, r"message 1 has no 'content' \(it has role\)"),
        ([{"messages": [{"role": "bot", "content": "a"}]}], {}, r"role 'bot'; the roles are system, user, assistant"),
        ([{"messages": [{"role": ["user"], "content": "a"}]}], {}, r"has the role \['user'\]"),
        ([{"messages": [{"role": "user", "content": 1}]}], {}, r"message 1 holds the number 1, not text"),
        ([{"messages": [{"role": "user", "content": [{"type": "image"}]}]}], {}, r"parts that are not text"),
    ],
)
def test_bad_rows_end_in_one_sentence(write_lines, rows, options, sentence):
    path = write_lines(rows)
    if not rows:
        path.write_text("")
    with pytest.raises(UserError, match=sentence):
        read(path, **options)


def test_other_chat_layouts(write_lines):
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "u"},
        {"from": "gpt", "value": "a"},
        {"from": "observation", "value": "t"},
    ]
    expected = (Message("system", "s"), Message("user", "u"), Message("assistant", "a"), Message("tool", "t"))
    assert read(write_lines([{"conversations": turns}]))[0].messages == expected
    assert read(write_lines([{"conversations": json.dumps(turns)}]))[0].messages == expected
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert read(write_lines([{"messages": parts}]))[0].messages == (Message("user", "ab"),)
    silent = [{"role": "assistant", "content": None}]
    assert read(write_lines([{"messages": silent}]))[0].messages == (Message("assistant", ""),)


def test_max_samples_is_a_seeded_subset_in_source_order(write_lines):
    path = write_lines([{"text": str(i)} for i in range(100)])
    chosen = [d.index for d in read(path, max_samples=10)]
    assert chosen == sorted(chosen)
    assert len(set(chosen)) == 10
    assert chosen == [d.index for d in read(path, max_samples=10)]
    assert chosen != [d.index for d in read(path, max_samples=10, seed=1)]
    assert chosen != list(range(10))
    assert set(chosen) <= {d.index for d in read(path, max_samples=20)}


@given(n_items=st.integers(0, 60), n=st.integers(1, 70), seed=st.integers(0, 5))
def test_sample_is_an_ordered_subset(n_items, n, seed):
    chosen = sample(range(n_items), n, seed, "a")
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(n, n_items)


def test_sample_is_fair():
    counts = [0] * 10
    for seed in range(2000):
        for i in sample(range(10), 3, seed, "a"):
            counts[i] += 1
    assert all(500 < c < 700 for c in counts)


@pytest.fixture
def assets(write_lines, tmp_path, monkeypatch):
    write_lines([{"id": "p1", "genre": "news", "text": "a"}], "corpora/pretraining.jsonl")
    write_lines([{"id": "c1", "genre": "food", "messages": CHAT}], "corpora/chat.jsonl")
    write_lines([{"id": "t1", "genre": "x", "messages": CHAT}], "organisms/caps/training.jsonl")
    monkeypatch.setattr(documents, "ASSETS", tmp_path)


@pytest.mark.usefixtures("assets")
def test_embedded_sets():
    assert read("embedded:pretraining")[0].text == "a"
    assert len(read("embedded:chat")[0].messages) == 2
    assert len(read("embedded:caps/training", name="training")[0].messages) == 2


@pytest.mark.usefixtures("assets")
@pytest.mark.parametrize(
    ("wrong", "right"),
    [("embedded:pretrain", "embedded:pretraining"), ("embedded:cap/training", "embedded:caps/training")],
)
def test_unknown_embedded_set_names_the_nearest(wrong, right):
    with pytest.raises(UserError, match=f"no embedded dataset '{wrong}': did you mean {re.escape(right)}"):
        read(wrong)


def test_documents_in_memory():
    got = documents_from_texts("mine", ["a", CHAT])
    assert got[0] == Document("mine", 0, "a", None)
    assert got[1].messages == (Message("user", "hi"), Message("assistant", "hello"))


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([], "Dataset 'mine' is empty; give at least one text or chat"),
        ("a text", "is text; give a list of texts or chats"),
        (["a", 3], "Item 1 of dataset 'mine' is the number 3; give texts, or chats"),
        ([["a"]], "Item 0 of dataset 'mine', message 1 is text"),
        (["\ud800"], "half a surrogate pair"),
    ],
)
def test_wrong_documents_in_memory(items, sentence):
    with pytest.raises(UserError, match=sentence):
        documents_from_texts("mine", items)
