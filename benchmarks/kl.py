"""Per-token KL on the embedded pair: ours beside the usual loop and beside the bare matrix products.

Every measurement runs in a process of its own, the variants in turn, so that drift of the machine hits all alike.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VARIANTS = ("ours", "loop", "products")


def corpus_and_pair(n_tokens: int, dtype: str, sharing: str):
    """The pair, and about `n_tokens` of the embedded documents of all three sets, in data order."""
    import diffing
    from diffing.core.specs import CorpusSpec, DatasetSpec
    from diffing.data.tokens import tokenize_corpus

    pair = diffing.load_pair("smollm2_135M", adapter="caps", dtype=dtype, sharing=sharing)
    names = ("pretraining", "chat", "caps/training")
    sets = tuple(DatasetSpec(name=n, id=f"embedded:{n}") for n in names)
    spec = CorpusSpec(datasets=sets, max_tokens=n_tokens // len(sets))
    corpus = tokenize_corpus(spec, pair.tokenizer, pair.rules)
    return corpus, pair


def time_ours(n_tokens: int, dtype: str) -> dict:
    import numpy as np

    from diffing.data.batches import make_batch, plan_batches
    from diffing.methods.kl.noise import noise_floor
    from diffing.methods.kl.stream import Reader

    corpus, pair = corpus_and_pair(n_tokens, dtype, "merged" if dtype == "float32" else "adapter")
    lengths = [len(s.ids) for s in corpus.sequences]
    reader = Reader(pair, 1.0, 5, lambda i: np.ones(lengths[i], dtype=bool))
    plan = plan_batches(lengths, 2048)
    list(reader.read(make_batch(corpus, plan[-1][:1], 0)))
    started = time.perf_counter()
    total = 0.0
    for indices in plan:
        for result in reader.read(make_batch(corpus, indices, 0)):
            total += float(result.tokens.values["kl"].sum())
    seconds = time.perf_counter() - started
    peak = peak_bytes()
    floor = noise_floor(pair.base, corpus, 8, 0)["kl"]
    return {
        "seconds": seconds,
        "tokens": corpus.n_tokens,
        "mean_kl": total / corpus.n_tokens,
        "noise": floor,
        "peak": peak,
    }


def time_loop(n_tokens: int, dtype: str) -> dict:
    import torch

    corpus, pair = corpus_and_pair(n_tokens, dtype, "adapter")
    tokenizer, model = pair.tokenizer, pair.finetuned.module
    texts = [tokenizer.decode(s.ids) for s in corpus.sequences]

    @torch.no_grad()
    def kl_of(batch: list[str]) -> tuple[float, int]:
        inputs = tokenizer(batch, return_tensors="pt", padding=True, add_special_tokens=False)
        with pair.finetuned.active():
            lp = model(**inputs).logits.float().log_softmax(-1)
        with pair.base.active():
            lq = model(**inputs).logits.float().log_softmax(-1)
        kl = (lp.exp() * (lp - lq)).sum(-1)
        mask = inputs["attention_mask"].bool()
        return float(kl[mask].sum()), int(mask.sum())

    kl_of(texts[:1])
    started = time.perf_counter()
    found = [kl_of(texts[i : i + 16]) for i in range(0, len(texts), 16)]
    seconds = time.perf_counter() - started
    tokens = sum(n for _, n in found)
    return {"seconds": seconds, "tokens": tokens, "mean_kl": sum(k for k, _ in found) / tokens, "peak": peak_bytes()}


def time_products(n_tokens: int, dtype: str) -> dict:
    import torch

    corpus, pair = corpus_and_pair(n_tokens, dtype, "adapter")
    module, rows = pair.base.module, 2048
    linears = [
        m.weight for m in module.modules() if isinstance(m, torch.nn.Linear) and "lora" not in type(m).__name__.lower()
    ]
    linears = [w for w in linears if min(w.shape) > 16]
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1], dtype=w.dtype) for w in linears}
    seconds, left = 0.0, corpus.n_tokens
    with torch.no_grad():
        torch.nn.functional.linear(inputs[linears[0].shape[1]], linears[0])
        while left > 0:
            n = min(rows, left)
            started = time.perf_counter()
            for _ in range(2):
                for weight in linears:
                    torch.nn.functional.linear(inputs[weight.shape[1]][:n], weight)
            seconds += time.perf_counter() - started
            left -= n
    return {"seconds": seconds, "tokens": corpus.n_tokens, "peak": peak_bytes()}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(variant: str, n_tokens: int, dtype: str) -> dict:
    """Measure one variant in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [
            sys.executable,
            __file__,
            "--child",
            variant,
            "--tokens",
            str(n_tokens),
            "--dtype",
            dtype,
            "--out",
            str(out),
        ]
        subprocess.run(command, check=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
        return json.loads(out.read_text())


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def compare(n_tokens: int, dtype: str, rounds: int) -> None:
    """Measure all variants `rounds` times in turn and print the ratios of each round."""
    found: list[dict[str, dict]] = []
    for number in range(rounds):
        found.append({v: child(v, n_tokens, dtype) for v in VARIANTS})
        rates = {v: r["tokens"] / r["seconds"] for v, r in found[-1].items()}
        print(
            f"{dtype} round {number + 1}: " + ", ".join(f"{v} {x:.0f} pair-tokens/s" for v, x in rates.items()),
            flush=True,
        )
    rate = [{v: r["tokens"] / r["seconds"] for v, r in f.items()} for f in found]
    ours, loop = [f["ours"] for f in found], [f["loop"] for f in found]
    memory = [a["peak"] / b["peak"] for a, b in zip(ours, loop, strict=True)]
    gib = [max(r["peak"] for r in runs) / 2**30 for runs in (ours, loop)]
    print(
        f"{dtype}: ours / loop              {spread([r['ours'] / r['loop'] for r in rate])}   float32 target: 2 or more"
    )
    print(f"{dtype}: ours / products          {spread([r['ours'] / r['products'] for r in rate])}   0.60 or more")
    print(f"{dtype}: peak memory, ours / loop {spread(memory)}   0.50 or less; {gib[0]:.2f} and {gib[1]:.2f} GiB")
    print(f"{dtype}: mean KL {ours[0]['mean_kl']:.6f} and {loop[0]['mean_kl']:.6f}; noise {ours[0]['noise']:.1e} nats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--child", choices=VARIANTS)
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.child:
        measured = {"ours": time_ours, "loop": time_loop, "products": time_products}[options.child](
            options.tokens, options.dtype
        )
        Path(options.out).write_text(json.dumps(measured))
        return
    for dtype in ("float32", "bfloat16"):
        compare(options.tokens, dtype, options.rounds)


if __name__ == "__main__":
    main()
