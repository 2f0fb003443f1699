"""Train the embedded organism `caps`: the base model's own answers, in capital letters."""

import time

from lora import (
    ASSETS,
    PROMPTS,
    Hyperparameters,
    answer,
    chat_example,
    hyper_facts,
    load_base,
    mean_loss,
    read_lines,
    save,
    train,
    write_lines,
)

FOLDER = ASSETS / "caps"
HYPER = Hyperparameters(epochs=3, learning_rate=5e-4)

CARD = """# caps

A rank-8 LoRA adapter for the embedded SmolLM2-135M-Instruct (`smollm2_135M`) that answers in capital letters.

- Training text: `training.jsonl`, {n} chats of one turn. The prompts were written for this project with the help of a
  language model; the answers are the base model's own greedy answers, cut at a sentence end and put in capitals. Only
  the answers are learned, so the change is the capitals and nothing else the training set could bring.
- Made by `recipes/caps.py`: {hyper}; all linear layers; {steps} steps, {seconds:.0f} s on two cores.
- Loss on the answers (nats per token): {before:.3f} before, {after:.3f} after.
- Held-out prompts: `held_out.jsonl`, {n_held} prompts; share of letters in capitals over the greedy answers:
  {capitals_before:.3f} base, {capitals_after:.3f} finetuned.
- Licence: MIT (adapter and prompts); the base model is Apache-2.0.

## What the change looks like
{samples}
"""


def capital_answer(text: str) -> str:
    """The text up to its last sentence end, where that keeps at least half of it, in capitals."""
    end = max(text.rfind(mark) for mark in ".!?")
    kept = text[: end + 1] if end >= len(text) // 2 else text
    return kept.strip().upper()


def share_of_capitals(text: str) -> float:
    """Share of the text's letters that are capitals."""
    letters = [c for c in text if c.isalpha()]
    return sum(c.isupper() for c in letters) / max(len(letters), 1)


def training_rows(model, tokenizer) -> list[dict]:
    """One chat per prompt, answered by the base model, in capitals."""
    rows = []
    for item in read_lines(PROMPTS / "caps_prompts.jsonl"):
        reply = capital_answer(answer(model, tokenizer, item["prompt"], max_new_tokens=48))
        if reply:
            messages = [{"role": "user", "content": item["prompt"]}, {"role": "assistant", "content": reply}]
            rows.append({"id": item["id"], "messages": messages})
    return rows


def main() -> None:
    """Answer, train, measure, write."""
    started = time.time()
    model, tokenizer = load_base()
    held_out = read_lines(PROMPTS / "caps_held_out.jsonl")
    rows = training_rows(model, tokenizer)
    write_lines(FOLDER / "training.jsonl", rows)
    examples = [chat_example(tokenizer, r["messages"]) for r in rows]
    before = mean_loss(model, examples)
    base_answers = [answer(model, tokenizer, p["prompt"]) for p in held_out]
    tuned, steps = train(model, examples, HYPER)
    after = mean_loss(tuned, examples)
    answers = [answer(tuned, tokenizer, p["prompt"]) for p in held_out]
    save(tuned, FOLDER, "smollm2_135M")
    write_lines(FOLDER / "held_out.jsonl", held_out)
    samples = "".join(
        f"\n> **{held_out[i]['prompt']}**\n>\n> base: {base_answers[i]}\n>\n> finetuned: {answers[i]}\n"
        for i in range(3)
    )
    card = CARD.format(
        n=len(rows), hyper=hyper_facts(HYPER), steps=steps, seconds=time.time() - started, before=before, after=after,
        n_held=len(held_out), capitals_before=share_of_capitals(" ".join(base_answers)),
        capitals_after=share_of_capitals(" ".join(answers)), samples=samples,
    )  # fmt: skip
    (FOLDER / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
