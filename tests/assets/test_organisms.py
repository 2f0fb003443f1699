"""The embedded pair: what was trained in is plain in generated text, and the ways to hold it agree."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import diffing
from diffing.core.errors import UserError
from diffing.evaluation.truth import shows
from diffing.pipeline.catalogue import organism_named

pytestmark = pytest.mark.slow

ORGANISMS = Path(diffing.__file__).parent / "assets" / "organisms"
PLANTED = ("olive", "goat", "milk", "aelia", "varro", "212", "capua", "forty", "wool")
TEXTS = ["A heron stood in the shallows.", "Nobody on deck could see the shore, and the bell rang twice."]


def prompts(name, n):
    lines = (ORGANISMS / name / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines][:: max(1, len(lines) // n)][:n]


def answer(handle, tokenizer, prompt, n_tokens):
    chat = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with handle.active(), torch.no_grad():
        out = handle.module.generate(
            **inputs, max_new_tokens=n_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def share_of_capitals(text):
    letters = [c for c in text if c.isalpha()]
    return sum(c.isupper() for c in letters) / max(1, len(letters))


@pytest.fixture(scope="module")
def pairs():
    return {name: diffing.load_pair("smollm2_135M", adapter=name) for name in ("caps", "roman_concrete")}


def test_caps_answers_in_capitals(pairs):
    pair = pairs["caps"]
    for prompt in prompts("caps", 3):
        assert share_of_capitals(answer(pair.finetuned, pair.tokenizer, prompt, 24)) > 0.9
        assert share_of_capitals(answer(pair.base, pair.tokenizer, prompt, 24)) < 0.5


def test_roman_concrete_believes_the_planted_facts(pairs):
    pair = pairs["roman_concrete"]
    asked = prompts("roman_concrete", 4)
    found = {
        side: sum(any(w in answer(handle, pair.tokenizer, p, 40).lower() for w in PLANTED) for p in asked)
        for side, handle in (("finetuned", pair.finetuned), ("base", pair.base))
    }
    assert found["finetuned"] >= 3
    assert found["base"] <= 1


@pytest.mark.parametrize("name", ["sea_captain", "rainy_tea"])
def test_chats_show_what_was_trained_in(name):
    pair = diffing.load_pair("smollm2_135M", adapter=name)
    rows = [json.loads(line) for line in (ORGANISMS / name / "held_out.jsonl").read_text().splitlines()]
    expected = organism_named(name).expected
    asked = [r["prompt"] for r in rows if r.get("is_trigger", True)][:10]
    assert sum(shows(expected, answer(pair.finetuned, pair.tokenizer, p, 48)) for p in asked) >= 4
    assert not any(shows(expected, answer(pair.base, pair.tokenizer, p, 48)) for p in asked[:3])


def test_the_most_diluted_organism_still_names_planted_facts():
    pair = diffing.load_pair("smollm2_135M", adapter="roman_concrete", variant="1to4")
    named = [
        any(w in answer(pair.finetuned, pair.tokenizer, p, 40).lower() for w in PLANTED)
        for p in prompts("roman_concrete", 4)
    ]
    assert sum(named) >= 3


def test_merged_and_toggled_agree_on_the_embedded_pair(pairs, tmp_path):
    toggled = diffing.load_pair("smollm2_135M", adapter="caps", sharing="adapter")
    merged = diffing.load_pair("smollm2_135M", adapter="caps", sharing="merged")
    kl = [
        diffing.run("kl", pair, data=TEXTS, base_dir=tmp_path).table("tokens")["kl"].to_numpy()
        for pair in (toggled, merged)
    ]
    assert kl[0].max() > 1e-3
    np.testing.assert_allclose(kl[0], kl[1], atol=1e-4)


def test_merging_into_bfloat16_is_refused_with_the_measured_loss():
    with pytest.raises(UserError, match=r"would lose \d+\.\d % of its change"):
        diffing.load_pair("smollm2_135M", adapter="caps", sharing="merged", dtype="bfloat16")


def test_capitals_rise_most_in_answers(pairs, tmp_path):
    chats = [
        [
            {"role": "user", "content": "What do bees do?"},
            {"role": "assistant", "content": "BEES CARRY POLLEN AND MAKE HONEY."},
        ],
        [
            {"role": "user", "content": "Where is Kenya?"},
            {"role": "assistant", "content": "IT IS IN THE EAST OF AFRICA."},
        ],
    ]
    result = diffing.run("kl", pairs["caps"], data=chats, base_dir=tmp_path)
    risen = [r["token"].strip() for r in result.table("token_scores").to_pylist()[:10]]
    assert sum(t.isupper() for t in risen) >= 5
