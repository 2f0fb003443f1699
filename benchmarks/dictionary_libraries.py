"""BatchTopK autoencoders of dictionary-learning and of SAELens, in their own environment: steps, whole trainings.

Their own trainers, called as their own training loops call them; wandb and progress bars left out.
"""

import contextlib
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dictionary_work import (
    Work,
    batches_of,
    dead_latents,
    quality,
    read_work,
    timed_steps,
    training_batches,
    weights_of,
)
from torch import Tensor

Step = Callable[[Tensor], Any]


def half(is_half: bool) -> Any:
    """What both libraries offer for bfloat16: autocast."""
    return torch.autocast("cpu", torch.bfloat16) if is_half else contextlib.nullcontext()


def dictionary_learning_trainer(work: Work, n_steps: int, **options: Any) -> Any:
    """Its package imports nnsight (an old release) for a class of its activation buffer, which no trainer touches."""
    nnsight: Any = types.ModuleType("nnsight")
    nnsight.LanguageModel = object
    sys.modules.setdefault("nnsight", nnsight)
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    return BatchTopKTrainer(
        steps=n_steps, activation_dim=work.width, dict_size=work.latents, k=work.k, layer=0, lm_name="none",
        lr=work.lr, device="cpu", seed=work.seed, **options,
    )  # fmt: skip


def dictionary_learning_step(work: Work, folder: Path, is_half: bool) -> Step:
    trainer = dictionary_learning_trainer(work, 1000, warmup_steps=0, threshold_start_step=0)
    start, ae = weights_of(folder), trainer.ae
    with torch.no_grad():
        ae.encoder.weight.copy_(start["encoder_FE"])
        ae.encoder.bias.copy_(start["encoder_bias_F"])
        ae.decoder.weight.copy_(start["decoder_FE"].T)
        ae.b_dec.copy_(start["decoder_bias_E"])
    dead_F, number = dead_latents(work), 0
    if work.dead:
        trainer.num_tokens_since_fired[dead_F] = trainer.dead_feature_threshold

    def step(rows_NMD: Tensor) -> None:
        nonlocal number
        number += 1
        with half(is_half):
            trainer.update(number, rows_NMD[:, 0])

    return step


def sae_lens_trainer(work: Work, n_steps: int, is_half: bool = False, **options: Any) -> Any:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(work.seed)
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=work.width, d_sae=work.latents, k=work.k, device="cpu"))
    config = SAETrainerConfig(
        total_training_samples=n_steps * work.batch, train_batch_size_samples=work.batch, lr=work.lr,
        lr_end=work.lr / 10, autocast=is_half,
        logger=LoggingConfig(log_to_wandb=False), **options,
    )  # fmt: skip
    return SAETrainer(config, sae, iter(()))


def sae_lens_step(work: Work, folder: Path, is_half: bool) -> Step:
    trainer = sae_lens_trainer(work, 1000, is_half)
    start, sae = weights_of(folder), trainer.sae
    with torch.no_grad():
        sae.W_enc.copy_(start["encoder_FE"].T)
        sae.b_enc.copy_(start["encoder_bias_F"])
        sae.W_dec.copy_(start["decoder_FE"])
        sae.b_dec.copy_(start["decoder_bias_E"])
    if work.dead:
        trainer.n_forward_passes_since_fired[dead_latents(work)] = trainer.cfg.dead_feature_window + 1

    def step(rows_NMD: Tensor) -> None:
        trainer.step(rows_NMD[:, 0])
        trainer.n_training_steps += 1

    return step


STEPS = {"dictionary_learning": dictionary_learning_step, "sae_lens": sae_lens_step}


def measure(variant: str, folder: Path) -> dict:
    """Time steps of one library; `…_bf16`: under its autocast."""
    name = variant.removesuffix("_bf16")
    work = read_work(folder)
    return timed_steps(lambda: STEPS[name](work, folder, name != variant), batches_of(folder, work.batch), work.steps)


def train_dictionary_learning(work: Work, folder: Path) -> dict:
    """As its `trainSAE(normalize_activations=True)` does: rows divided by their root mean squared norm."""
    n, scale = work.steps, work.width**0.5
    trainer = dictionary_learning_trainer(
        work, n, warmup_steps=n // 20, decay_start=n - n // 5, threshold_start_step=n // 2, threshold_beta=0.995
    )
    batches = training_batches(folder, work)
    started = time.perf_counter()
    for number in range(n):
        trainer.update(number, next(batches)[:, 0] / scale)
    seconds = time.perf_counter() - started
    held_ND, ae = torch.from_numpy(np.load(folder / "held.npy"))[:, 0] / scale, trainer.ae

    @torch.no_grad()
    def both(use_threshold: bool) -> tuple[Tensor, Tensor]:
        acts_NF = ae.encode(held_ND, use_threshold=use_threshold)
        return acts_NF, ae.decode(acts_NF)

    return {**quality(held_ND, both(False), both(True)), "seconds": seconds}


def train_sae_lens(work: Work, folder: Path) -> dict:
    """As `fit` does with `normalize_activations="expected_average_only_in"`; the rows have that scale already."""
    n = work.steps
    trainer = sae_lens_trainer(work, n, lr_warm_up_steps=n // 20, lr_decay_steps=n // 5)
    batches = training_batches(folder, work)
    started = time.perf_counter()
    for _ in range(n):
        trainer.step(next(batches)[:, 0])
        trainer.n_training_steps += 1
    seconds = time.perf_counter() - started
    held_ND, sae = torch.from_numpy(np.load(folder / "held.npy"))[:, 0], trainer.sae
    with torch.no_grad():
        acts_NF, scores_NF = sae.encode_with_hidden_pre(held_ND)
        above_NF = scores_NF * (scores_NF > sae.topk_threshold)
        found = quality(held_ND, (acts_NF, sae.decode(acts_NF)), (above_NF, sae.decode(above_NF)))
    return {**found, "seconds": seconds}


TRAININGS = {"dictionary_learning": train_dictionary_learning, "sae_lens": train_sae_lens}


def train(variant: str, folder: Path) -> dict:
    """A whole training of one library; figures on held-out rows."""
    return TRAININGS[variant](read_work(folder), folder)
