"""Dictionaries with random weights, activations in memory, and what both give computed densely in float64."""

from dataclasses import dataclass

import numpy as np
import torch

from diffing.activations.rows import SlotRows
from diffing.analysis.latents.activity import measure_activity
from diffing.analysis.latents.coding import CodedBlock
from diffing.analysis.latents.setting import Setting
from diffing.analysis.latents.sites import Split, as_input, split
from diffing.core.layers import Slot
from diffing.dictionaries.dictionary import Dictionary
from diffing.dictionaries.spec import DictionarySpec
from methods.memory_source import MemorySource, context_with, corpus_of_lengths

SLOT = Slot(1)
WIDTH = 10
CORPUS = corpus_of_lengths({"web": [9, 14, 6, 30, 11, 3], "chat": [12, 8, 17, 1, 5]})


def random_rows(seed=0, n=CORPUS.n_tokens, change=0.7):
    """Raw activations of both models, (N, 2, D); the finetuned ones are larger, and neither has mean 0."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(n, WIDTH)) * 2 + 0.5
    finetuned = 1.5 * base + change * rng.normal(size=base.shape) - 0.3
    return torch.from_numpy(np.stack([base, finetuned], 1)).float()


def random_dictionary(n_sites=2, sparsity="batch_topk", n_latents=17, k=3, seed=0, threshold=None):
    """Weights drawn at random: encoder and decoder have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    spec = DictionarySpec(n_sites=n_sites, width=WIDTH, n_latents=n_latents, sparsity=sparsity, k=k)
    dictionary = Dictionary(spec, torch.tensor([0.45, 0.3][:n_sites]))
    with torch.no_grad():
        for weights, size in (
            (dictionary.encoder_FMD, 0.4), (dictionary.encoder_bias_F, 0.2), (dictionary.decoder_FMD, 0.5),
            (dictionary.decoder_bias_MD, 0.3),
        ):  # fmt: skip
            weights.copy_(torch.from_numpy(rng.normal(size=weights.shape) * size))
        dictionary.encoder_bias_F[0] = -1e3  # dead
        dictionary.decoder_FMD[1, -1] = 0  # nothing in the finetuned model
        if sparsity == "batch_topk":
            dictionary.threshold.fill_(1.5 * n_sites if threshold is None else threshold)
    return dictionary


@dataclass(frozen=True, eq=False)
class Dense:
    """What a dictionary reads, its activations and its reconstruction as whole float64 arrays, normalised units."""

    x_NMD: np.ndarray
    acts_NF: np.ndarray
    rows_FMD: np.ndarray
    bias_MD: np.ndarray
    made_NMD: np.ndarray


def dense(dictionary, rows_N2D, kind):
    """From the definitions, without the package's products and selections."""
    values = {k: v.detach().double().numpy() for k, v in dictionary.named_parameters()}
    raw = rows_N2D.double().numpy()
    given = raw if kind == "pair" else (raw[:, 1] - raw[:, 0])[:, None]
    x = given * dictionary.scale_M.double().numpy()[:, None]
    pre = np.einsum("nmd,fmd->nf", x - values["decoder_bias_MD"], values["encoder_FMD"]) + values["encoder_bias_F"]
    rows = values["decoder_FMD"]
    score = pre * np.linalg.norm(rows, axis=2).sum(1)
    if dictionary.spec.sparsity == "l1":
        active = pre > 0
    elif dictionary.spec.sparsity == "topk":
        active = (score >= np.sort(score, 1)[:, -dictionary.spec.k, None]) & (score > 0)
    else:
        active = score > float(dictionary.threshold)
    acts = np.where(active, pre, 0)
    made = np.einsum("nf,fmd->nmd", acts, rows) + values["decoder_bias_MD"]
    return Dense(x, acts, rows, values["decoder_bias_MD"], made)


@torch.no_grad()
def coded(dictionary, rows_N2D, kind):
    """All rows as one block."""
    x = dictionary.normalised(as_input(rows_N2D, kind))
    codes = dictionary.encode(x)
    return CodedBlock(np.arange(len(rows_N2D)), rows_N2D, x, codes, dictionary.decode(codes), 0, 0)


def source_of(rows_N2D, corpus=CORPUS, blocks=None, slot=SLOT):
    """A source of one slot; by default a block holds two or three sequences of one dataset, not in their order."""
    blocks = [[3, 0], [1, 2, 5], [4], [8, 6], [7, 10, 9]] if blocks is None else blocks
    return MemorySource(corpus, {slot: rows_N2D[:, 0]}, {slot: rows_N2D[:, 1]}, blocks)


def setting_of(config, source, folder, kind="pair", held_out=0.3, corpus=CORPUS):
    """What a run reads, without a run."""
    context = context_with(source, corpus, folder)
    (slot,) = source.slots
    rows = SlotRows(source, slot, 0, 10**6)
    return Setting(config, context, kind, slot, rows, split(source, context, held_out), ())


def activity_of(dictionary, source, kind, held: Split, n_examples=3, n_sampled=2, mean_2D=None):
    """`measure_activity` of a source."""
    (slot,) = source.slots
    if mean_2D is None:
        mean_2D = torch.zeros(2, source.width)
    rows = SlotRows(source, slot, 0, 10**6)
    return measure_activity(dictionary, rows, kind, held, source.tokens, mean_2D, n_examples, n_sampled, 0)


TEXTS = corpus_of_lengths({"web": [9, 14, 6, 22], "chat": [12, 8, 1, 17]}, seed=3)


def alone(handle, ids, layer, changed=None):
    """(log-probabilities (T, V), stream after the layer (T, D)) of one text, through a hook of its own.

    `changed` takes the stream and gives the one to go on with.
    """
    seen = []

    def hook(module, args, output):
        stream = output if isinstance(output, torch.Tensor) else output[0]
        seen.append(stream[0].clone())
        if changed is None:
            return None
        new = changed(stream[0])[None]
        return new if isinstance(output, torch.Tensor) else (new, *output[1:])

    registered = handle.sites.layers[layer].register_forward_hook(hook)
    logits = handle.forward_logits(torch.from_numpy(ids).long()[None])[0]
    registered.remove()
    return logits.double().log_softmax(-1), seen[0]


def loss_of(log_probs_TV, ids):
    """Σ of the next tokens' negative log-likelihood."""
    return -float(sum(log_probs_TV[t, ids[t + 1]] for t in range(len(ids) - 1)))


def kl_of(own_TV, changed_TV):
    """Σ of KL(own ‖ changed) where there is a next token."""
    return float((own_TV.exp() * (own_TV - changed_TV)).sum(-1)[:-1].sum())


def perfect(n_sites, width):
    """A dictionary that gives back what it is given: two latents, ±, for each coordinate of each site."""
    n = n_sites * width
    dictionary = Dictionary(DictionarySpec(n_sites=n_sites, width=width, n_latents=2 * n, sparsity="l1"))
    rows = torch.cat([torch.eye(n), -torch.eye(n)]).view(2 * n, n_sites, width)
    with torch.no_grad():
        dictionary.encoder_FMD.copy_(rows)
        dictionary.decoder_FMD.copy_(rows)
        dictionary.scale_M.copy_(torch.tensor([0.5, 0.3][:n_sites]))
    return dictionary
