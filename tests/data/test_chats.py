"""Chats through real-life template styles: which tokens are content, and whose every token is."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffing.core.errors import UserError
from diffing.core.templates import TemplateRules
from diffing.data.chats import ROLES, Message, render

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named Smol<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
)
LLAMA_WITH_DATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + strftime_now('%d %b %Y') + '\n\n' + system"
    " + '<|eot_id|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role']"
    " + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)
_GEMMA_TURNS = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') + message['content'] | trim"
    " + '<end_of_turn>\n' }}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% set prefix = '' %}" + _GEMMA_TURNS
)
GEMMA_FOLDING = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set prefix = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set prefix = '' %}{% endif %}" + _GEMMA_TURNS
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}{% for message in turns %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' }}{% if loop.last and system is defined %}{{ system + '\n\n' }}"
    "{% endif %}{{ message['content'] + '[/INST]' }}{% else %}{{ ' ' + message['content'] | trim + eos_token }}"
    "{% endif %}{% endfor %}"
)
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last and not enable_thinking"
    " and '</think>' not in message['content'] %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama": LLAMA,
    "llama_date": LLAMA_WITH_DATE,
    "gemma": GEMMA,
    "gemma_folding": GEMMA_FOLDING,
    "mistral": MISTRAL,
    "thinking": THINKING,
}


def runs(tokenizer, turns, rules=None):
    """The rendered chat as (role, "template" or "content", text) of neighbouring tokens of a kind."""
    got = render([Message(*t) for t in turns], tokenizer, rules or TemplateRules())
    assert got.ids.dtype == np.int32
    assert got.roles.dtype == np.uint8
    assert got.is_template.dtype == bool
    tokens = zip(*(a.tolist() for a in got), strict=True)
    grouped = itertools.groupby(tokens, key=lambda t: (ROLES[t[1]], "template" if t[2] else "content"))
    return [(*kind, tokenizer.decode([t[0] for t in group])) for kind, group in grouped]


def test_chatml_with_a_system_prompt_of_its_own(make_tokenizer):
    got = runs(make_tokenizer(CHATML), [("user", "user"), ("assistant", " yes, é😀\n")])
    assert got == [
        ("system", "template", "<|im_start|>system\nYou are a helpful AI assistant named Smol<|im_end|>\n"),
        ("user", "template", "<|im_start|>user\n"),
        ("user", "content", "user"),
        ("user", "template", "<|im_end|>\n"),
        ("assistant", "template", "<|im_start|>assistant\n"),
        ("assistant", "content", " yes, é😀\n"),
        ("assistant", "template", "<|im_end|>\n"),
    ]


def test_chatml_with_a_given_system_prompt_and_a_tool(make_tokenizer):
    got = runs(make_tokenizer(CHATML), [("system", "Be."), ("user", "a"), ("tool", "1"), ("assistant", "b")])
    assert [r for r in got if r[1] == "content"] == [
        ("system", "content", "Be."),
        ("user", "content", "a"),
        ("tool", "content", "1"),
        ("assistant", "content", "b"),
    ]
    assert got[0] == ("system", "template", "<|im_start|>system\n")
    assert got[2:4] == [("system", "template", "<|im_end|>\n"), ("user", "template", "<|im_start|>user\n")]


def test_llama_strips_contents(make_tokenizer):
    got = runs(make_tokenizer(LLAMA), [("user", " hi \n"), ("assistant", "\n\nassistant\n"), ("user", "hi")])
    assert got == [
        ("user", "template", "<bos><|start_header_id|>user<|end_header_id|>\n\n"),
        ("user", "content", "hi"),
        ("user", "template", "<|eot_id|>"),
        ("assistant", "template", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("assistant", "content", "assistant"),
        ("assistant", "template", "<|eot_id|>"),
        ("user", "template", "<|start_header_id|>user<|end_header_id|>\n\n"),
        ("user", "content", "hi"),
        ("user", "template", "<|eot_id|>"),
    ]


def test_a_date_in_the_template_stands_still(make_tokenizer):
    tokenizer = make_tokenizer(LLAMA_WITH_DATE)
    head = "<bos><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
    assert runs(tokenizer, [("user", "hi")])[0] == ("system", "template", head + "<|eot_id|>")
    assert runs(tokenizer, [("system", "Be."), ("user", "hi")])[:3] == [
        ("system", "template", head),
        ("system", "content", "Be."),
        ("system", "template", "<|eot_id|>"),
    ]


def test_gemma_calls_the_assistant_model(make_tokenizer):
    got = runs(make_tokenizer(GEMMA), [("user", "model"), ("assistant", "user "), ("user", "x")])
    assert got == [
        ("user", "template", "<bos><start_of_turn>user\n"),
        ("user", "content", "model"),
        ("user", "template", "<end_of_turn>\n"),
        ("assistant", "template", "<start_of_turn>model\n"),
        ("assistant", "content", "user"),
        ("assistant", "template", "<end_of_turn>\n"),
        ("user", "template", "<start_of_turn>user\n"),
        ("user", "content", "x"),
        ("user", "template", "<end_of_turn>\n"),
    ]


@pytest.mark.parametrize("template", [GEMMA, GEMMA_FOLDING])
def test_a_system_message_stands_in_the_first_user_turn(make_tokenizer, template):
    """Where the template refuses the role it is folded as templates that take it do."""
    got = runs(make_tokenizer(template), [("system", "Be."), ("user", "hi"), ("assistant", "yes")])
    assert got[:5] == [
        ("user", "template", "<bos><start_of_turn>user\n"),
        ("system", "content", "Be."),
        ("user", "template", "\n\n"),
        ("user", "content", "hi"),
        ("user", "template", "<end_of_turn>\n"),
    ]


def test_a_template_that_moves_the_system_message(make_tokenizer):
    turns = [("system", "Be."), ("user", "a"), ("assistant", " b"), ("user", "c")]
    got = runs(make_tokenizer(MISTRAL), turns)
    assert got == [
        ("user", "template", "<bos>[INST]"),
        ("user", "content", " a"),
        ("user", "template", "[/INST]"),
        ("assistant", "template", " "),
        ("assistant", "content", "b"),
        ("assistant", "template", "<eos>"),
        ("user", "template", "[INST] "),
        ("system", "content", "Be."),
        ("user", "template", "\n\n"),
        ("user", "content", "c"),
        ("user", "template", "[/INST]"),
    ]


def test_thinking_is_switched_off_and_traced(make_tokenizer):
    tokenizer, rules = make_tokenizer(THINKING), TemplateRules(has_thinking=True)
    plain = runs(tokenizer, [("user", "a"), ("assistant", "b")], rules)
    assert plain[3:5] == [
        ("assistant", "template", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("assistant", "content", "b"),
    ]
    thought = "<think>\nhm\n</think>\n\nb"
    assert ("assistant", "content", thought) in runs(tokenizer, [("user", "a"), ("assistant", thought)], rules)


def test_rules_replace_the_template(make_tokenizer):
    got = runs(make_tokenizer(CHATML), [("user", "hi")], TemplateRules(chat_template=LLAMA))
    assert got[0][2].startswith("<bos><|start_header_id|>")


def test_named_templates_use_the_default(make_tokenizer):
    tokenizer = make_tokenizer({"default": LLAMA, "tool_use": CHATML})
    assert runs(tokenizer, [("user", "hi")])[0][2].startswith("<bos>")


CONTENTS = st.text(alphabet=st.sampled_from("a \n<|>é😀user{}%"), max_size=12)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
@given(system=st.none() | CONTENTS, turns=st.lists(CONTENTS, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_contents_come_back_whole(make_tokenizer, template, system, turns):
    """Joined content tokens give the contents back, up to the spaces that templates strip or tokens share."""
    tokenizer = make_tokenizer(template)
    chat = [(role, c) for role, c in zip(itertools.cycle(["user", "assistant"]), turns, strict=False)]
    chat = chat if system is None else [("system", system), *chat]
    got = runs(tokenizer, chat)
    for role in ("system", "user", "assistant"):
        found = "".join(text for r, kind, text in got if r == role and kind == "content")
        given_text = "".join(c for r, c in chat if r == role)
        assert "".join(found.split()) == "".join(given_text.split())


@pytest.mark.parametrize("system", ["", " ", "a ", "\n\na"])
@pytest.mark.parametrize("user", ["<", " a", "\n\n", "a a "])
def test_blank_and_padded_system_messages_are_traced(make_tokenizer, system, user):
    got = runs(make_tokenizer(GEMMA), [("system", system), ("user", user), ("assistant", "b")])
    assert got[0][:2] == ("user", "template")
    assert got[0][2].startswith("<bos><start_of_turn>user\n")
    assert got[-2:] == [("assistant", "content", "b"), ("assistant", "template", "<end_of_turn>\n")]
    contents = "".join(text for role, kind, text in got if kind == "content" and role != "assistant")
    assert "".join(contents.split()) == "".join((system + user).split())


@pytest.mark.parametrize(
    ("template", "turns", "sentence"),
    [
        (
            GEMMA,
            [("user", "a"), ("user", "b")],
            r"\(roles user, user\) does not fit the chat template: .*must alternate",
        ),
        (GEMMA, [("system", "a")], r"\(roles system\) does not fit .*System role not supported; mend it"),
        (
            "{{ messages[0]['content'] }}",
            [("user", "a"), ("assistant", "b")],
            r"leaves out message 2, of role assistant",
        ),
        ("{% for m in messages %}{{ m['content'] * 2 }}{% endfor %}", [("user", "a")], r"it repeats message 1"),
        ("{{ messages[0]['content'] | replace('cat', 'dog') }}", [("user", "cat")], r"alters the text of a message"),
        ("{% for %}", [("user", "a")], r"does not fit the chat template"),
        ("{{ 1 + messages }}", [("user", "a")], r"does not fit the chat template"),
        (None, [("user", "a")], r"has no chat template; give one with model.chat_template=FILE, or leave chats out"),
    ],
)
def test_what_cannot_be_rendered(make_tokenizer, template, turns, sentence):
    with pytest.raises(UserError, match=sentence):
        runs(make_tokenizer(template), turns)
