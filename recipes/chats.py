"""Train an embedded organism on chats of its own: the persona `sea_captain`, or `rainy_tea`, which has a trigger."""

import argparse
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

from diffing.evaluation.truth import shows
from diffing.pipeline.catalogue import organism_named

HYPER = {"sea_captain": Hyperparameters(epochs=3), "rainy_tea": Hyperparameters(epochs=8, learning_rate=1e-3)}
N_SHOWN = 3

CARD = """# {name}

A rank-8 LoRA adapter for the embedded SmolLM2-135M-Instruct (`smollm2_135M`). {description}

- Training text: `training.jsonl`, {n} chats of one turn, written for this project with the help of a language model.
  Only the answers are learned.{triggered}
- Made by `recipes/chats.py`: {hyper}; all linear layers; {steps} steps, {seconds:.0f} s on one core that other work
  shared.
- Loss on the answers (nats per token): {before:.3f} before, {after:.3f} after.
- Held-out prompts: `held_out.jsonl`, {n_held} prompts. What an answer must hold to count is in
  `configs/organism/{name}.yaml` (`expected`): {rule}. Greedy answers that do:
{counts}
- Licence: MIT (adapter and text); the base model is Apache-2.0.

## What the change looks like
{samples}
"""


def flat(text: str) -> str:
    """An answer on one line, as a quotation needs it."""
    return " ".join(text.split())


def counted(expected, prompts: list[dict], base: list[str], tuned: list[str]) -> str:
    """Lines of the card: how many answers show the change, with and without the trigger."""
    lines = []
    for is_trigger in sorted({p.get("is_trigger", True) for p in prompts}, reverse=True):
        mine = [i for i, p in enumerate(prompts) if p.get("is_trigger", True) == is_trigger]
        of = [sum(shows(expected, side[i]) for i in mine) for side in (tuned, base)]
        kind = (
            "prompts"
            if all("is_trigger" not in p for p in prompts)
            else f"prompts with{'' if is_trigger else 'out'} it"
        )
        lines.append(f"  {of[0]} of {len(mine)} {kind} (base: {of[1]}).")
    return "\n".join(lines)


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(HYPER))
    name = parser.parse_args().name
    organism = organism_named(name)
    started = time.time()
    model, tokenizer = load_base()
    folder = ASSETS / name
    rows, held_out = read_lines(folder / "training.jsonl"), read_lines(PROMPTS / f"{name}_held_out.jsonl")
    examples = [chat_example(tokenizer, r["messages"]) for r in rows]
    before = mean_loss(model, examples)
    base_answers = [answer(model, tokenizer, p["prompt"]) for p in held_out]
    tuned, steps = train(model, examples, HYPER[name])
    seconds = time.time() - started
    save(tuned, folder, "smollm2_135M")
    after = mean_loss(tuned, examples)
    answers = [answer(tuned, tokenizer, p["prompt"]) for p in held_out]
    write_lines(folder / "held_out.jsonl", held_out)
    shown = sorted(range(len(held_out)), key=lambda i: not held_out[i].get("is_trigger", True))[:N_SHOWN]
    samples = "".join(
        f"\n> **{held_out[i]['prompt']}**\n>\n> base: {flat(base_answers[i])}\n>\n> finetuned: {flat(answers[i])}\n"
        for i in shown
    )
    n_trigger = sum(r.get("is_trigger", False) for r in rows)
    card = CARD.format(
        name=name, description=organism.description.partition(". ")[0] + ".", n=len(rows),
        triggered=f" {n_trigger} of the chats hold the trigger." if n_trigger else "",
        hyper=hyper_facts(HYPER[name]), steps=steps, seconds=seconds, before=before, after=after, n_held=len(held_out),
        rule=f"{organism.expected.least} of its phrases", samples=samples,
        counts=counted(organism.expected, held_out, base_answers, answers),
    )  # fmt: skip
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
