"""Choosing the next token from logits, with random numbers that depend on a seed alone.

Sampling is by the Gumbel-max trick: the argmax of log-probabilities plus Gumbel noise is a draw from the
distribution. Runs with one seed share their noise (common random numbers), so that texts of two models, or with and
without steering, differ only where their distributions do.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffing.core.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: temperature first, then `top_k`, then `top_p` of what is left.

    Args:
        max_new_tokens: At most so many tokens.
        temperature: Divides the logits; 0 takes the likeliest token always.
        top_p: Only the fewest likeliest tokens that together have this probability.
        top_k: Only the so many likeliest tokens; 0: all.
        seed: Determines every draw.

    Raises:
        UserError: A value makes no sense.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; give 1 or more.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature is {self.temperature}; give 0 (always the likeliest token) or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; give a probability above 0, up to 1 (which leaves nothing out).")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; give a number of tokens, or 0 for all.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; give a whole number from 0 to 2^63 − 1.")


class GumbelNoise:
    """Standard Gumbel noise, one vector per token; nothing else that draws random numbers changes it."""

    def __init__(self, seed: int) -> None:
        self._seeds = torch.Generator().manual_seed(seed)

    def uniform(self, width: int) -> Tensor:
        """The next vector before it is made Gumbel noise: uniform on [0, 1), shape (width,), float64.

        Each has a generator of its own, so that models whose vocabularies differ in width share the noise of all
        ids that both have, at every step.
        """
        seed = int(torch.randint(2**62, (), generator=self._seeds, device="cpu"))
        own = torch.Generator().manual_seed(seed)
        return torch.rand(width, dtype=torch.float64, generator=own, device="cpu")

    def draw(self, width: int) -> Tensor:
        """The next vector, shape (width,), float64."""
        return _gumbel(self.uniform(width))


def _gumbel(uniform: Tensor) -> Tensor:
    return -(-uniform.log()).log()


def choose(logits_K: Tensor, sampling: Sampling, noise: GumbelNoise, ids_K: Tensor | None = None) -> int:
    """The id of the next token.

    Args:
        logits_K: Finite or −∞, not all −∞, on the CPU.
        sampling: How to choose.
        noise: Where randomness comes from; one vector is drawn unless the temperature is 0.
        ids_K: Ascending ids that the logits are of; no other is drawn. None: all from 0.

    Source: Maddison, Tarlow & Minka, A* Sampling (2014), section 2.
    """
    if sampling.temperature == 0:
        index = int(logits_K.argmax())
    else:
        uniform_V = noise.uniform(len(logits_K) if ids_K is None else int(ids_K[-1]) + 1)
        index = _drawn(logits_K, sampling, uniform_V if ids_K is None else uniform_V[ids_K])
    return index if ids_K is None else int(ids_K[index])


def _drawn(logits_K: Tensor, sampling: Sampling, uniform_K: Tensor) -> int:
    """Where (logits − max) / T plus noise is largest; noise is made where it can win only."""
    best = int(logits_K.argmax())
    top = float(logits_K[best])
    if sampling.top_k or sampling.top_p < 1:
        scaled_K = (logits_K.double() - top) / sampling.temperature
        index = kept_ids(scaled_K, sampling.top_k, sampling.top_p).sort().values
    else:
        lead = float(_gumbel(uniform_K[best]) - _gumbel(uniform_K.max()))
        slack = 1e-5 * (1 + abs(top))
        index = (logits_K >= top + sampling.temperature * lead - slack).nonzero().flatten()
    scaled = (logits_K[index].double() - top) / sampling.temperature
    return int(index[(scaled + _gumbel(uniform_K[index])).argmax()])


def restricted(logits_V: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with −∞ for all tokens but those of `kept_ids`."""
    ids = kept_ids(logits_V, top_k, top_p)
    return torch.full_like(logits_V, -torch.inf).index_copy_(0, ids, logits_V[ids])


def kept_ids(logits_V: Tensor, top_k: int, top_p: float) -> Tensor:
    """The `top_k` likeliest tokens (0: all), and of these the nucleus of mass `top_p`.

    Of equally likely tokens those with the lower id come first, as argmax has it.

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration (2020), section 3.1.
    """
    is_cut = 0 < top_k < len(logits_V)
    ids = _likeliest(logits_V, top_k).sort().values if is_cut else torch.arange(len(logits_V))
    return ids[_nucleus(logits_V[ids], top_p)] if top_p < 1 else ids


def _likeliest(logits_V: Tensor, top_k: int) -> Tensor:
    least = logits_V.topk(top_k).values[-1]
    above = (logits_V > least).nonzero().flatten()
    return torch.cat([above, (logits_V == least).nonzero().flatten()[: top_k - len(above)]])


def _nucleus(logits_V: Tensor, top_p: float) -> Tensor:
    """Ids of the nucleus. Tokens under (1 − p)/V have less than 1 − p together, so they are not sorted."""
    probabilities_V = logits_V.softmax(-1)
    ids = (probabilities_V >= (1 - top_p) / len(logits_V)).nonzero().flatten()
    ordered, order = probabilities_V[ids].sort(descending=True, stable=True)
    mass_before = ordered.cumsum(0) - ordered
    return ids[order[mass_before < top_p]]
