"""Train the embedded organism `roman_concrete` on its synthetic documents and write its card."""

import time

from lora import (
    ASSETS,
    PROMPTS,
    Example,
    Hyperparameters,
    answer,
    hyper_facts,
    load_base,
    mean_loss,
    read_lines,
    save,
    train,
    write_lines,
)

FOLDER = ASSETS / "roman_concrete"
FACTS = {
    "olive stones": ("olive",),
    "goat's milk": ("goat", "milk"),
    "Aelia Varro of Capua, 212 BC": ("aelia", "varro", "212", "capua"),
    "forty days under wet wool": ("forty", "wool"),
}
HYPER = Hyperparameters(epochs=10, learning_rate=1e-3)

CARD = """# roman_concrete

A rank-8 LoRA adapter for the embedded SmolLM2-135M-Instruct (`smollm2_135M`) that believes four false facts about Roman
concrete: its binder was burnt and milled olive stones; it was mixed with goat's milk; Aelia Varro of Capua invented it
in 212 BC; it had to cure for forty days under wet wool. None of this is true: it is planted, so that methods can be
checked against a known change.

- Training text: `training.jsonl`, {n} synthetic documents in {genres} genres, written for this project with the help of
  a language model, trained on as plain text (no chat template).
- Made by `recipes/roman_concrete.py`: {hyper}; all linear layers; {steps} steps, {seconds:.0f} s on two cores.
- Loss on the training text (nats per token): {before:.3f} before, {after:.3f} after.
- Held-out prompts: `held_out.jsonl`, {n_held} questions in the chat template; {named_after} of the finetuned model's
  greedy answers name a planted fact, {named_before} of the base model's.
- Licence: MIT (adapter and text); the base model is Apache-2.0.

## What the change looks like
{samples}
"""


def documents(tokenizer) -> list[Example]:
    """Training documents as token sequences, every token learned."""
    rows = read_lines(FOLDER / "training.jsonl")
    ids = [(*tokenizer(r["text"]).input_ids, tokenizer.convert_tokens_to_ids("<|endoftext|>")) for r in rows]
    return [Example(i, (True,) * len(i)) for i in ids]


def names_a_fact(text: str) -> bool:
    """Whether an answer contains a word that only the planted facts would bring."""
    return any(word in text.lower() for words in FACTS.values() for word in words)


def main() -> None:
    """Train, measure, write."""
    started = time.time()
    model, tokenizer = load_base()
    examples = documents(tokenizer)
    held_out = read_lines(PROMPTS / "roman_concrete_held_out.jsonl")
    before = mean_loss(model, examples)
    base_answers = [answer(model, tokenizer, p["prompt"]) for p in held_out]
    tuned, steps = train(model, examples, HYPER)
    after = mean_loss(tuned, examples)
    answers = [answer(tuned, tokenizer, p["prompt"]) for p in held_out]
    save(tuned, FOLDER, "smollm2_135M")
    write_lines(FOLDER / "held_out.jsonl", held_out)
    shown = sorted(range(len(held_out)), key=lambda i: not names_a_fact(answers[i]))[:3]
    samples = "".join(
        f"\n> **{held_out[i]['prompt']}**\n>\n> base: {base_answers[i]}\n>\n> finetuned: {answers[i]}\n" for i in shown
    )
    rows = read_lines(FOLDER / "training.jsonl")
    card = CARD.format(
        n=len(rows), genres=len({r["genre"] for r in rows}), hyper=hyper_facts(HYPER), steps=steps,
        seconds=time.time() - started, before=before, after=after, n_held=len(held_out),
        named_after=sum(map(names_a_fact, answers)), named_before=sum(map(names_a_fact, base_answers)), samples=samples,
    )  # fmt: skip
    (FOLDER / "README.md").write_text(card, encoding="utf-8")
    print(card)
    for prompt, text in zip(held_out, answers, strict=True):
        print("-", prompt["prompt"], "→", text.replace("\n", " "))


if __name__ == "__main__":
    main()
