"""One row a prompt, and the tokens and documents ranked."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from diffing.analysis.bootstrap import mean_stderr
from diffing.analysis.token_text import Decoder, text_with_offsets
from diffing.core.tables import DocumentScoreRow, TokenScoreRow, table_of
from diffing.methods.model_patching.results import DivergenceTokenRow, PromptRow
from diffing.methods.model_patching.statistics import Measured
from diffing.methods.model_patching.texts import Texts


def prompt_table(data: Measured, names: Mapping[int, str], tokenizer: Decoder) -> pa.Table:
    """Every prompt in corpus order."""
    places = {i: s for s, i in enumerate(data.compared)}
    return table_of(PromptRow, [_prompt(data, t, places.get(i), names, tokenizer) for i, t in enumerate(data.texts)])


def _prompt(data: Measured, texts: Texts, s: int | None, names: Mapping[int, str], tokenizer: Decoder) -> PromptRow:
    opening, found = texts.opening, data.factorial
    base_text, base_span = _after(tokenizer, opening.ids, texts.base_ids, texts.position)
    ft_text, ft_span = _after(tokenizer, opening.ids, texts.ft_ids, texts.position)
    return PromptRow(
        dataset=opening.dataset,
        document=opening.document,
        n_prompt_tokens=len(opening.ids),
        prompt=tokenizer.decode(list(opening.ids)),
        position=texts.position,
        is_compared=s is not None,
        is_near_tie=s is not None and bool(data.is_near_tie_S[s]),
        base_text=base_text,
        ft_text=ft_text,
        base_start=base_span[0],
        base_end=base_span[1],
        ft_start=ft_span[0],
        ft_end=ft_span[1],
        base_token_id=texts.base_token,
        base_token=None if texts.base_token is None else names[texts.base_token],
        ft_token_id=texts.ft_token,
        ft_token=None if texts.ft_token is None else names[texts.ft_token],
        margin_base=_of(found.margin_base_S, s),
        margin_ft=_of(found.margin_ft_S, s),
        base_difference=_of(found.bb_S, s),
        ft_difference=_of(found.ff_S, s),
        effect=_of(found.effect_S, s),
        base_into_ft=() if s is None else tuple(found.bf_SP[s].tolist()),
        ft_into_base=() if s is None else tuple(found.fb_SP[s].tolist()),
    )


def _of(values_S: np.ndarray, s: int | None) -> float | None:
    return None if s is None else float(values_S[s])


def _after(
    tokenizer: Decoder, prompt_ids: tuple[int, ...], ids: tuple[int, ...], position: int | None
) -> tuple[str, tuple[int | None, int | None]]:
    """What follows the prompt as text, and where the token at `position` stands in it."""
    text, offsets = text_with_offsets(tokenizer, [*prompt_ids, *ids])
    n_prompt = len(prompt_ids)
    start = offsets[n_prompt][0] if ids else len(text)
    if position is None:
        return text[start:], (None, None)
    first, last = offsets[n_prompt + position]
    return text[start:], (first - start, last - start)


def token_score_table(data: Measured, names: Mapping[int, str]) -> pa.Table:
    """Tokens chosen where texts part: share of prompts in which the finetuned model did, minus that of the base."""
    net: dict[int, list[float]] = {}
    for texts in data.texts:
        if texts.ft_token is not None and texts.base_token is not None:
            net.setdefault(texts.ft_token, []).append(1.0)
            net.setdefault(texts.base_token, []).append(-1.0)
    n = len(data.texts)
    total, squares = (np.array([f(v) for v in net.values()], dtype=np.float64) for f in (sum, len))
    errors = mean_stderr(total, squares, n, n)
    rows = [
        TokenScoreRow(token, names[token], float(t) / n, None if np.isnan(e) else float(e), None)
        for token, t, e in zip(net, total, errors, strict=True)
    ]
    return table_of(TokenScoreRow, sorted(rows, key=lambda r: (-r.score, r.token_id)))


def divergence_token_table(data: Measured, scores: pa.Table) -> pa.Table:
    """How often each model chose a token where texts part, in the order of `scores`."""
    n = len(data.texts)
    ft = [t.ft_token for t in data.texts]
    base = [t.base_token for t in data.texts]
    rows = []
    for row in scores.to_pylist():
        n_ft, n_base = ft.count(row["token_id"]), base.count(row["token_id"])
        rows.append(DivergenceTokenRow(row["token_id"], row["token"], n_ft, n_base, n_ft / n, n_base / n))
    return table_of(DivergenceTokenRow, rows)


def document_score_table(prompts: pa.Table) -> pa.Table:
    """Documents by the models' difference at the divergence; 0 where there is none."""
    rows = [DocumentScoreRow(r["dataset"], r["document"], r["effect"] or 0.0) for r in prompts.to_pylist()]
    return table_of(DocumentScoreRow, sorted(rows, key=lambda r: (-r.score, r.dataset, r.document)))
