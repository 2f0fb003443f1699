"""When and how strongly each latent is active, from one pass over all kept tokens."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffing.activations.rows import SlotRows
from diffing.analysis.latents.coding import CodedBlock, coded_blocks
from diffing.analysis.latents.scaling import Scaling, ScalingSums
from diffing.analysis.latents.sites import Input, Split
from diffing.analysis.top_examples import Ranked, TopExamples
from diffing.data.token_table import TokenTable
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.metrics import Meter, Quality

POSITION_EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, eq=False)
class Activity:
    """What one pass tells of F latents, over G datasets and P ranges of positions.

    Args:
        n_tokens_G: Kept tokens of each dataset.
        counts_GF: Tokens at which each latent is active.
        sums_GF: Σ of its activation.
        squares_F: Σ of its square.
        maximum_F: Its largest activation.
        n_tokens_P: Kept tokens in each range of positions.
        counts_PF: Tokens there at which each latent is active.
        scaling: β and ν.
        top: The documents in which each latent is strongest.
        sample: A sample of the others.
        quality: By (dataset, whether it was held out), and for dataset "all".
        n_not_finite: Kept tokens left out because a number is not finite,
        n_unusual: and because their norm is above the limit.
    """

    n_tokens_G: np.ndarray
    counts_GF: np.ndarray
    sums_GF: np.ndarray
    squares_F: np.ndarray
    maximum_F: np.ndarray
    n_tokens_P: np.ndarray
    counts_PF: np.ndarray
    scaling: Scaling
    top: Ranked
    sample: Ranked
    quality: dict[tuple[str, bool], Quality]
    n_not_finite: int = 0
    n_unusual: int = 0

    @property
    def frequency_F(self) -> np.ndarray:
        """Share of kept tokens at which each latent is active."""
        return self.counts_GF.sum(0) / max(1, self.n_tokens_G.sum())


class _Counts:
    """Counts by latent within groups of tokens."""

    def __init__(self, n_groups: int, n_latents: int) -> None:
        self.n_tokens = np.zeros(n_groups, dtype=np.int64)
        self.counts = np.zeros((n_groups, n_latents), dtype=np.int64)
        self.sums = np.zeros((n_groups, n_latents))

    def add(self, group_N: np.ndarray, row_P: np.ndarray, latent_P: np.ndarray, value_P: np.ndarray) -> None:
        n_groups, n_latents = self.counts.shape
        self.n_tokens += np.bincount(group_N, minlength=n_groups)
        place_P = group_N[row_P] * n_latents + latent_P
        self.counts += np.bincount(place_P, minlength=n_groups * n_latents).reshape(self.counts.shape)
        self.sums += np.bincount(place_P, weights=value_P, minlength=n_groups * n_latents).reshape(self.sums.shape)


def measure_activity(
    dictionary: Dictionary, rows: SlotRows, kind: Input, split: Split, tokens: TokenTable, mean_2D: Tensor,
    n_examples: int, n_sampled: int, seed: int,
) -> Activity:  # fmt: skip
    """One pass over all kept tokens.

    Args:
        dictionary: Trained.
        rows: The activations.
        kind: How the dictionary takes them.
        split: Kept tokens, and which were held out.
        tokens: The corpus.
        mean_2D: Means of both models' raw activations.
        n_examples: Documents kept of each latent.
        n_sampled: Others that are sampled.
        seed: Of the sample.
    """
    n_latents = dictionary.spec.n_latents
    by_dataset = _Counts(len(tokens.datasets), n_latents)
    by_position = _Counts(len(POSITION_EDGES), n_latents)
    examples = TopExamples(n_latents, n_examples, n_sampled, seed)
    scaling = ScalingSums(dictionary, kind, mean_2D)
    squares_F, maximum_F = np.zeros(n_latents), np.zeros(n_latents)
    meters: dict[tuple[str, bool], Meter] = {}
    n_not_finite = n_unusual = 0
    for block in coded_blocks(dictionary, rows, kind, split.kept_N, "coding activations"):
        row_P, latent_P = block.codes.row_P.cpu().numpy(), block.codes.latent_P.cpu().numpy()
        value_P = block.codes.value_P.double().cpu().numpy()
        token_N = block.token_N
        by_dataset.add(tokens.dataset_N[token_N].astype(np.int64), row_P, latent_P, value_P)
        range_N = np.searchsorted(POSITION_EDGES, tokens.position_N[token_N], side="right") - 1
        by_position.add(range_N, row_P, latent_P, value_P)
        squares_F += np.bincount(latent_P, weights=value_P**2, minlength=n_latents)
        np.maximum.at(maximum_F, latent_P, value_P)
        at_P = token_N[row_P]
        shown = (value_P > 0) & tokens.is_new_N[at_P]
        examples.add(latent_P[shown], at_P[shown], value_P[shown], tokens.sequence_N[at_P[shown]])
        scaling.add(block)
        _measure(dictionary, meters, block, split, tokens)
        n_not_finite += block.n_not_finite
        n_unusual += block.n_unusual
    return Activity(
        by_dataset.n_tokens, by_dataset.counts, by_dataset.sums, squares_F, maximum_F, by_position.n_tokens,
        by_position.counts, scaling.result(), examples.top(), examples.sample(),
        {key: meter.quality() for key, meter in meters.items()}, n_not_finite, n_unusual,
    )  # fmt: skip


def _measure(
    dictionary: Dictionary, meters: dict[tuple[str, bool], Meter], block: CodedBlock, split: Split, tokens: TokenTable
) -> None:
    """Into the meters of the block's dataset and of all data, by whether its tokens were held out."""
    if not len(block.token_N):
        return
    dataset = tokens.datasets[tokens.dataset_N[block.token_N[0]]]
    for is_held, mask_N in ((True, split.held_N), (False, split.train_N)):
        keep_N = torch.from_numpy(mask_N[block.token_N]).to(block.x_NMD.device)
        if not keep_N.any():
            continue
        for name in (dataset, "all"):
            meter = meters.setdefault((name, is_held), Meter(dictionary))
            meter.add(block.x_NMD[keep_N], block.codes.at(keep_N), block.made_NMD[keep_N])
