"""What vectors of the residual stream say when they stand in a prompt that asks for its last token to be repeated.

Source: Ghandeharioun et al., Patchscopes (2024), section 3 (token identity prompts). The length at which a vector
is put in is chosen without a judge: the one at which what it says hangs together most, beside random directions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffing.core.errors import UserError
from diffing.models.handle import ModelHandle
from diffing.models.patched_prompt import PatchedPrompt

PROMPTS = (
    "man -> man\n1135 -> 1135\nhello -> hello\n?",
    "river: river\n7: 7\nblue: blue\n?",
    "cat = cat\nParis = Paris\ncloud = cloud\n?",
    "dog dog\nseven seven\ngreen green\n?",
)
_COHERENT = 20
_LOGIT_BYTES = 2**26
_COPIES = 4


@dataclass(frozen=True, eq=False)
class Patchscope:
    """What N vectors say at S lengths: the K likeliest next tokens, likeliest first.

    Args:
        scales: Lengths in units of the mean norm.
        ids_NSK: Token ids.
        probabilities_NSK: Their probabilities, averaged over the prompts; float32.
        random_NSK: What random directions of the same length give them on average; float32.
        is_shared_NSK: Whether the token is among the K likeliest in every prompt.
        coherence_NS: Mean pairwise cosine of the unembeddings of the 20 likeliest tokens.
        random_coherence_S: The same of random directions, on average.
        chosen_N: Index of the scale at which coherence exceeds that of random directions most.
    """

    scales: tuple[float, ...]
    ids_NSK: np.ndarray
    probabilities_NSK: np.ndarray
    random_NSK: np.ndarray
    is_shared_NSK: np.ndarray
    coherence_NS: np.ndarray
    random_coherence_S: np.ndarray
    chosen_N: np.ndarray


@dataclass(frozen=True, eq=False)
class _Said:
    """What vectors of one length say."""

    ids_NK: Tensor
    probabilities_NK: Tensor
    is_shared_NK: Tensor
    random_NK: Tensor
    coherence_N: Tensor


def patchscope(
    handle: ModelHandle,
    prompts: Sequence[Sequence[int]],
    layer: int,
    vectors_ND: Float[Tensor, "N D"],
    random_MD: Float[Tensor, "M D"],
    mean_norm: float,
    scales: Sequence[float],
    k: int,
    done: Callable[[int], object] = lambda n: None,
) -> Patchscope:
    """Read every vector at every length in every prompt.

    Args:
        handle: The model that reads.
        prompts: Token ids of identity prompts; the last token's state is replaced.
        layer: The decoder block after which it is replaced.
        vectors_ND: One vector a row; each is first scaled to `mean_norm`.
        random_MD: Random directions that coherence is compared with, scaled alike.
        mean_norm: Mean norm of the residual stream there.
        scales: Multiples of `mean_norm`, ascending.
        k: Tokens kept of each vector; of a smaller vocabulary, all.
        done: Told how many rows were read.

    Raises:
        UserError: A vector is zero or not finite, or does not fit the model.
    """
    assert prompts
    assert len(random_MD)
    patched = [PatchedPrompt(handle, ids, layer) for ids in prompts]
    unit_ND, unit_MD = _units(vectors_ND), _units(random_MD)
    by_scale: list[_Said] = []
    random_S = []
    for scale in scales:
        length = scale * mean_norm
        mean_V, coherence = _random(handle, patched, unit_MD * length, done)
        random_S.append(coherence)
        by_scale.append(_said(handle, patched, unit_ND * length, mean_V, k, done))
    coherence_NS = torch.stack([s.coherence_N for s in by_scale], 1).numpy()
    random_coherence_S = np.array(random_S)
    return Patchscope(
        scales=tuple(float(s) for s in scales),
        ids_NSK=torch.stack([s.ids_NK for s in by_scale], 1).numpy(),
        probabilities_NSK=torch.stack([s.probabilities_NK for s in by_scale], 1).numpy(),
        random_NSK=torch.stack([s.random_NK for s in by_scale], 1).numpy(),
        is_shared_NSK=torch.stack([s.is_shared_NK for s in by_scale], 1).numpy(),
        coherence_NS=coherence_NS,
        random_coherence_S=random_coherence_S,
        chosen_N=(coherence_NS - random_coherence_S).argmax(1),
    )


def n_rows(n_vectors: int, n_random: int, n_scales: int, n_prompts: int) -> int:
    """Rows that `patchscope` reads."""
    return (n_vectors + n_random) * n_scales * n_prompts


def _units(vectors_ND: Tensor) -> Tensor:
    exact_ND = vectors_ND.double()
    norm_N1 = exact_ND.norm(dim=1, keepdim=True)
    if not torch.isfinite(norm_N1).all() or (norm_N1 == 0).any():
        raise UserError("A vector is zero or not finite, so that it has no direction to read; choose another.")
    return (exact_ND / norm_N1).float()


def _random(
    handle: ModelHandle, patched: Sequence[PatchedPrompt], vectors_MD: Tensor, done: Callable[[int], object]
) -> tuple[Tensor, float]:
    """Mean distribution of random vectors, (V,), and their mean coherence."""
    total_V, coherences = torch.zeros(0), []
    for mean_CV, _ in _distributions(handle, patched, vectors_MD, 1, done):
        summed_V = mean_CV.sum(0)
        total_V = total_V + summed_V if len(total_V) else summed_V
        coherences += _coherence(handle, mean_CV).tolist()
    return total_V / len(vectors_MD), float(np.mean(coherences))


def _said(
    handle: ModelHandle, patched: Sequence[PatchedPrompt], vectors_ND: Tensor, random_V: Tensor, k: int,
    done: Callable[[int], object],
) -> _Said:  # fmt: skip
    parts = []
    for mean_CV, shared_CV in _distributions(handle, patched, vectors_ND, k, done):
        top = mean_CV.topk(min(k, mean_CV.shape[1]))
        is_shared = shared_CV.gather(1, top.indices) == len(patched)
        parts.append((top.indices, top.values, is_shared, random_V[top.indices], _coherence(handle, mean_CV)))
    return _Said(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def _distributions(
    handle: ModelHandle, patched: Sequence[PatchedPrompt], vectors_ND: Tensor, k: int, done: Callable[[int], object]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Next-token distributions averaged over prompts, and in how many a token is among the k likeliest, (C, V) each."""
    step = max(1, _LOGIT_BYTES // (_COPIES * 4 * handle.vocab_size))
    for start in range(0, len(vectors_ND), step):
        vectors_CD = vectors_ND[start : start + step]
        mean_CV = torch.zeros((len(vectors_CD), handle.vocab_size), device=handle.device)
        shared_CV = torch.zeros(mean_CV.shape, dtype=torch.int32, device=mean_CV.device)
        for prompt in patched:
            probabilities_CV = prompt.next_logits(vectors_CD).softmax(-1)
            mean_CV += probabilities_CV / len(patched)
            top_CK = probabilities_CV.topk(min(k, handle.vocab_size)).indices
            shared_CV.scatter_add_(1, top_CK, torch.ones_like(top_CK, dtype=torch.int32))
            done(len(vectors_CD))
        yield mean_CV, shared_CV


def _coherence(handle: ModelHandle, probabilities_NV: Tensor) -> Tensor:
    """Mean pairwise cosine of the unembeddings of each row's likeliest tokens, (N,), float64, on the CPU."""
    k = min(_COHERENT, probabilities_NV.shape[1])
    ids_NK = probabilities_NV.topk(k).indices
    rows_NKD = unembeddings(handle, ids_NK.flatten()).view(*ids_NK.shape, -1)
    unit_NKD = rows_NKD / rows_NKD.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    total_N = unit_NKD.sum(1).square().sum(-1) - unit_NKD.square().sum((1, 2))
    return (total_N / max(k * (k - 1), 1)).cpu()


def unembeddings(handle: ModelHandle, ids_N: Tensor) -> Tensor:
    """Rows of the head's matrix, (N, D), float64; of the input embedding where the head holds no plain matrix."""
    weight = getattr(handle.sites.head, "weight", None)
    if (
        isinstance(weight, Tensor)
        and weight.dim() == 2
        and weight.is_floating_point()
        and len(weight) > int(ids_N.max())
    ):
        rows_ND = weight.detach()[ids_N.to(weight.device)]
    else:
        with torch.no_grad():
            rows_ND = handle.sites.embed(ids_N.to(handle.device))
    return rows_ND.cpu().double()
