"""Text from the embedded pair: ours beside `module.generate` of transformers, one text and many at once.

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
MANY = ("ours greedy", "transformers greedy", "ours sampled", "transformers sampled", "ours amplified")
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


def many(variant: str, pair, prompts: list[list[int]], n_new: int) -> list[list[int]]:
    """Texts of the finetuned model after prompts of one length."""
    import torch

    from diffing.models.batch_generation import Amplified, Prompt, write_texts
    from diffing.models.sampling import Sampling

    who, how = variant.split()
    if who == "ours":
        writer = Amplified(pair.finetuned, pair.base) if how == "amplified" else pair.finetuned
        sampling = Sampling(max_new_tokens=n_new, temperature=0 if how == "greedy" else 1)
        given = [Prompt(tuple(p), seed, alpha=1.0) for seed, p in enumerate(prompts)]
        return [list(text.ids) for text in write_texts(writer, given, sampling, ())]
    handle, ids_BT = pair.finetuned, torch.tensor(prompts, device=pair.device)
    with handle.active(), torch.no_grad():
        found_BT = handle.module.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            max_new_tokens=n_new,
            eos_token_id=None,
            pad_token_id=0,
            **({"do_sample": True, "top_k": 0} if how == "sampled" else {"do_sample": False}),
        )
    return found_BT[:, ids_BT.shape[1] :].tolist()


def measure_many(variant: str, n_texts: int, n_new: int, dtype: str) -> dict:
    pair, prompt = pair_and_prompt(dtype)
    prompts = [[*prompt[:-1], (prompt[-1] + i) % 1000 + 1000] for i in range(n_texts)]
    many(variant, pair, prompts, 2)
    memory = Memory()
    started = time.process_time()
    ids = many(variant, pair, prompts, n_new)
    return {"seconds": time.process_time() - started, "ids": ids, "peak": memory.peak()}


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


def child(variant: str, n_new: int, dtype: str, n_texts: int = 1) -> dict:
    """Measure one variant in a fresh process, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        options = ["--child", variant, "--tokens", str(n_new), "--dtype", dtype, "--out", str(out)]
        command = [sys.executable, __file__, *options, "--texts", str(n_texts)]
        one_thread = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env={**os.environ, **one_thread})
        return json.loads(out.read_text())


def compare_many(n_texts: int, n_new: int, dtype: str, rounds: int) -> None:
    """Many texts at once, all variants in turn; processor time, which other work on the machine moves little."""
    found: list[dict[str, dict]] = []
    for number in range(rounds):
        order = MANY if number % 2 == 0 else MANY[::-1]
        found.append({v: child(v, n_new, dtype, n_texts) for v in order})
        rates = ", ".join(f"{v} {n_texts * n_new / found[-1][v]['seconds']:.0f}" for v in MANY)
        print(f"{dtype} {n_texts} texts, round {number + 1}, tokens per processor second: {rates}", flush=True)
    for how in ("greedy", "sampled"):
        ratios = [f[f"transformers {how}"]["seconds"] / f[f"ours {how}"]["seconds"] for f in found]
        peaks = [f[f"ours {how}"]["peak"] / f[f"transformers {how}"]["peak"] for f in found]
        print(f"{dtype}: {how}, ours / transformers: speed {spread(ratios)}, peak memory {spread(peaks)}")
    same = [f["ours greedy"]["ids"] == f["transformers greedy"]["ids"] for f in found]
    print(f"{dtype}: greedy, same tokens in {sum(same)} of {rounds} rounds")
    ratios = [f["ours amplified"]["seconds"] / f["ours sampled"]["seconds"] for f in found]
    peaks = [f["ours amplified"]["peak"] / f["ours sampled"]["peak"] for f in found]
    print(f"{dtype}: amplified / one model: time {spread(ratios)}, peak memory {spread(peaks)}")


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
    parser.add_argument("--texts", type=int, default=16, help="texts at once; 1: one text alone")
    parser.add_argument("--child", choices=(*VARIANTS, *MANY))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.child:
        if options.child in MANY:
            result = measure_many(options.child, options.texts, options.tokens, options.dtype)
        else:
            result = measure(options.child, options.tokens, options.dtype)
        Path(options.out).write_text(json.dumps(result))
        return
    for dtype in options.dtypes:
        compare(options.tokens, dtype, options.rounds)
        if options.texts > 1:
            compare_many(options.texts, options.tokens, dtype, options.rounds)


if __name__ == "__main__":
    main()
