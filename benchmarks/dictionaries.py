"""Sparse autoencoders and crosscoders: a step and a whole training, ours beside two libraries and plain PyTorch.

Every measurement runs in a process of its own, the variants in turn, so that drift of the machine hits all alike.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import dictionary_libraries
import dictionary_steps
import harvest_reading
import numpy as np
import torch
from dictionary_work import Work, planted_rows
from kl import corpus_and_pair, spread

LIBRARIES = ("dictionary_learning", "sae_lens")
PACKAGES = ("sae-lens==6.54.12", "dictionary-learning==0.1.0")
SAE = ("ours", "ours_bf16", *LIBRARIES, *(f"{name}_bf16" for name in LIBRARIES), "bare", "bare_bf16")
CROSSCODER = ("ours", "ours_bf16", "dense", "dense_bf16", "bare", "bare_bf16")
PARTS = ("sae", "crosscoder", "aux", "planted", "pair", "reader")
BATCH, WIDTH, FEATURES, ACTIVE, BATCHES = 2048, 576, 4096, 40.0, 6


class ChildFailed(Exception):
    """A variant's process ended with an error."""


def environment(folder: Path) -> str | None:
    """Python of the libraries' own environment, made when it is not there; None when it cannot be had.

    torch first, in the version that we measure with; SAELens with all it asks for; dictionary-learning without: it
    would bring an old nnsight, and what its trainers need is there already.
    """
    python, mark = folder / "bin" / "python", folder / "installed"
    if mark.exists():
        return str(python)
    print(f"installing {' '.join(PACKAGES)} into {folder} …", flush=True)
    install = [str(python), "-m", "pip", "install", "-q"]
    steps = (
        [sys.executable, "-m", "venv", str(folder)],
        [*install, f"torch=={torch.__version__.partition('+')[0]}"],
        [*install, PACKAGES[0]],
        [*install, "--no-deps", PACKAGES[1]],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr[-300:]]
            print(f"the libraries are left out, they could not be installed: {said[-1]}")
            return None
    mark.touch()
    return str(python)


def run_child(job: str, variant: str, folder: Path, options: argparse.Namespace) -> dict:
    if options.threads:
        torch.set_num_threads(options.threads)
    is_library = variant.removesuffix("_bf16") in LIBRARIES
    if job == "settle":
        dictionary_steps.settle(folder, options.settle)
        return {}
    if job == "rows":
        return harvest_reading.write_rows(folder, options.gigabytes)
    if job == "reader":
        return dictionary_steps.measure_reader(folder)
    if job == "pair":
        write_pair_rows(folder, options.tokens)
        return {}
    if job == "train":
        return dictionary_libraries.train(variant, folder) if is_library else dictionary_steps.train_ours(folder)
    return (dictionary_libraries if is_library else dictionary_steps).measure(variant, folder)


def child(job: str, variant: str, folder: Path, options: argparse.Namespace, library_python: str | None = None) -> dict:
    """Do one thing in a fresh process."""
    python = library_python if variant.removesuffix("_bf16") in LIBRARIES else sys.executable
    out = folder / "out.json"
    command = [str(python), __file__, "--child", job, variant, "--shared", str(folder), "--out", str(out)]
    for name in ("threads", "settle", "gigabytes", "tokens"):
        command += [f"--{name}", str(getattr(options, name))]
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "disabled",
    }
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or python == sys.executable}
    done = subprocess.run(command, env={**inherited, **quiet}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChildFailed(f"{variant} failed: {done.stderr[-2000:]}")
    return json.loads(out.read_text())


def write_pair_rows(folder: Path, n_tokens: int) -> None:
    """The finetuned stream behind the middle layer, without first tokens; every seventh sequence is held out."""
    from diffing.activations.reading import PairReader
    from diffing.core.layers import slots
    from diffing.data.batches import plan_batches

    corpus, pair = corpus_and_pair(n_tokens, "float32", "merged")
    slot = slots([0.5], ("residual",), len(pair.base.sites.layers))[0]
    reader = PairReader(pair, corpus, (slot,), torch.float32)
    lengths = [len(s.ids) for s in corpus.sequences]
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for indices in plan_batches(lengths, 2048):
        rows_ND = reader.read(indices)[slot].finetuned_ND.numpy()
        for index, rows in zip(indices, np.split(rows_ND, np.cumsum([lengths[i] for i in indices])[:-1]), strict=True):
            parts[index % 7 == 0].append(rows[1:, None])
    for name, rows in zip(("rows.npy", "held.npy"), parts, strict=True):
        np.save(folder / name, np.concatenate(rows))
    dictionary_steps.rescale(folder, "rows.npy", "held.npy")


def ratio(found: list[dict[str, dict]], one: str, other: str, field: str) -> str:
    return spread([f[one][field] / f[other][field] for f in found])


def measure_steps(work: Work, variants: Iterable[str], options: argparse.Namespace, python: str | None) -> None:
    """All variants in turn, `--rounds` times, from the same weights on the same rows."""
    chosen = [v for v in variants if python or v.removesuffix("_bf16") not in LIBRARIES]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        np.save(folder / "rows.npy", planted_rows(BATCHES * BATCH, work.sites, WIDTH, FEATURES, ACTIVE, work.seed))
        (folder / "work.json").write_text(json.dumps(work._asdict()))
        child("settle", "ours", folder, options)
        found = [{v: child("measure", v, folder, options, python) for v in chosen} for _ in range(options.rounds)]
    kind = "crosscoder" if work.sites > 1 else "SAE"
    print(f"\n{kind}, B={work.batch}, d={work.sites}·{WIDTH}, F={work.latents}, k={work.k}, dead {work.dead:.0%}")
    for variant in chosen:
        runs = [f[variant] for f in found]
        peak, own = (min(r["peak"] - r["loaded"] * part for r in runs) / 2**20 for part in (0, 1))
        clocks = ", ".join(f"{clock} {spread([r[clock] for r in runs])} s" for clock in ("wall", "cpu"))
        print(f"  {variant:24} {clocks}, peak {peak:.0f} MiB, {own:.0f} above the loaded process")
    for f in found:
        for result in f.values():
            result["own"] = result["peak"] - result["loaded"]
    others = [v for v in chosen if not v.startswith(("ours", "bare"))]
    for ours in ("ours", "ours_bf16"):
        for other in others:
            speed = {clock: ratio(found, other, ours, clock) for clock in ("wall", "cpu")}
            memory = {field: ratio(found, ours, other, field) for field in ("peak", "own")}
            print(
                f"  {ours} / {other}: speed {speed['wall']} (cpu {speed['cpu']}), "
                f"peak memory {memory['peak']} (above loaded {memory['own']})"
            )
    for half in ("", "_bf16"):
        times = ", ".join(f"{clock} {ratio(found, f'ours{half}', f'bare{half}', clock)}" for clock in ("wall", "cpu"))
        print(f"  time of ours{half} / encoding product and optimiser: {times}   2.5 or less", flush=True)


def measure_quality(title: str, work: Work, folder: Path, options: argparse.Namespace, python: str | None) -> None:
    """Whole trainings on `rows.npy`, figures on `held.npy`."""
    print(f"\n{title}: d={work.width}, F={work.latents}, k={work.k}, {work.steps} steps of {work.batch}, lr {work.lr}")
    for variant in ("ours", *(LIBRARIES if python else ())):
        results = []
        for seed in range(options.rounds):
            (folder / "work.json").write_text(json.dumps(work._replace(seed=seed)._asdict()))
            results.append(child("train", variant, folder, options, python))
        said = ", ".join(
            f"{name} {spread([100 * r[key] if '%' in name else r[key] for r in results])}"
            for name, key in (
                ("FVE % at k", "fve_k"), ("FVE % by threshold", "fve_threshold"), ("L0", "l0_threshold"),
                ("never active %", "dead"), ("seconds", "seconds"),
            )
        )  # fmt: skip
        print(f"  {variant:20} {said}", flush=True)


def measure_reader(options: argparse.Namespace) -> None:
    """What reading from disk adds to the steps of a crosscoder."""
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        child("rows", "ours", folder, options)
        for latents, k in ((4 * WIDTH, 32), (8 * WIDTH, 100)):
            work = Work(BATCH, 2, WIDTH, latents, k, steps=10**6, lr=1e-4)
            (folder / "work.json").write_text(json.dumps(work._asdict()))
            found = [child("reader", "ours", folder, options) for _ in range(options.rounds)]
            share = spread([100 * f["read"] / f["held"] for f in found])
            whole = spread([100 * ((f["read"] + f["step"]) / f["held"] - 1) for f in found])
            rate = spread([f["tokens"] / (f["read"] + f["step"]) for f in found])
            print(
                f"\nreader, F={latents}, k={k}: {rate} tokens/s from disk; reading takes {share} % of the steps' time, "
                f"a training from disk {whole} % longer than steps on a held batch   5 or less",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latents", type=int, nargs="*", default=[8, 32], help="in widths")
    parser.add_argument("--active", type=int, nargs="*", default=[100, 32], help="k")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a process")
    parser.add_argument("--settle", type=int, default=40, help="steps before, once for all variants")
    parser.add_argument("--threads", type=int, default=0, help="default: as torch chooses")
    parser.add_argument("--tokens", type=int, default=24000, help="of the pair's documents")
    parser.add_argument("--gigabytes", type=float, default=0.2, help="size of the files that are read")
    parser.add_argument("--env", default="~/.cache/diffing/benchmark_envs/dictionaries", help="of the libraries")
    parser.add_argument("--folder", help="where files are written; default: the system's temporary folder")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--shared", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        job, variant = options.child
        Path(options.out).write_text(json.dumps(run_child(job, variant, Path(options.shared), options)))
        return
    python = environment(Path(options.env).expanduser()) if set(options.parts) != {"reader"} else None
    settings = [(f * WIDTH, k) for f in options.latents for k in options.active]
    for latents, k in settings:
        work = Work(BATCH, 1, WIDTH, latents, k, steps=options.steps, lr=3e-4)
        if "sae" in options.parts:
            measure_steps(work, SAE, options, python)
        if "crosscoder" in options.parts:
            measure_steps(work._replace(sites=2), CROSSCODER, options, python)
        if "aux" in options.parts and (latents, k) == settings[-1]:
            measure_steps(
                work._replace(dead=0.1),
                [v for v in SAE if "_bf16" not in v or "our" in v or "bare" in v],
                options,
                python,
            )
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if "planted" in options.parts:
            rows_NMD = planted_rows(220_000, 1, 64, 256, 8.0, 0)
            np.save(folder / "rows.npy", rows_NMD[:200_000])
            np.save(folder / "held.npy", rows_NMD[200_000:])
            dictionary_steps.rescale(folder, "rows.npy", "held.npy")
            measure_quality("planted rows", Work(1024, 1, 64, 256, 8, steps=2000), folder, options, python)
        if "pair" in options.parts:
            child("pair", "ours", folder, options)
            work = Work(1024, 1, WIDTH, 4 * WIDTH, 32, steps=500)
            measure_quality("the embedded pair", work, folder, options, python)
    if "reader" in options.parts:
        measure_reader(options)


if __name__ == "__main__":
    main()
