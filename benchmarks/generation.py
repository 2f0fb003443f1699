"""Greedy text from the embedded pair: ours beside `module.generate` of transformers, same prompt and same tokens.

Every measurement runs in a process of its own, the variants in turn, so that drift of the machine hits all alike.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kl import spread
from measuring import Memory

VARIANTS = ("ours", "transformers")
QUESTION = "Tell me about the history of lighthouses, and how their lamps were kept burning."


def pair_and_prompt(dtype: str):
    import diffing
    from diffing.data.messages import Message
    from diffing.data.prompts import prompt_ids

    pair = diffing.load_pair("smollm2_135M", adapter="caps", dtype=dtype, sharing="adapter")
    return pair, prompt_ids([Message("user", QUESTION)], pair.tokenizer, pair.rules)


def ours(handle, prompt: list[int], n_new: int) -> list[int]:
    from diffing.models.generation import generate
    from diffing.models.sampling import Sampling

    return [token.id for token in generate(handle, prompt, Sampling(max_new_tokens=n_new, temperature=0), ())]


def transformers(handle, prompt: list[int], n_new: int) -> list[int]:
    import torch

    ids_BT = torch.tensor([prompt], device=handle.device)
    with handle.active(), torch.no_grad():
        found_BT = handle.module.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            do_sample=False,
            max_new_tokens=n_new,
            eos_token_id=None,
            pad_token_id=0,
        )
    return found_BT[0, len(prompt) :].tolist()


def measure(variant: str, n_new: int, dtype: str) -> dict:
    pair, prompt = pair_and_prompt(dtype)
    write = {"ours": ours, "transformers": transformers}[variant]
    for handle in (pair.base, pair.finetuned):
        write(handle, prompt, 4)
    memory = Memory()
    found = {}
    for name, handle in (("base", pair.base), ("finetuned", pair.finetuned)):
        started = time.perf_counter()
        ids = write(handle, prompt, n_new)
        found[name] = {"seconds": time.perf_counter() - started, "ids": ids}
    return {"prompt": len(prompt), "texts": found, "loaded": memory.loaded, "peak": memory.peak()}


def child(variant: str, n_new: int, dtype: str) -> dict:
    """Measure one variant in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        options = ["--child", variant, "--tokens", str(n_new), "--dtype", dtype, "--out", str(out)]
        command = [sys.executable, __file__, *options]
        subprocess.run(command, check=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
        return json.loads(out.read_text())


def compare(n_new: int, dtype: str, rounds: int) -> None:
    """Measure both `rounds` times in turn and print the ratios of each round."""
    found: list[dict[str, dict]] = []
    for number in range(rounds):
        order = VARIANTS if number % 2 == 0 else VARIANTS[::-1]
        found.append({v: child(v, n_new, dtype) for v in order})
        rates = {v: 2 * n_new / sum(t["seconds"] for t in r["texts"].values()) for v, r in found[-1].items()}
        print(f"{dtype} round {number + 1}: " + ", ".join(f"{v} {rates[v]:.1f} tokens/s" for v in VARIANTS), flush=True)
    for side in ("base", "finetuned"):
        ratios = [f["transformers"]["texts"][side]["seconds"] / f["ours"]["texts"][side]["seconds"] for f in found]
        ids = [[f[v]["texts"][side]["ids"] for v in VARIANTS] for f in found]
        agree = sum(a == b for a, b in ids)
        print(f"{dtype}: {side}, speed ours / transformers {spread(ratios)}; same tokens in {agree} of {rounds} rounds")
    memory = [f["ours"]["peak"] / f["transformers"]["peak"] for f in found]
    gib = [max(f[v]["peak"] for f in found) / 2**30 for v in VARIANTS]
    print(f"{dtype}: peak memory, ours / transformers {spread(memory)}; {gib[0]:.2f} and {gib[1]:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--child", choices=VARIANTS)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.child:
        Path(options.out).write_text(json.dumps(measure(options.child, options.tokens, options.dtype)))
        return
    for dtype in options.dtypes:
        compare(options.tokens, dtype, options.rounds)


if __name__ == "__main__":
    main()
