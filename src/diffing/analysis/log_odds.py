"""Which words are over-represented in one set of documents against another.

Source: Monroe, Colaresi and Quinn, Fightin' Words (2008), section 3.5: log-odds ratio with an informative Dirichlet
prior; Benjamini and Hochberg, Controlling the False Discovery Rate (1995).
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Num

LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class LogOdds:
    """Each word's log-odds in a minus its log-odds in b.

    Args:
        log_odds_W: The difference; 0 for a word of neither, and for the only word there is.
        z_W: The difference over its standard error.
        p_W: One-sided: how likely so large a z is where the two sets do not differ; 1 for a word of neither.
        is_over_W: Whether the word is over-represented in a at a false discovery rate of 5 %.
    """

    log_odds_W: Float[np.ndarray, " W"]
    z_W: Float[np.ndarray, " W"]
    p_W: Float[np.ndarray, " W"]
    is_over_W: Bool[np.ndarray, " W"]


def log_odds(n_a_W: Num[np.ndarray, " W"], n_b_W: Num[np.ndarray, " W"], prior: float = 1000.0) -> LogOdds:
    """Log-odds ratio with the prior α_w = `prior` · pooled frequency of w.

    With y the counts and n their sum: δ = log((y_a+α)/(n_a+α₀−y_a−α)) − log((y_b+α)/(n_b+α₀−y_b−α)), α₀ = `prior`,
    variance 1/(y_a+α) + 1/(y_b+α).

    Args:
        n_a_W: By word, in how many documents of a it occurs.
        n_b_W: The same of b.
        prior: Strength of the prior, in documents' words.
    """
    assert len(n_a_W) == len(n_b_W)
    assert prior > 0
    assert (np.asarray(n_a_W) >= 0).all()
    assert (np.asarray(n_b_W) >= 0).all()
    a_W, b_W = n_a_W.astype(np.float64), n_b_W.astype(np.float64)
    pooled_W = a_W + b_W
    alpha_W = prior * pooled_W / max(pooled_W.sum(), 1.0)
    seen_W = pooled_W > 0
    tested_W = seen_W & (seen_W.sum() > 1)
    delta_W, z_W, p_W = np.zeros_like(a_W), np.zeros_like(a_W), np.ones_like(a_W)
    log_a, log_b = (_log_odds(y[tested_W], alpha_W[tested_W], y.sum() + prior) for y in (a_W, b_W))
    delta_W[tested_W] = log_a - log_b
    variance = 1 / (a_W + alpha_W)[tested_W] + 1 / (b_W + alpha_W)[tested_W]
    z_W[tested_W] = delta_W[tested_W] / np.sqrt(variance)
    p_W[tested_W] = [0.5 * math.erfc(z / math.sqrt(2)) for z in z_W[tested_W]]
    is_over_W = np.zeros(len(a_W), dtype=bool)
    is_over_W[tested_W] = benjamini_hochberg(p_W[tested_W])
    return LogOdds(delta_W, z_W, p_W, is_over_W)


def _log_odds(y_W: np.ndarray, alpha_W: np.ndarray, total: float) -> np.ndarray:
    return np.log(y_W + alpha_W) - np.log(total - y_W - alpha_W)


def benjamini_hochberg(p_W: Float[np.ndarray, " W"], level: float = LEVEL) -> Bool[np.ndarray, " W"]:
    """Which hypotheses are rejected at false discovery rate `level`.

    Those with p at most the largest p₍ᵢ₎ that is ≤ level · i / W, p₍₁₎ … p₍W₎ in order.

    Args:
        p_W: One p-value each.
        level: False discovery rate.
    """
    ordered = np.sort(p_W)
    passed = ordered <= level * np.arange(1, len(p_W) + 1) / max(len(p_W), 1)
    return p_W <= ordered[passed][-1] if passed.any() else np.zeros(len(p_W), dtype=bool)
