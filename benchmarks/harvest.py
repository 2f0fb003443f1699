"""Harvest of both models at the middle layer: ours beside the usual loop, two libraries, and the bare matrix products.

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

import harvest_libraries
import harvest_reading
from kl import corpus_and_pair, spread
from measuring import Harvested, Memory, row_norms

LAYER, WIDTH_OF_LOOP = 0.5, 16
OURS = ("ours", "ours_bf16", "loop", "products", "products_bf16")
LIBRARIES = {"nnsight": ("nnsight", "accelerate"), "transformer_lens": ("transformer-lens",)}
READERS = ("sequential", "shuffled")
ONE_ROW = tuple(f"{stored}_{order}" for order in READERS for stored in ("slices", "tensors"))


class ChildFailed(Exception):
    """A variant's process ended with an error."""


def slot_of(pair):
    from diffing.core.layers import slots

    return slots([LAYER], ("residual",), len(pair.base.sites.layers))[0]


def weight_bytes(pair) -> int:
    """Bytes of all weights, those that both models share once."""
    modules = {id(h.module): h.module for h in (pair.base, pair.finetuned)}
    return sum(p.numel() * p.element_size() for m in modules.values() for p in m.parameters())


def time_ours(folder: Path, n_tokens: int, dtype: str) -> Harvested:
    import torch

    from diffing.activations.cache import Cache, CacheKey
    from diffing.activations.harvest import Kept, harvest
    from diffing.activations.plan import plan_blocks
    from diffing.activations.reading import PairReader
    from diffing.activations.sources import DiskSource
    from diffing.core.settings import PreprocessingConfig
    from diffing.data.token_table import TokenTable

    corpus, pair = corpus_and_pair(n_tokens, dtype, "merged" if dtype == "float32" else "adapter")
    slot, settings = slot_of(pair), PreprocessingConfig()
    PairReader(pair, corpus, (slot,), getattr(torch, dtype)).read([0])
    memory = Memory()
    started = time.perf_counter()
    plan = plan_blocks(TokenTable.of(corpus), settings.batch_tokens)
    key = CacheKey(pair.fingerprint, corpus.fingerprint, settings.batch_tokens, dtype)
    cache = Cache(folder, key, plan, settings.shard_bytes, settings.shard_tokens, "benchmark")
    harvest(pair, corpus, cache, [slot], Kept(pair.tokenizer.bos_token_id))
    seconds = time.perf_counter() - started
    peak = memory.peak()
    tokens = plan.tokens
    blocks = list(DiskSource(cache, [slot]).blocks())
    rows = [(*b.rows[slot], torch.from_numpy(tokens.position_N[b.token_N])) for b in blocks]
    base_ND, finetuned_ND, position_N = (torch.cat(part) for part in zip(*rows, strict=True))
    norms = row_norms(base_ND, finetuned_ND, position_N)
    return Harvested(seconds, len(tokens), *norms, memory.loaded, peak, weight_bytes(pair))


def time_loop(folder: Path, n_tokens: int, dtype: str) -> Harvested:
    import torch

    corpus, pair = corpus_and_pair(n_tokens, dtype, "adapter")
    model, layer = pair.base.module, slot_of(pair).layer
    texts = [list(map(int, s.ids)) for s in corpus.sequences]

    @torch.no_grad()
    def rows_of(handle, inputs) -> torch.Tensor:
        with handle.active():
            states = model(**inputs, output_hidden_states=True).hidden_states[layer + 1]
        return states[inputs["attention_mask"].bool()]

    def harvest(batches) -> tuple[torch.Tensor, torch.Tensor]:
        base, finetuned = [], []
        for batch in batches:
            inputs = pair.tokenizer.pad({"input_ids": batch}, padding_side="right", return_tensors="pt")
            base.append(rows_of(pair.base, inputs))
            finetuned.append(rows_of(pair.finetuned, inputs))
        return torch.cat(base), torch.cat(finetuned)

    harvest([texts[:1]])
    memory = Memory()
    started = time.perf_counter()
    base_ND, finetuned_ND = harvest(texts[i : i + WIDTH_OF_LOOP] for i in range(0, len(texts), WIDTH_OF_LOOP))
    seconds, peak = time.perf_counter() - started, memory.peak()
    position_N = torch.cat([torch.arange(len(t)) for t in texts])
    norms = row_norms(base_ND, finetuned_ND, position_N)
    return Harvested(seconds, corpus.n_tokens, *norms, memory.loaded, peak, weight_bytes(pair))


def time_products(folder: Path, n_tokens: int, dtype: str) -> Harvested:
    """The weights' matrix products of both models' layers up to the slot, nothing else; attention is not among them."""
    import torch

    corpus, pair = corpus_and_pair(n_tokens, "float32", "merged")
    rows, kind = 2048, getattr(torch, dtype)
    blocks = pair.base.sites.layers[: slot_of(pair).layer + 1]
    weights = [m.weight.to(kind) for b in blocks for m in b.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1]).to(kind) for w in weights}
    memory = Memory()
    with torch.no_grad():
        for n in {min(rows, corpus.n_tokens), corpus.n_tokens % rows or rows}:
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]][:n], weight)
        started = time.perf_counter()
        for first in range(0, corpus.n_tokens, rows):
            n = min(rows, corpus.n_tokens - first)
            for weight in weights * 2:
                torch.nn.functional.linear(inputs[weight.shape[1]][:n], weight)
        seconds = time.perf_counter() - started
    return Harvested(seconds, corpus.n_tokens, 0.0, 0.0, memory.loaded, memory.peak(), weight_bytes(pair))


def write_work(folder: Path, n_tokens: int) -> None:
    """What the libraries' own environments read: token ids in data order, and both models as folders."""
    from diffing.models.embedded import embedded_model

    corpus, pair = corpus_and_pair(n_tokens, "float32", "merged")
    pair.finetuned.module.save_pretrained(folder / "finetuned")
    pair.tokenizer.save_pretrained(folder / "finetuned")
    folders = [str(embedded_model("smollm2_135M")), str(folder / "finetuned")]
    sequences = [list(map(int, s.ids)) for s in corpus.sequences]
    work = {"models": folders, "layer": slot_of(pair).layer, "sequences": sequences, "batch": WIDTH_OF_LOOP}
    (folder / "work.json").write_text(json.dumps(work))


def run_child(variant: str, options: argparse.Namespace) -> dict:
    shared = Path(options.shared)
    if variant == "work":
        write_work(shared, options.tokens)
        return {}
    if variant in LIBRARIES:
        return harvest_libraries.measure(variant, shared)._asdict()
    if variant in (*READERS, *ONE_ROW):
        return harvest_reading.measure(variant, shared / "rows")
    if variant == "rows":
        return harvest_reading.write_rows(shared / "rows", options.gigabytes)
    name, _, half = variant.partition("_")
    time_it = {"ours": time_ours, "loop": time_loop, "products": time_products}[name]
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        return time_it(Path(folder), options.tokens, "bfloat16" if half else "float32")._asdict()


def child(variant: str, options: argparse.Namespace, shared: Path, python: str = sys.executable) -> dict:
    """Measure one variant in a fresh process."""
    out = shared / "out.json"
    command = [python, __file__, "--child", variant, "--tokens", str(options.tokens), "--shared", str(shared)]
    command += ["--gigabytes", str(options.gigabytes), "--out", str(out)]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or python == sys.executable}
    environment = {**inherited, **offline, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChildFailed(f"{variant} failed: {done.stderr[-2000:]}")
    return json.loads(out.read_text())


def environments(folder: Path, wanted: list[str]) -> dict[str, str]:
    """Python of each library's own environment, made when it is not there; says why when one cannot be had."""
    import torch

    found = {}
    for name in wanted:
        python = folder / name / "bin" / "python"
        mark = folder / name / "installed"
        if not mark.exists():
            print(f"installing {' '.join(LIBRARIES[name])} into {folder / name} …", flush=True)
            torch_version = torch.__version__.partition("+")[0]
            steps = (
                [sys.executable, "-m", "venv", "--clear", str(folder / name)],
                [str(python), "-m", "pip", "install", "-q", f"torch=={torch_version}", *LIBRARIES[name]],
            )
            for step in steps:
                done = subprocess.run(step, capture_output=True, text=True, check=False)
                if done.returncode:
                    said = [line for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr[-300:]]
                    print(f"{name} is left out, it could not be installed: {said[-1]}")
                    break
            else:
                mark.touch()
        if mark.exists():
            found[name] = str(python)
    return found


def rate(result: dict) -> float:
    return result["tokens"] / result["seconds"]


def ratios(found: list[dict[str, dict]], one: str, other: str) -> str:
    return spread([rate(f[one]) / rate(f[other]) for f in found])


def measure_models(options: argparse.Namespace, shared: Path) -> None:
    """All variants `rounds` times in turn; the ratios of each round."""
    pythons = environments(Path(options.envs).expanduser(), [n for n in LIBRARIES if n in options.variants])
    if pythons:
        child("work", options, shared)
    variants = [v for v in options.variants if v in OURS or v in pythons]
    found: list[dict[str, dict]] = []
    for number in range(options.rounds):
        results = {}
        for variant in list(variants):
            try:
                results[variant] = child(variant, options, shared, pythons.get(variant, sys.executable))
            except ChildFailed as failure:
                if variant in OURS:
                    raise
                print(f"{failure}\n{variant} is left out")
                variants.remove(variant)
        found.append(results)
        rates = ", ".join(f"{v} {rate(r):.0f}" for v, r in results.items())
        print(f"round {number + 1}, pair-tokens/s: {rates}", flush=True)
    report_models([{v: f[v] for v in variants} for f in found])


def report_models(found: list[dict[str, dict]]) -> None:
    targets = {
        ("ours", "loop"): "2 or more",
        ("ours", "nnsight"): "",
        ("ours", "transformer_lens"): "",
        ("ours", "products"): "0.65 or more",
        ("ours_bf16", "ours"): "1.8 or more",
        ("ours_bf16", "products_bf16"): "",
        ("products_bf16", "products"): "what bfloat16 allows here",
    }
    for (one, other), target in targets.items():
        if one in found[0] and other in found[0]:
            print(f"{one} / {other:16} {ratios(found, one, other):22} {target}")
    for variant, result in found[0].items():
        peak, loaded = (max(f[variant][k] for f in found) / 2**20 for k in ("peak", "loaded"))
        above = peak - result["weights"] / 2**20
        target = f"; {above:.0f} above the weights   1024 or less" if variant.startswith("ours") else ""
        print(f"{variant:16} peak {peak:.0f} MiB, {peak - loaded:.0f} above the loaded process{target}")
    for variant, result in found[0].items():
        if result["base_norm"]:
            print(f"{variant:16} mean norms: base {result['base_norm']:.5f}, difference {result['delta_norm']:.5f}")


def measure_reading(options: argparse.Namespace, shared: Path) -> None:
    """Our two readers beside one row at a time, from the page cache."""
    made = child("rows", options, shared)
    print(f"reader: {made['tokens']} rows of both models, {made['bytes'] / 1e9:.2f} GB in {made['shards']} shards")
    found = [{v: child(v, options, shared) for v in (*READERS, *ONE_ROW)} for _ in range(options.rounds)]
    for variant in (*READERS, *ONE_ROW):
        rows = spread([rate(f[variant]) / 1e3 for f in found])
        speed = spread([rate(f[variant]) * made["bytes"] / made["tokens"] / 1e9 for f in found])
        target = "   1 GB/s or more" if variant in READERS else ""
        print(f"{variant:18} {rows} thousand rows/s, {speed} GB/s{target}")
    for one, other in ((v.partition("_")[2], v) for v in ONE_ROW):
        print(f"{one} / {other:18} {ratios(found, one, other)}   20 or more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=12000, help="of all three sets together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="*", default=[*OURS, *LIBRARIES], choices=[*OURS, *LIBRARIES])
    parser.add_argument(
        "--parts", nargs="*", default=["models", "disk", "reader"], choices=["models", "disk", "reader"]
    )
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the files that are read")
    parser.add_argument("--envs", default="~/.cache/diffing/benchmark_envs", help="the libraries' own environments")
    parser.add_argument("--folder", help="where files are written; default: the system's temporary folder")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--shared", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        Path(options.out).write_text(json.dumps(run_child(options.child, options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as shared:
        if "models" in options.parts:
            measure_models(options, Path(shared))
        if "disk" in options.parts:
            harvest_reading.measure_disk(Path(shared), options.gigabytes, options.rounds)
        if "reader" in options.parts:
            measure_reading(options, Path(shared))


if __name__ == "__main__":
    main()
