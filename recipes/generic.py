"""Train the null adapters: `generic_a` and `generic_b` on the same generic documents, `generic_c` on others."""

import argparse
import time
from dataclasses import replace

from lora import ASSETS, Example, Hyperparameters, hyper_facts, load_base, mean_loss, read_lines, save, train

TEXT = ASSETS / "generic_a" / "training.jsonl"
OTHER_TEXT = ASSETS / "generic_c" / "training.jsonl"
CORPUS = ASSETS.parent / "corpora" / "pretraining.jsonl"
HYPER = Hyperparameters(epochs=3, learning_rate=5e-4)
N_MEASURED = 50
SEEDS = {"generic_a": 0, "generic_b": 1, "generic_c": 2}

CARD = """# {name}

A rank-8 LoRA adapter for the embedded SmolLM2-135M-Instruct (`smollm2_135M`) that was trained on generic text and
teaches nothing in particular: a null. {use} What a method says of it is what it says of any finetune.

- Training text: `{text}/training.jsonl`, {n} documents in {genres} genres, written for this project with the help of
  a language model, none of them in the embedded corpora, trained on as plain text (no chat template).
  {shared}
- Made by `recipes/generic.py`: {hyper}; all linear layers; {steps} steps, {seconds:.0f} s on one core. The number of
  documents, epochs and learning rate are those of `caps`.
- Loss on 50 documents of the training text (nats per token): {before:.3f} before, {after:.3f} after.
- Loss on other generic text, {n_other} of the embedded `pretraining` documents: {other_before:.3f} before,
  {other_after:.3f} after.
- Licence: MIT (adapter and text); the base model is Apache-2.0.
"""


USE = (
    "`null_pair=generic` compares the base with `generic_a`, `null_pair=seeds` `generic_a` with `generic_b`.",
    "`null_pair=generic_other` compares the base with it.",
)
SHARED = (
    "`generic_a` and `generic_b` have the same text; they differ by the seed of the factors and of the order.",
    "No other adapter was trained on it.",
)


def documents(tokenizer, path) -> list[Example]:
    """Documents of a JSON lines file as token sequences, every token learned."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids = [(*tokenizer(r["text"]).input_ids, end) for r in read_lines(path)]
    return [Example(i, (True,) * len(i)) for i in ids]


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(SEEDS))
    name = parser.parse_args().name
    started = time.time()
    model, tokenizer = load_base()
    hyper = replace(HYPER, seed=SEEDS[name])
    text = OTHER_TEXT if name == "generic_c" else TEXT
    examples, others = documents(tokenizer, text), documents(tokenizer, CORPUS)[::5]
    measured = examples[:: len(examples) // N_MEASURED][:N_MEASURED]
    before, other_before = mean_loss(model, measured), mean_loss(model, others)
    tuned, steps = train(model, examples, hyper)
    seconds = time.time() - started
    after, other_after = mean_loss(tuned, measured), mean_loss(tuned, others)
    save(tuned, ASSETS / name, "smollm2_135M")
    rows = read_lines(text)
    is_other = text == OTHER_TEXT
    card = CARD.format(
        name=name, n=len(rows), genres=len({r["genre"] for r in rows}), hyper=hyper_facts(hyper), steps=steps,
        seconds=seconds, before=before, after=after, other_before=other_before, other_after=other_after,
        n_other=len(others), text=text.parent.name, use=USE[is_other], shared=SHARED[is_other],
    )  # fmt: skip
    (ASSETS / name / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
