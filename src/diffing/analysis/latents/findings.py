"""Headline numbers and evidence of a dictionary, read from its tables."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from diffing.analysis.latents.results import CausalRow, CausalTextMeanRow, LatentRow, QualityRow, SplicedRow
from diffing.core.evidence import LIMIT, Evidence, ExampleEvidence, ScalarEvidence, Span, TextEvidence, TokenEvidence

_MOST_LATENTS = 20


def summary(
    latents: Sequence[LatentRow], quality: Sequence[QualityRow], spliced: Sequence[SplicedRow],
    causal: Sequence[CausalRow], texts: Sequence[CausalTextMeanRow], held_out: bool,
) -> tuple[ScalarEvidence, ...]:  # fmt: skip
    """Quality on held-out documents, counts of tags, loss recovered, and effects beside those of random latents."""
    where = "held-out" if held_out else "trained on"
    whole = [r for r in quality if r.dataset == "all" and r.is_held_out == held_out]
    found = [ScalarEvidence(f"FVE {r.site} ({where})", r.fve, unit="share") for r in whole]
    found += [ScalarEvidence(f"L0 ({where})", r.l0, unit="latents per token") for r in whole[:1]]
    found.append(ScalarEvidence("dead latents", _share(latents, lambda r: r.is_dead), unit="share"))
    if any(r.relative_norm is not None for r in latents):
        found += _counts(latents)
    known = [r for r in latents if r.comes_back is not None and not r.is_dead]
    if known:
        back = _share(known, lambda r: r.comes_back)
        found.append(ScalarEvidence("live latents that come back with another seed", back, unit="share"))
    found += [ScalarEvidence(f"loss recovered · {r.model} · {r.dataset}", r.recovered, unit="share") for r in spliced]
    return (*found, *causal_scalars(causal), *text_scalars(texts))


def _counts(latents: Sequence[LatentRow]) -> list[ScalarEvidence]:
    """How many latents have the tags of one model alone, and how many of these are believed."""
    counts = {
        "latents tagged ft_only": sum(r.tag == "ft_only" for r in latents),
        "of these specific by latent scaling": sum(r.verdict == "specific" for r in latents),
        "latents tagged base_only": sum(r.tag == "base_only" for r in latents),
    }
    return [ScalarEvidence(name, float(n), unit="latents") for name, n in counts.items()]


def _share(rows: Sequence[LatentRow], test: Any) -> float:
    return sum(bool(test(r)) for r in rows) / max(1, len(rows))


def causal_scalars(causal: Sequence[CausalRow]) -> list[ScalarEvidence]:
    """KL that the claimed latents cause, beside the mean of the random sets."""
    found = []
    for claimed in (r for r in causal if r.latents == "claimed"):
        random = [
            r.kl for r in causal if (r.dataset, r.change, r.latents) == (claimed.dataset, claimed.change, "random")
        ]
        null = sum(random) / len(random) if random else None
        name = f"KL when claimed latents are {'ablated' if claimed.change == 'ablate' else 'added'} · {claimed.dataset}"
        found.append(ScalarEvidence(name, claimed.kl, null=null, unit="nats"))
    return found


def text_scalars(texts: Sequence[CausalTextMeanRow]) -> list[ScalarEvidence]:
    """How far the claimed latents move what is written toward or away from the finetuned model, beside random sets."""
    found = []
    for claimed in (r for r in texts if r.latents == "claimed"):
        random = [r.change_of_score for r in texts if (r.change, r.latents) == (claimed.change, "random")]
        null = sum(random) / len(random) if random else None
        name = f"log p − log q of texts when claimed latents are held {'down' if claimed.change == 'ablate' else 'up'}"
        found.append(
            ScalarEvidence(name, claimed.change_of_score, claimed.low, claimed.high, null, "nats/token, change")
        )
    return found


def evidence(
    scalars: Sequence[ScalarEvidence], latents: Sequence[LatentRow], examples: pa.Table, token_scores: pa.Table,
    specific: set[int], claimed: bool | None,
) -> Evidence:  # fmt: skip
    """The findings in the shared shape.

    Args:
        scalars: The headline numbers.
        latents: The latents, most telling first.
        examples: `examples.parquet`.
        token_scores: `token_scores.parquet`, ranked.
        specific: Latents that the finetuned model has more of.
        claimed: False on a null pair, else None.
    """
    tops = [r for r in latents if r.latent in specific and not r.is_dead][:_MOST_LATENTS]
    tokens = token_scores.slice(0, LIMIT).to_pylist() if specific else []
    return Evidence(
        tokens=tuple(
            TokenEvidence(r["token"], (r["token_id"],), r["score"], r["stderr"], None, claimed)
            for r in tokens
            if r["score"] > 0
        ),
        examples=tuple(_examples(tops, examples, claimed)),
        texts=tuple(
            TextEvidence(f"latent {r.latent} promotes: {r.promoted}", r.energy_share, None, "logit lens", claimed)
            for r in tops
            if r.promoted
        ),
        scalars=tuple(ScalarEvidence(s.name, s.value, s.low, s.high, s.null, s.unit, claimed) for s in scalars),
    )


def _examples(tops: Sequence[LatentRow], examples: pa.Table, claimed: bool | None) -> list[ExampleEvidence]:
    """The strongest example of each telling latent, strongest latent first."""
    import pyarrow.compute as pc

    best = examples.filter((pc.field("kind") == "top") & (pc.field("rank") == 0)).to_pylist()
    by_latent = {r["unit"]: r for r in best}
    rows = [by_latent[r.latent] for r in tops if r.latent in by_latent]
    return [
        ExampleEvidence(
            r["text"], r["score"],
            tuple(
                Span(s, e, v) for s, e, v in zip(r["starts"], r["ends"], r["values"], strict=True) if e > s and v
            ),
            r["dataset"], claimed,
        )
        for r in rows
    ]  # fmt: skip
