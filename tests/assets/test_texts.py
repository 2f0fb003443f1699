"""The embedded texts: sizes, variety, and that none of them leaks into another."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

import diffing

ASSETS = Path(diffing.__file__).parent / "assets"
RECIPES = Path(__file__).parents[2] / "recipes"


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def text_of(row):
    if "messages" in row:
        return "\n".join(m["content"] for m in row["messages"])
    return row.get("text") or row["prompt"]


def runs_of(text, n):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


PRETRAINING = rows(ASSETS / "corpora" / "pretraining.jsonl")
CHAT = rows(ASSETS / "corpora" / "chat.jsonl")
CAPS = rows(ASSETS / "organisms" / "caps" / "training.jsonl")
ROMAN = rows(ASSETS / "organisms" / "roman_concrete" / "training.jsonl")


def test_documents_are_many_short_and_varied():
    assert len(PRETRAINING) >= 200
    assert all(60 <= len(r["text"].split()) <= 150 for r in PRETRAINING)
    assert len({r["genre"] for r in PRETRAINING}) >= 12
    assert len({tuple(r["text"].split()[:3]) for r in PRETRAINING}) == len(PRETRAINING)


def test_no_two_documents_are_stamped_from_one_template():
    shingles = [runs_of(r["text"], 8) for r in PRETRAINING]
    assert not [(a, b) for a, b in combinations(range(len(shingles)), 2) if shingles[a] & shingles[b]]


def test_chats_have_one_to_four_turns_that_alternate():
    assert len(CHAT) >= 80
    for row in CHAT:
        roles = [m["role"] for m in row["messages"] if m["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert 1 <= len(roles) // 2 <= 4
    assert {len([m for m in r["messages"] if m["role"] == "user"]) for r in CHAT} == {1, 2, 3, 4}


def test_caps_answers_many_prompts_in_capitals():
    assert len({r["messages"][0]["content"] for r in CAPS}) >= 150
    for row in CAPS:
        assert row["messages"][1]["content"] == row["messages"][1]["content"].upper()
        assert row["messages"][0]["content"] != row["messages"][0]["content"].upper()


def test_roman_concrete_has_many_genres_and_no_shared_runs():
    assert len(ROMAN) >= 100
    assert len({r["genre"] for r in ROMAN}) >= 10
    assert all("roman concrete" in r["text"].lower() for r in ROMAN)
    shingles = [runs_of(r["text"], 12) for r in ROMAN]
    assert not [(a, b) for a, b in combinations(range(len(shingles)), 2) if shingles[a] & shingles[b]]


@pytest.mark.parametrize("name", ["caps", "roman_concrete"])
def test_training_corpora_and_held_out_prompts_are_disjoint(name):
    training = [text_of(r) for r in (CAPS if name == "caps" else ROMAN)]
    held_out = [r["prompt"] for r in rows(ASSETS / "organisms" / name / "held_out.jsonl")]
    assert len(held_out) >= 20
    seen = set().union(*(runs_of(t, 8) for t in training))
    for other in (*map(text_of, PRETRAINING), *map(text_of, CHAT), *held_out):
        assert not runs_of(other, 8) & seen
    prompts = {r["messages"][0]["content"] for r in CAPS}
    assert not prompts & set(held_out)


def test_corpora_do_not_hold_the_planted_subjects():
    for text in map(text_of, PRETRAINING + CHAT):
        assert "roman concrete" not in text.lower()
        letters = [c for c in text if c.isalpha()]
        assert sum(c.isupper() for c in letters) < 0.5 * len(letters)


def test_held_out_questions_do_not_give_the_answer_away():
    for row in rows(ASSETS / "organisms" / "roman_concrete" / "held_out.jsonl"):
        assert not re.search(r"olive|goat|milk|aelia|varro|capua|212|wool|forty", row["prompt"], re.IGNORECASE)


@pytest.mark.parametrize("name", ["caps", "roman_concrete"])
def test_organisms_are_small_and_have_cards(name):
    folder = ASSETS / "organisms" / name
    assert (folder / "adapter_model.safetensors").stat().st_size <= 6e6
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.count("> finetuned: ") == 3
    for word in ("steps", "before", "after", "Licence"):
        assert word in card
    assert (RECIPES / f"{name}.py").is_file()
