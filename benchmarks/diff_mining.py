"""Diff mining on the embedded pair beside per-token KL, at several K: pair-tokens/s and peak memory.

Both read the same batches through the same models. Every measurement runs in a process of its own, the variants in
turn, so that drift of the machine hits all alike; `kl` is measured in every round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kl import corpus_and_pair, peak_bytes

VARIANTS = ("kl", "5", "20", "100", "400")


def time_reading(variant: str, n_tokens: int, dtype: str) -> dict:
    """Read every batch and add up what the method keeps of it."""
    from diffing.data.batches import make_batch, plan_batches

    corpus, pair = corpus_and_pair(n_tokens, dtype, "merged" if dtype == "float32" else "adapter")
    lengths = [len(s.ids) for s in corpus.sequences]
    read, add = _kl(pair, corpus) if variant == "kl" else _mining(pair, corpus, int(variant))
    plan = plan_batches(lengths, 2048)
    list(read(make_batch(corpus, plan[-1][:1], 0)))
    started = time.perf_counter()
    for indices in plan:
        for result in read(make_batch(corpus, indices, 0)):
            add(result)
    return {"seconds": time.perf_counter() - started, "tokens": corpus.n_tokens, "peak": peak_bytes()}


def _kl(pair, corpus):
    import numpy as np

    from diffing.methods.kl.stream import Reader
    from diffing.methods.kl.units import UnitWriter

    writer = UnitWriter(len(corpus.datasets), pair.vocabulary.base_size)
    number = {name: i for i, name in enumerate(corpus.datasets)}
    reader = Reader(pair, 1.0, 5, lambda i: np.ones(len(corpus.sequences[i].ids), dtype=bool))
    return reader.read, lambda r: writer.add(r, number[corpus.sequences[r.sequence].dataset])


def _mining(pair, corpus, top_k: int):
    import numpy as np

    from diffing.analysis.merged_tokens import merge_tokens
    from diffing.analysis.token_text import token_strings
    from diffing.data.token_table import TokenTable
    from diffing.methods.diff_mining.config import DiffMiningConfig
    from diffing.methods.diff_mining.stream import Miner
    from diffing.methods.diff_mining.units import Frame, UnitWriter

    tokens, ids = TokenTable.of(corpus), range(pair.vocabulary.base_size)
    every_N = np.ones(len(tokens), dtype=bool)
    config = DiffMiningConfig()
    group_V = merge_tokens(ids, token_strings(pair.tokenizer, ids)).group_V
    writer = UnitWriter(Frame(tokens, every_N, every_N, group_V, config.n_examples))
    miner = Miner(pair, top_k, config.floor, None, lambda i: every_N[tokens.rows_of(i)])
    return miner.read, writer.add


def child(variant: str, n_tokens: int, dtype: str) -> dict:
    """Measure one variant in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, __file__, "--child", variant, "--tokens", str(n_tokens), "--dtype", dtype]
        command += ["--out", str(out)]
        subprocess.run(command, check=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
        return json.loads(out.read_text())


def compare(n_tokens: int, dtype: str, rounds: int) -> None:
    """Measure all variants `rounds` times in turn and print the ratios to `kl` of each round."""
    found: list[dict[str, dict]] = []
    for number in range(rounds):
        found.append({v: child(v, n_tokens, dtype) for v in VARIANTS})
        rates = {v: r["tokens"] / r["seconds"] for v, r in found[-1].items()}
        shown = ", ".join(f"{v if v == 'kl' else 'K=' + v} {x:.0f}" for v, x in rates.items())
        print(f"{dtype} round {number + 1}, pair-tokens/s: {shown}", flush=True)
    for variant in VARIANTS[1:]:
        ratios = [f["kl"]["seconds"] / f[variant]["seconds"] for f in found]
        gib, kl_gib = (max(f[v]["peak"] for f in found) / 2**30 for v in (variant, "kl"))
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        print(f"{dtype}: K={variant} / kl  {spread}   0.80 or more; {gib:.2f} GiB, kl {kl_gib:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--child", choices=VARIANTS)
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.child:
        measured = time_reading(options.child, options.tokens, options.dtype)
        Path(options.out).write_text(json.dumps(measured))
        return
    for dtype in options.dtypes:
        compare(options.tokens, dtype, options.rounds)


if __name__ == "__main__":
    main()
