"""One training step of ours, of a crosscoder in plain PyTorch, and the bare encoding product and optimiser."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dictionary_work import (
    WEIGHTS,
    Work,
    batches_of,
    dead_latents,
    quality,
    read_work,
    timed_steps,
    training_batches,
    weights_of,
)
from torch import Tensor, nn

Step = Callable[[Tensor], Any]


def our_trainer(work: Work, batches: list[Tensor], n_steps: int, **options: Any) -> Any:
    """Ours, with its defaults, on the scale of the data."""
    from diffing.dictionaries.initial import initial_dictionary, measure_scale
    from diffing.dictionaries.schedules import TrainingSpec
    from diffing.dictionaries.spec import DictionarySpec
    from diffing.dictionaries.trainer import Trainer

    spec = DictionarySpec(
        n_sites=work.sites, width=work.width, n_latents=work.latents, k=work.k, unit_decoder=work.sites == 1
    )
    scale = measure_scale(batches)
    dictionary = initial_dictionary(spec, scale, work.seed)
    return Trainer(dictionary, TrainingSpec(n_steps=n_steps, lr=work.lr, **options), scale.variance)


def flat_weights(dictionary: Any) -> dict[str, Tensor]:
    """Views of the weights of ours, by the names that all variants know."""
    flat = (
        dictionary.encoder_FMD.flatten(1), dictionary.encoder_bias_F, dictionary.decoder_FMD.flatten(1),
        dictionary.decoder_bias_MD.flatten(),
    )  # fmt: skip
    return {name: weight.detach() for name, weight in zip(WEIGHTS, flat, strict=True)}


def rescale(folder: Path, *names: str) -> None:
    """Bring rows to a mean square of 1 per number at each site, as measured on the first file."""
    size_M1 = None
    for name in names:
        rows_NMD = np.load(folder / name)
        if size_M1 is None:
            size_M1 = np.sqrt(np.square(rows_NMD, dtype=np.float64).mean((0, 2)))[:, None]
        np.save(folder / name, (rows_NMD / size_M1).astype(np.float32))


def settle(folder: Path, n_steps: int) -> None:
    """Train ours for a while and write its weights: what every variant's timed steps begin with."""
    work = read_work(folder)
    rescale(folder, "rows.npy")
    batches = batches_of(folder, work.batch)
    trainer = our_trainer(work, batches, n_steps, warmup=0.1, decay=0.0, encode_dtype="bfloat16")
    for number in range(n_steps):
        trainer.step(batches[number % len(batches)])
    for name, weight in flat_weights(trainer.dictionary).items():
        np.save(folder / f"{name}.npy", weight.numpy())


def our_step(work: Work, folder: Path, is_half: bool) -> Step:
    trainer = our_trainer(
        work, batches_of(folder, work.batch)[:1], 10**6, encode_dtype="bfloat16" if is_half else "float32", warmup=0.0
    )
    start = weights_of(folder)
    for name, weight in flat_weights(trainer.dictionary).items():
        weight.copy_(start[name])
    if work.dead:
        trainer.silent_F[dead_latents(work)] = 10**8
    return trainer.step


class DenseCrosscoder(nn.Module):
    """A BatchTopK crosscoder as one would write it: dense products, autograd.

    Args:
        start: Weights to begin with.
        work: The setting.
    """

    def __init__(self, start: dict[str, Tensor], work: Work) -> None:
        super().__init__()
        self.work = work
        self.encoder_FE, self.encoder_bias_F, self.decoder_FE, self.decoder_bias_E = (
            nn.Parameter(start[name]) for name in WEIGHTS
        )

    def forward(self, x_NE: Tensor) -> Tensor:
        """The reconstruction; the k·N largest scores a_j · Σ_m ‖d_j^m‖ are kept."""
        acts_NF = nn.functional.linear(x_NE - self.decoder_bias_E, self.encoder_FE, self.encoder_bias_F).relu()
        with torch.no_grad():
            length_F = self.decoder_FE.unflatten(1, (self.work.sites, -1)).norm(dim=2).sum(1)
            kept = (acts_NF * length_F).flatten().topk(self.work.k * len(x_NE), sorted=False).indices
        values = acts_NF.flatten().gather(0, kept)
        sparse_NF = torch.zeros_like(acts_NF).flatten().scatter(0, kept, values).view_as(acts_NF)
        return sparse_NF @ self.decoder_FE + self.decoder_bias_E


def dense_step(work: Work, folder: Path, is_half: bool) -> Step:
    model = DenseCrosscoder(weights_of(folder), work)
    optimizer = torch.optim.Adam(model.parameters(), lr=work.lr, fused=True)
    variance = float(torch.cat(batches_of(folder, work.batch)[:1]).var(0).sum())

    def step(rows_NMD: Tensor) -> None:
        x_NE = rows_NMD.flatten(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            made_NE = model(x_NE)
        loss = (made_NE.float() - x_NE).square().sum() / (len(x_NE) * variance)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step


def bare_step(work: Work, folder: Path, is_half: bool) -> Step:
    """The encoding product (in bfloat16 the rounding of its factors too) and a fused Adam step on all weights."""
    weights = [nn.Parameter(w) for w in weights_of(folder).values()]
    for weight in weights:
        weight.grad = torch.full_like(weight, 1e-3)
    optimizer = torch.optim.Adam(weights, lr=1e-6, fused=True)

    @torch.no_grad()
    def step(rows_NMD: Tensor) -> None:
        x_NE, weight_FE = rows_NMD.flatten(1), weights[0]
        if is_half:
            x_NE, weight_FE = x_NE.bfloat16(), weight_FE.bfloat16()
        nn.functional.linear(x_NE, weight_FE)
        optimizer.step()

    return step


STEPS = {"ours": our_step, "dense": dense_step, "bare": bare_step}


def measure(variant: str, folder: Path) -> dict:
    """Time steps; `…_bf16`: with the encoding product (dense: all of the forward pass) in bfloat16."""
    name = variant.removesuffix("_bf16")
    work = read_work(folder)
    return timed_steps(lambda: STEPS[name](work, folder, name != variant), batches_of(folder, work.batch), work.steps)


def train_ours(folder: Path) -> dict:
    """A whole training with our defaults; figures on held-out rows."""
    from diffing.dictionaries.codes import Codes

    work = read_work(folder)
    rows_NMD = torch.from_numpy(np.load(folder / "rows.npy"))
    trainer = our_trainer(work, [rows_NMD], work.steps)
    batches = training_batches(folder, work)
    started = time.perf_counter()
    while not trainer.is_done:
        trainer.step(next(batches))
    seconds = time.perf_counter() - started
    held_NMD, made = torch.from_numpy(np.load(folder / "held.npy")), trainer.dictionary
    x_NMD = made.normalised(held_NMD)

    @torch.no_grad()
    def both(codes: Codes) -> tuple[Tensor, Tensor]:
        return codes.dense(), made.decode(codes).flatten(1)

    found = quality(x_NMD.flatten(1), both(made.select(x_NMD, work.k)[0]), both(made.encode(x_NMD)))
    return {**found, "seconds": seconds}


def measure_reader(folder: Path) -> dict:
    """An epoch from the rows that `harvest_reading.write_rows` wrote, beside steps on a batch that is held.

    Rows are random, which the time of a step hardly depends on.
    """
    from harvest_reading import synthetic

    from diffing.activations.shuffle import shuffled_rows
    from diffing.activations.sources import DiskSource
    from diffing.core.layers import Slot

    work, slot = read_work(folder), Slot(0)
    source = DiskSource(synthetic(folder, int((folder / "tokens").read_text())), [slot], verify=False)

    def batches() -> Iterator[Tensor]:
        for batch in shuffled_rows(source, slot, work.batch, work.seed):
            yield torch.stack(tuple(batch.rows), 1).float()

    held_NMD = next(batches())
    trainer = our_trainer(work, [held_NMD], 10**6, warmup=0.0)
    trainer.step(held_NMD)
    names, stream = ("read", "step", "held"), batches()
    seconds = dict.fromkeys((*names, "tokens"), 0.0)
    for _ in range(work.steps):
        started = time.perf_counter()
        batch_NMD = next(stream, None)
        read = time.perf_counter()
        if batch_NMD is None or len(batch_NMD) < work.batch:
            break
        trainer.step(batch_NMD)
        stepped = time.perf_counter()
        trainer.step(held_NMD)
        for name, value in zip(names, (read - started, stepped - read, time.perf_counter() - stepped), strict=True):
            seconds[name] += value
        seconds["tokens"] += work.batch
    return seconds
