"""The table of latents: norms, activity, scaling and seeds side by side, the most telling first."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from diffing.analysis.latents.activity import POSITION_EDGES, Activity
from diffing.analysis.latents.results import LatentGroupRow, LatentRow, LatentTokenRow
from diffing.analysis.latents.sites import Input
from diffing.analysis.latents.tags import relative_norms, tag_names, verdict
from diffing.dictionaries.dictionary import Dictionary


@dataclass(frozen=True, eq=False)
class Latents:
    """Numbers of F latents as columns; NaN where unknown.

    Args:
        kind: What the dictionary reads.
        norms_FM: ‖d_j^m‖ in normalised units.
        raw_FM: The same in raw units.
        relative_F: Relative norms; NaN for a difference.
        cosine_F: Of the two models' decoder rows; NaN for a difference.
        energy_F: Σ over tokens and sites of ‖a_j d_j^m‖², raw units.
        ft_energy_F: The same of the finetuned model's rows alone (of a difference: `energy_F`).
        tags: Tag of each.
        verdicts: Verdict of each.
        rank_F: Place of each, the most telling first.
        specificity_F: 1 − 2·relative norm where the finetuned row is the longer one, else 0; 1 for a difference.
    """

    kind: Input
    norms_FM: np.ndarray
    raw_FM: np.ndarray
    relative_F: np.ndarray
    cosine_F: np.ndarray
    energy_F: np.ndarray
    ft_energy_F: np.ndarray
    tags: tuple[str, ...]
    verdicts: tuple[str | None, ...]
    rank_F: np.ndarray
    specificity_F: np.ndarray

    @property
    def order(self) -> np.ndarray:
        """Latents, the most telling first."""
        return np.argsort(self.rank_F, kind="stable")

    def claimed(self, n: int) -> np.ndarray:
        """The n most telling live latents that the finetuned model has more of (of a difference: of all)."""
        telling = [j for j in self.order.tolist() if self.specificity_F[j] > 0 and self.tags[j] != "dead"]
        return np.sort(np.array(telling[:n], dtype=np.int64))


_ROUNDING = 0.02


def latents_of(dictionary: Dictionary, kind: Input, activity: Activity) -> Latents:
    """Columns of the table that need no model.

    How telling: of a pair (1 − 2r)²·√energy with r the relative norm, base-only and finetuned-only alike; what the
    norms of equal models differ by (|1 − 2r| < 0.02) counts as 0. Of a difference: energy.
    """
    norms_FM = dictionary.norms_FM().detach().double().cpu().numpy()
    raw_FM = norms_FM / dictionary.scale_M.double().cpu().numpy()
    energy_F = activity.squares_F * (raw_FM**2).sum(1)
    alive_F = activity.maximum_F > 0
    if kind == "difference":
        relative_F = cosine_F = np.full(len(energy_F), np.nan)
        specificity_F, telling_F = alive_F.astype(float), energy_F
    else:
        relative_F = relative_norms(norms_FM)
        rows_FMD = dictionary.decoder_FMD.detach().double().cpu()
        products_F = (rows_FMD[:, 0] * rows_FMD[:, -1]).sum(1).numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine_F = np.clip(products_F / norms_FM.prod(1), -1, 1)
        lean_F = np.where(np.abs(1 - 2 * relative_F) < _ROUNDING, 0, 1 - 2 * relative_F)
        specificity_F, telling_F = np.maximum(lean_F, 0), lean_F**2 * np.sqrt(energy_F)
    tags = tuple(tag_names(dictionary, kind, alive_F))
    nu = [activity.scaling.nu(k) for k in ("error", "reconstruction")]
    verdicts = tuple(verdict(t, e, r) for t, e, r in zip(tags, *nu, strict=True))
    believed_F = np.array([v == "specific" for v in verdicts])
    order = np.lexsort((np.arange(len(energy_F)), -energy_F, -telling_F, ~believed_F, ~alive_F))
    rank_F = np.empty(len(order), dtype=np.int64)
    rank_F[order] = np.arange(len(order))
    return Latents(
        kind, norms_FM, raw_FM, relative_F, cosine_F, energy_F, activity.squares_F * raw_FM[:, -1] ** 2, tags, verdicts,
        rank_F, specificity_F * alive_F,
    )  # fmt: skip


def latent_rows(
    latents: Latents, activity: Activity, matches: tuple[np.ndarray, np.ndarray] | None,
    comes_back_F: np.ndarray | None, read: Mapping[tuple[int, str], str],
) -> list[LatentRow]:  # fmt: skip
    """`latents.parquet`.

    Args:
        latents: Columns.
        activity: Of the pass.
        matches: Match and cosine in the other seed; None with one seed.
        comes_back_F: Whether the match has the same tag and is similar; None with one seed.
        read: Tokens read out, by latent and side.
    """
    counts_F, sums_F = activity.counts_GF.sum(0), activity.sums_GF.sum(0)
    is_pair, total = latents.kind == "pair", max(float(latents.energy_F.sum()), 1e-300)
    nu = {k: activity.scaling.nu(k) for k in ("error", "reconstruction", "activation")}
    beta_F = activity.scaling.beta["error"][1]
    return [
        LatentRow(
            latent=j, rank=int(latents.rank_F[j]), tag=latents.tags[j], verdict=latents.verdicts[j],
            is_dead=latents.tags[j] == "dead", frequency=float(activity.frequency_F[j]),
            mean_activation=float(sums_F[j] / counts_F[j]) if counts_F[j] else None,
            maximum=float(activity.maximum_F[j]),
            maximum_raw=float(activity.maximum_F[j] * latents.raw_FM[j, -1]),
            energy_share=float(latents.energy_F[j] / total),
            norm_base=float(latents.norms_FM[j, 0]) if is_pair else None, norm_ft=float(latents.norms_FM[j, -1]),
            norm_base_raw=float(latents.raw_FM[j, 0]) if is_pair else None, norm_ft_raw=float(latents.raw_FM[j, -1]),
            relative_norm=known(latents.relative_F[j]), decoder_cosine=known(latents.cosine_F[j]),
            nu_error=known(nu["error"][j]), nu_reconstruction=known(nu["reconstruction"][j]),
            nu_activation=known(nu["activation"][j]), beta_ft_error=known(beta_F[j]),
            other_seed_cosine=None if matches is None else known(matches[1][j]),
            comes_back=None if comes_back_F is None else bool(comes_back_F[j]),
            promoted=read.get((j, "promoted"), ""), suppressed=read.get((j, "suppressed"), ""),
        )
        for j in latents.order.tolist()
    ]  # fmt: skip


def known(value: Any) -> float | None:
    """The number; None where it is NaN or infinite."""
    return float(value) if np.isfinite(value) else None


def group_rows(
    latents: Latents, activity: Activity, datasets: tuple[str, ...], shown: np.ndarray
) -> list[LatentGroupRow]:
    """`latent_groups.parquet` of some latents."""
    rows: list[LatentGroupRow] = []
    names = [f"{a}–{b - 1}" if b - a > 1 else str(a) for a, b in pairwise(POSITION_EDGES)]
    names.append(f"{POSITION_EDGES[-1]}+")
    for j in shown.tolist():
        for g, name in enumerate(datasets):
            n, count = int(activity.n_tokens_G[g]), int(activity.counts_GF[g, j])
            mean = float(activity.sums_GF[g, j] / count) if count else None
            if n:
                rows.append(LatentGroupRow(j, "dataset", name, None, n, count / n, mean))
        for p, name in enumerate(names):
            n = int(activity.n_tokens_P[p])
            if n:
                share = int(activity.counts_PF[p, j]) / n
                rows.append(LatentGroupRow(j, "position", name, POSITION_EDGES[p], n, share, None))
    return rows


def token_lines(rows: list[LatentTokenRow]) -> dict[tuple[int, str], str]:
    """The tokens of each latent and side in one line."""
    found: dict[tuple[int, str], list[str]] = {}
    for row in rows:
        found.setdefault((row.latent, row.side), []).append(repr(row.token)[1:-1])
    return {key: "  ".join(tokens) for key, tokens in found.items()}
