"""What the dashboard shows of a `model_patching` result."""

from typing import Any

import streamlit as st

from diffing.core.result import Result
from diffing.display.numbers import number
from diffing.methods.model_patching.section import (
    choices,
    curve_table,
    depth,
    factorial_table,
    has_patches,
    overview,
    ranked_prompts,
)
from diffing.ui.blocks import draw
from diffing.ui.paged_table import paged_table
from diffing.ui.parts import one_of, part
from diffing.ui.text import paragraph, quote

_ON_A_PAGE = 5
_CURVE, _FACTORIAL = slice(0, 3), slice(3, None)


def view(result: Result) -> None:
    """Draw the result."""
    part(
        "part",
        {
            "Curve": lambda: _curve(result),
            "Prompts": lambda: _prompts(result),
            "Factorial": lambda: _factorial(result),
            "Tokens": lambda: _tokens(result),
            "Every prompt": lambda: _every_prompt(result),
        },
        "Findings",
    )


def _curve(result: Result) -> None:
    for i, block in enumerate([*overview(result), *depth(result)[_CURVE]]):
        draw(result, block, f"curve-{i}")
    if has_patches(result):
        with st.expander("The curve as a table"):
            draw(result, curve_table(result, _dataset(result, "curve_of")), "curve-table")


def _dataset(result: Result, key: str) -> str:
    return one_of("Dataset", list(dict.fromkeys(result.table("layers")["dataset"].to_pylist())), key)


def _factorial(result: Result) -> None:
    st.markdown("Logit difference of the two tokens, by whose states come first and whose late stack reads them.")
    if not has_patches(result):
        st.info("The texts never part, so that nothing was patched.")
        return
    draw(result, factorial_table(result, _dataset(result, "factorial_of")), "factorial-table")
    for i, block in enumerate(depth(result)[_FACTORIAL][2:]):
        draw(result, block, f"factorial-{i}")
    st.markdown("Main effects and interaction at every layer, in logits.")
    paged_table(result, "factorial", "patching_factorial", picks=("dataset",))


def _tokens(result: Result) -> None:
    for i, block in enumerate(choices(result)):
        draw(result, block, f"tokens-{i}")
    st.markdown("Every token that a model chose where the texts part.")
    paged_table(result, "divergence_tokens", "patching_tokens")


def _every_prompt(result: Result) -> None:
    st.markdown("Every prompt with both texts, the choices where they part, margins and logit differences.")
    paged_table(result, "prompts", "patching_prompts", picks=("dataset",))


def _prompts(result: Result) -> None:
    rows = ranked_prompts(result)
    names = list(dict.fromkeys(result.table("prompts")["dataset"].to_pylist()))
    dataset = one_of("Dataset", names, "dataset")
    mine = [r for r in rows if r["dataset"] == dataset]
    n_pages = max(1, -(-len(mine) // _ON_A_PAGE))
    number_of_page = 1
    if n_pages > 1:
        number_of_page = min(
            int(st.number_input(f"Page of {n_pages} ({len(mine)} prompts)", 1, None, 1, key="prompts_page",
                                bind="query-params", width=220)), n_pages,
        )  # fmt: skip
    st.caption("By the size of the difference. The token at which the texts part is marked.")
    for row in mine[(number_of_page - 1) * _ON_A_PAGE : number_of_page * _ON_A_PAGE]:
        _prompt(row)


def _prompt(row: dict[str, Any]) -> None:
    with st.container(border=True):
        paragraph(_about(row), "d-muted")
        quote(row["prompt"])
        left, right = st.columns(2)
        for column, title, side in ((left, "Base", "base"), (right, "Finetuned", "ft")):
            with column:
                st.markdown(f"**{title}**")
                start, end = row[f"{side}_start"], row[f"{side}_end"]
                quote(row[f"{side}_text"], [] if start is None else [(start, end)])


def _about(row: dict[str, Any]) -> str:
    if row["position"] is None:
        return f"Document {row['document']}: the texts do not part."
    start = f"Document {row['document']}: the texts part after {row['position']} tokens"
    if not row["is_compared"]:
        return f"{start}, at a token that only one of the models knows."
    tie = "; a near tie" if row["is_near_tie"] else ""
    return (
        f"{start}; difference {number(row['effect'])} logits (margins: base {number(row['margin_base'])}, finetuned "
        f"{number(row['margin_ft'])}{tie})."
    )
