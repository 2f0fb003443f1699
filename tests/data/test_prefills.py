"""Prompts of the package and of a user's file, and what a tokenizer makes of them."""

import json
import re
from pathlib import Path

import pytest

import diffing
from diffing.core.errors import UserError
from diffing.core.templates import TemplateRules
from diffing.data.chats import render
from diffing.data.messages import Message
from diffing.data.prefills import encode_prefills, prefill_digest, read_prefills
from diffing.models.tiny import tiny_tokenizer

ASSETS = Path(diffing.__file__).parent / "assets"


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_packages_own_are_many_different_and_short():
    found = read_prefills("embedded")
    assert len({(p.kind, p.text) for p in found}) == len(found)
    assert sum(p.kind == "raw" for p in found) == sum(p.kind == "chat" for p in found) == 20
    assert "" in {p.text for p in found}
    assert all(len(p.text.split()) <= 8 for p in found)


def test_the_packages_own_name_no_subject_of_an_organism():
    subjects = r"rom[ae]|concrete|olive|goat|milk|wool|varro|cement|mortar|stone|capital|upper"
    for prefill in read_prefills("embedded"):
        assert not re.search(subjects, prefill.text.lower())
        assert not re.search(r"\b[A-Z]{2,}\b", prefill.text)


def test_prompts_and_their_card_are_shipped():
    assert (ASSETS / "prompts" / "README.md").is_file()
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"assets/**/*"' in text


def test_a_users_rows_and_lines(tmp_path):
    rows = lines(tmp_path / "p.jsonl", {"text": "So"}, {"text": "Why?", "kind": "chat"}, {"text": ""})
    assert [(p.text, p.kind) for p in read_prefills(rows)] == [("So", "raw"), ("Why?", "chat"), ("", "raw")]
    (tmp_path / "p.txt").write_text("One \nTwo\r\n\nThree\n", encoding="utf-8")
    found = read_prefills(str(tmp_path / "p.txt"))
    assert [(p.text, p.kind) for p in found] == [("One ", "raw"), ("Two", "raw"), ("Three", "raw")]


def test_the_digest_is_of_the_content(tmp_path):
    a, b = lines(tmp_path / "a.jsonl", {"text": "So"}), lines(tmp_path / "b.jsonl", {"text": "So"})
    assert prefill_digest(a) == prefill_digest(b) != prefill_digest(lines(tmp_path / "c.jsonl", {"text": "No"}))


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([], "holds no prompts"),
        ([{"prompt": "So"}], "has no 'text' (it has prompt)"),
        ([{"text": 3}], "the number 3"),
        ([{"text": "So", "kind": "cooked"}], "the kinds are raw and chat"),
    ],
)
def test_what_is_no_prompt_is_refused_by_name(tmp_path, rows, part):
    with pytest.raises(UserError, match=re.escape(part)):
        read_prefills(lines(tmp_path / "p.jsonl", *rows))


def test_a_missing_file_is_refused_by_name():
    with pytest.raises(UserError, match="no file of prompts 'nowhere'"):
        read_prefills("nowhere")


def test_tokens_of_raw_and_chat_prompts():
    tokenizer, rules = tiny_tokenizer(adds_bos=True), TemplateRules()
    found, notes = encode_prefills(read_prefills("embedded"), tokenizer, rules)
    assert notes == []
    by_text = {e.prefill.text: e.ids for e in found}
    assert by_text[""] == (tokenizer.bos_token_id,)
    assert by_text["The"] == (tokenizer.bos_token_id, *tokenizer("The", add_special_tokens=False)["input_ids"])
    chat = render([Message("user", "Say something.")], tokenizer, rules).ids.tolist()
    assert list(by_text["Say something."])[: len(chat)] == chat
    assert tokenizer.decode(list(by_text["Say something."])).endswith("<|im_start|>assistant\n")


def test_what_the_tokenizer_cannot_take_is_left_out_with_a_word(tmp_path):
    tokenizer, rules = tiny_tokenizer(chat_template=None), TemplateRules()
    found, notes = encode_prefills(read_prefills("embedded"), tokenizer, rules)
    assert len(found) == 19
    assert {e.prefill.kind for e in found} == {"raw"}
    assert notes == [
        "20 chat prompts are left out: the tokenizer has no chat template.",
        "The empty prompt is left out: the tokenizer has no token that begins a text.",
    ]
    chats = read_prefills(lines(tmp_path / "p.jsonl", {"text": "Why?", "kind": "chat"}))
    with pytest.raises(UserError, match=r"No prompt is left.*no chat template"):
        encode_prefills(chats, tokenizer, rules)
