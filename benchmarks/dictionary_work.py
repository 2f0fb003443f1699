"""What the processes of the dictionary benchmark share, in any environment: data, weights to begin with, the clock.

Needs NumPy and torch alone.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measuring import Memory
from torch import Tensor

WEIGHTS = ("encoder_FE", "encoder_bias_F", "decoder_FE", "decoder_bias_E")


class Work(NamedTuple):
    """One setting: B tokens of M activations of width D, F latents of which k per token are active.

    Args:
        dead: Share of the latents that count as dead.
        steps: To time, or of the whole training.
    """

    batch: int
    sites: int
    width: int
    latents: int
    k: int
    dead: float = 0.0
    steps: int = 3
    seed: int = 0
    lr: float = 1e-3


def read_work(folder: Path) -> Work:
    return Work(**json.loads((folder / "work.json").read_text()))


def planted_rows(n_rows: int, sites: int, width: int, n_features: int, n_active: float, seed: int) -> np.ndarray:
    """Rows (N, M, D), float32: sparse sums of features of unequal frequency, a common offset, and noise.

    A feature has nearly the same direction at all sites; every tenth is missing at the first one.
    """
    rng = np.random.default_rng(seed)
    feature_KMD = rng.standard_normal((n_features, 1, width)) + 0.2 * rng.standard_normal((n_features, sites, width))
    feature_KMD /= np.linalg.norm(feature_KMD, axis=2, keepdims=True)
    if sites > 1:
        feature_KMD[::10, 0] = 0
    share_K = 1 / (np.arange(n_features) + n_features / 20)
    share_K = np.minimum(share_K * n_active / share_K.sum(), 0.5)
    offset_MD = 2 * rng.standard_normal((sites, width)) / width**0.5
    rows, flat_KE = [], feature_KMD.reshape(n_features, -1).astype(np.float32)
    for first in range(0, n_rows, 4096):
        n = min(4096, n_rows - first)
        on_NK = rng.random((n, n_features), dtype=np.float32) < share_K
        size_NK = on_NK * (0.5 + rng.standard_exponential((n, n_features), dtype=np.float32))
        noise_NE = rng.standard_normal((n, sites * width), dtype=np.float32) * 0.5 / width**0.5
        rows.append(size_NK @ flat_KE + noise_NE + offset_MD.reshape(-1).astype(np.float32))
    return np.concatenate(rows).reshape(n_rows, sites, width)


def batches_of(folder: Path, batch: int) -> list[Tensor]:
    """The rows as batches (B, M, D)."""
    return list(torch.from_numpy(np.load(folder / "rows.npy")).split(batch))


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Weights after some steps of training, the same for all variants; float32. Dead latents have a bias to stay so."""
    start = {name: torch.from_numpy(np.load(folder / f"{name}.npy")) for name in WEIGHTS}
    start["encoder_bias_F"][dead_latents(read_work(folder))] = -100.0
    return start


def dead_latents(work: Work) -> Tensor:
    """Which latents are to count as dead, (F,) bool: the last ones."""
    return torch.arange(work.latents) >= work.latents - round(work.dead * work.latents)


def timed_steps(make: Callable[[], Callable[[Tensor], Any]], batches: list[Tensor], n_steps: int) -> dict:
    """Seconds of a step (median, after two that are not counted) by the clock and of all cores; bytes resident."""
    memory = Memory()
    step = make()
    for batch_NMD in batches[:2]:
        step(batch_NMD)
    wall, cpu = [], []
    for number in range(n_steps):
        batch_NMD = batches[(2 + number) % len(batches)]
        started, used = time.perf_counter(), time.process_time()
        step(batch_NMD)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    return {
        "wall": statistics.median(wall), "cpu": statistics.median(cpu), "peak": memory.peak(), "loaded": memory.loaded
    }  # fmt: skip


def training_batches(folder: Path, work: Work) -> Iterator[Tensor]:
    """The training rows (B, M, D), epoch after epoch, each in another order; the same for all variants."""
    rows_NMD = torch.from_numpy(np.load(folder / "rows.npy"))
    rng = np.random.default_rng(work.seed)
    while True:
        order = torch.from_numpy(rng.permutation(len(rows_NMD)))
        yield from (rows_NMD[part] for part in order.split(work.batch) if len(part) == work.batch)


def explained(x_NE: Tensor, made_NE: Tensor) -> float:
    """Share of the variance that is explained."""
    x_NE, made_NE = x_NE.double(), made_NE.double()
    return 1 - float((x_NE - made_NE).square().sum() / (x_NE - x_NE.mean(0)).square().sum())


def quality(x_NE: Tensor, by_k: tuple[Tensor, Tensor], by_threshold: tuple[Tensor, Tensor]) -> dict:
    """Held-out figures of two ways to choose what is active: (activations, reconstruction) of each."""
    l0 = [float((acts_NF > 0).sum() / len(x_NE)) for acts_NF, _ in (by_k, by_threshold)]
    dead = float(((by_k[0] > 0).sum(0) == 0).float().mean())
    return {
        "fve_k": explained(x_NE, by_k[1]), "l0_k": l0[0], "fve_threshold": explained(x_NE, by_threshold[1]),
        "l0_threshold": l0[1], "dead": dead,
    }  # fmt: skip
