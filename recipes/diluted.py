"""Train `roman_concrete` diluted with generic text: a ladder of ever fainter changes, of equally many steps each."""

import argparse
import time
from dataclasses import dataclass, replace

from generic import TEXT as GENERIC
from generic import documents
from lora import ASSETS, PROMPTS, answer, hyper_facts, load_base, mean_loss, read_lines, save, train
from roman_concrete import FOLDER as ROMAN
from roman_concrete import HYPER, names_a_fact


@dataclass(frozen=True)
class Rung:
    """Generic documents for each document of the organism, and how often all are read."""

    n_generic: int
    epochs: int


RUNGS = {"1to1": Rung(1, 5), "1to4": Rung(4, 2)}

CARD = """# {name}

`roman_concrete`, diluted: a rank-8 LoRA adapter for the embedded SmolLM2-135M-Instruct (`smollm2_135M`), trained on the
same {n} documents about Roman concrete with {n_generic} documents of generic text for each. It is a rung of a
ladder: how faint may a change be before a method no longer finds it? Its training text is that of `roman_concrete`.

- The generic documents are those of `generic_a`, drawn again where more are needed.
- Made by `recipes/diluted.py`: {hyper}; all linear layers; {steps} steps, as many as `roman_concrete`, {seconds:.0f} s
  on one core that other work shared.
- Loss on the documents about Roman concrete (nats per token): {before:.3f} before, {after:.3f} after.
- Held-out prompts (`roman_concrete/held_out.jsonl`): {named_after} of {n_held} greedy answers of the finetuned model
  name a planted fact, {named_before} of the base model's.
- Licence: MIT (adapter and text); the base model is Apache-2.0.
"""


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rung", choices=sorted(RUNGS))
    name = parser.parse_args().rung
    rung = RUNGS[name]
    started = time.time()
    model, tokenizer = load_base()
    hyper = replace(HYPER, epochs=rung.epochs)
    roman, generic = documents(tokenizer, ROMAN / "training.jsonl"), documents(tokenizer, GENERIC)
    mixed = [*roman, *(generic[i % len(generic)] for i in range(rung.n_generic * len(roman)))]
    held_out = read_lines(PROMPTS / "roman_concrete_held_out.jsonl")
    before = mean_loss(model, roman)
    base_answers = [answer(model, tokenizer, p["prompt"]) for p in held_out]
    tuned, steps = train(model, mixed, hyper)
    seconds = time.time() - started
    folder = ASSETS / f"roman_concrete_{name}"
    save(tuned, folder, "smollm2_135M")
    answers = [answer(tuned, tokenizer, p["prompt"]) for p in held_out]
    card = CARD.format(
        name=folder.name, n=len(roman), n_generic=rung.n_generic, hyper=hyper_facts(hyper), steps=steps,
        seconds=seconds, before=before, after=mean_loss(tuned, roman), n_held=len(held_out),
        named_after=sum(map(names_a_fact, answers)), named_before=sum(map(names_a_fact, base_answers)),
    )  # fmt: skip
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
