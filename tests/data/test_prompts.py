"""Prompts through the template styles of real models, with the text written out by hand."""

import pytest
from tokenizers import processors

from diffing.core.errors import UserError
from diffing.core.templates import TemplateRules
from diffing.data.messages import Message
from diffing.data.prompts import prompt_ids, raw_prompt_ids

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = CHATML.replace(
    "'<|im_start|>assistant\n' }}",
    "'<|im_start|>assistant\n' + ('' if enable_thinking else '<think>\n\n</think>\n\n') }}",
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') + '\n' }}" + CHATML
ALTERING = CHATML.replace("message['content']", "message['content'] | upper")
USER, ASSISTANT, SYSTEM, TOOL = (Message(r, "a") for r in ("user", "assistant", "system", "tool"))


def text_of(tokenizer, *turns, rules=None):
    """The prompt as text; its special tokens must be single tokens."""
    ids = prompt_ids([Message(*t) for t in turns], tokenizer, rules or TemplateRules())
    assert isinstance(ids, list)
    text = tokenizer.decode(ids)
    for name in ("<bos>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"):
        assert ids.count(tokenizer.convert_tokens_to_ids(name)) == text.count(name)
    return text


@pytest.mark.parametrize(
    ("template", "turns", "expected"),
    [
        (CHATML, [("user", "hi ")], "<|im_start|>user\nhi <|im_end|>\n<|im_start|>assistant\n"),
        (
            CHATML,
            [("system", "Be."), ("user", "a"), ("assistant", "b"), ("tool", "1")],
            "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
            "<|im_start|>tool\n1<|im_end|>\n<|im_start|>assistant\n",
        ),
        (GEMMA, [("user", " hi ")], "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"),
        (
            GEMMA,
            [("system", "Be."), ("user", "hi")],
            "<bos><start_of_turn>user\nBe.\n\nhi<end_of_turn>\n<start_of_turn>model\n",
        ),
        (DATED, [("user", "a")], "26 Jul 2024\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_a_chat_ends_where_the_answer_begins(make_tokenizer, template, turns, expected):
    assert text_of(make_tokenizer(template), *turns) == expected


def test_thinking_is_switched_off(make_tokenizer):
    text = text_of(make_tokenizer(THINKING), ("user", "a"), rules=TemplateRules(has_thinking=True))
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_the_template_of_the_rules_goes_first(make_tokenizer):
    text = text_of(make_tokenizer(CHATML), ("user", "a"), rules=TemplateRules(chat_template=GEMMA))
    assert text.startswith("<bos><start_of_turn>user")


@pytest.mark.parametrize("begun", ["The answer", "The answer ", " The\n", "im_end", "user", "a"])
def test_an_answer_that_is_begun_is_left_open(make_tokenizer, begun):
    text = text_of(make_tokenizer(CHATML), ("user", "a"), ("assistant", begun))
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n" + begun


def test_a_template_that_trims_keeps_the_space_at_the_end(make_tokenizer):
    text = text_of(make_tokenizer(GEMMA), ("user", "a"), ("assistant", " The \n"))
    assert text == "<bos><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nThe \n"


def test_an_empty_beginning_is_none(make_tokenizer):
    tokenizer = make_tokenizer(THINKING)
    rules = TemplateRules(has_thinking=True)
    assert prompt_ids([USER, Message("assistant", "")], tokenizer, rules) == prompt_ids([USER], tokenizer, rules)


def test_prefill_agrees_with_transformers(make_tokenizer):
    tokenizer = make_tokenizer(CHATML)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "The answer"}]
    own = tokenizer.apply_chat_template(turns, continue_final_message=True, tokenize=False)
    assert text_of(tokenizer, ("user", "a"), ("assistant", "The answer")) == own


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (CHATML, [], "holds no message"),
        (CHATML, [Message("assistant", "")], "holds no message"),
        (None, [USER], "no chat template; give one with model.chat_template=FILE, or"),
        (GEMMA, [USER, USER], r"roles user, user\) does not fit.*must alternate"),
        (ALTERING, [USER, Message("assistant", "b")], "message 1, of role user|alters the beginning"),
        (CHATML, [Message("user", "\ud83d")], "half a surrogate pair"),
    ],
)
def test_what_cannot_be_rendered_is_refused(make_tokenizer, template, messages, words):
    with pytest.raises(UserError, match=words):
        prompt_ids(messages, make_tokenizer(template), TemplateRules())


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("text", ["yes, the answer", ""])
def test_plain_text_has_the_special_tokens_of_the_tokenizer(make_tokenizer, text, adds_bos):
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    begins = adds_bos or not text
    assert tokenizer.decode(raw_prompt_ids(text, tokenizer)) == "<bos>" * begins + text


def test_an_end_token_that_the_tokenizer_appends_is_left_out(make_tokenizer):
    tokenizer = make_tokenizer()
    specials = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<bos>", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=specials
    )
    assert tokenizer.decode(raw_prompt_ids("yes", tokenizer)) == "<bos>yes"
    assert tokenizer.decode(raw_prompt_ids("", tokenizer)) == "<bos>"
    assert tokenizer.decode(raw_prompt_ids("yes<eos>", tokenizer)) == "<bos>yes<eos>"


def test_an_end_token_that_the_user_wrote_stays_where_it_also_begins_texts(make_tokenizer):
    tokenizer = make_tokenizer(adds_bos=True)
    tokenizer.eos_token = "<bos>"
    assert tokenizer.decode(raw_prompt_ids("yes<bos>", tokenizer)) == "<bos>yes<bos>"


def test_no_token_at_all_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(UserError, match="prompt is empty"):
        raw_prompt_ids("", tokenizer)
    assert raw_prompt_ids("a", tokenizer)
