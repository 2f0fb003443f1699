"""Headline numbers and evidence, read from the tables."""

import pyarrow as pa

from diffing.core.evidence import LIMIT, Evidence, ScalarEvidence, TextEvidence, TokenEvidence
from diffing.methods.weight_amplification.plan import WHOLE

_NAMES = {"kl": "mean KL", "delta_nll": "mean ΔNLL"}
_MEASURES = {"repetition": "repetition of texts", "capitals": "capitals in chat answers"}


def summary(tables: dict[str, pa.Table], factor: float, claimed: bool | None) -> tuple[ScalarEvidence, ...]:
    """KL at factor 1 and at the one looked at and ΔNLL at 1, beside factor 0, the null; how KL grows; the texts' form.

    Args:
        tables: The method's.
        factor: The factor that is looked at.
        claimed: False on a null pair, else None: the method is not calibrated.
    """
    effects = [r for r in tables["effects"].to_pylist() if r["part"] == WHOLE]
    nulls = {(r["dataset"], r["metric"]): r["mean"] for r in effects if r["factor"] == 0}
    shown = sorted({1.0, factor})
    found = [
        ScalarEvidence(
            f"{_NAMES[r['metric']]} ×{r['factor']:g} · {r['dataset']}", r["mean"], r["low"], r["high"],
            nulls[r["dataset"], r["metric"]], "nats/token", claimed,
        )
        for metric in _NAMES
        for r in effects
        if r["metric"] == metric and r["factor"] in (shown if metric == "kl" else [1.0])
    ]  # fmt: skip
    found += [
        ScalarEvidence(
            f"exponent of KL ×{r['from_factor']:g} to ×{r['to_factor']:g} · {r['dataset']}", r["exponent"], r["low"],
            r["high"], None, "", claimed,
        )
        for r in tables["growth"].to_pylist()
        if r["from_factor"] == 1
    ]  # fmt: skip
    return (*found, *_text_scalars(tables["text_measures"], shown, claimed))


def _text_scalars(measures: pa.Table, shown: list[float], claimed: bool | None) -> list[ScalarEvidence]:
    rows = [r for r in measures.to_pylist() if r["part"] == WHOLE]
    kinds = {"repetition": "all", "capitals": "chat"}
    chosen = [r for r in rows if kinds.get(r["measure"]) == r["kind"]]
    nulls = {r["measure"]: r["mean"] for r in chosen if r["factor"] == 0}
    return [
        ScalarEvidence(
            f"{_MEASURES[r['measure']]} ×{r['factor']:g}", r["mean"], r["low"], r["high"], nulls.get(r["measure"]),
            "share", claimed,
        )
        for measure in _MEASURES
        for r in chosen
        if r["measure"] == measure and r["factor"] in shown
    ]  # fmt: skip


def evidence(
    tables: dict[str, pa.Table], factor: float, scalars: tuple[ScalarEvidence, ...], claimed: bool | None
) -> Evidence:
    """The findings in the shared shape; texts by how much likelier the finetuned model finds them than the base.

    Args:
        tables: The method's.
        factor: The factor that is looked at.
        scalars: From `summary`.
        claimed: As for `summary`.
    """
    risen = [r for r in tables["token_scores"].slice(0, LIMIT).to_pylist() if r["score"] > 0]
    texts = [
        (r["log_prob_ft"] - r["log_prob_base"], r)
        for r in tables["texts"].to_pylist()
        if r["part"] == WHOLE and r["factor"] == factor and r["differs"]
    ]
    ranked = sorted((t for t in texts if t[0] > 0), key=lambda t: (-t[0], t[1]["prompt"]))
    return Evidence(
        tokens=tuple(
            TokenEvidence(r["token"], (r["token_id"],), r["score"], r["stderr"], None, claimed) for r in risen
        ),
        texts=tuple(TextEvidence(r["text"], s, r["prompt_text"], f"change ×{factor:g}", claimed) for s, r in ranked),
        scalars=scalars,
    )
