"""What the dashboard shows of a `weight_amplification` result."""

import streamlit as st

from diffing.core.result import Result
from diffing.display.numbers import number
from diffing.methods.weight_amplification.plan import WHOLE
from diffing.methods.weight_amplification.section import measure_table, named, numbers, parts
from diffing.ui.blocks import draw
from diffing.ui.paged_table import paged_table
from diffing.ui.parts import one_of, one_of_many, part
from diffing.ui.text import plain, quote

_COLUMNS = 3


def view(result: Result) -> None:
    """Draw the result."""
    part(
        "part",
        {
            "Numbers": lambda: _blocks(result, "numbers"),
            "Parts": lambda: _blocks(result, "parts"),
            "Texts": lambda: _texts(result),
            "Tokens and phrases": lambda: _words(result),
            "Every text": lambda: _every_text(result),
        },
        "Findings",
    )


def _blocks(result: Result, which: str) -> None:
    blocks = numbers(result) if which == "numbers" else parts(result)
    for i, block in enumerate(blocks):
        draw(result, block, f"amplification-{which}-{i}")
    if which == "parts":
        if not blocks:
            st.info("Nothing changed in this pair, so that there are no parts to scale.")
        paged_table(result, "settings", "amplification_settings")


def _texts(result: Result) -> None:
    rows = result.table("texts").to_pylist()
    prompts = {f"{r['prompt'] + 1}. {r['kind']}: {r['prompt_text'] or 'empty'}": r["prompt"] for r in rows}
    chosen = prompts[one_of_many("Prompt", list(prompts), "prompt")]
    of_parts = [p for p in dict.fromkeys(r["part"] for r in rows) if p != WHOLE]
    which = one_of("Of the change", [WHOLE, "parts"], "of") if of_parts else WHOLE
    mine = [r for r in rows if r["prompt"] == chosen and (r["part"] == WHOLE) == (which == WHOLE)]
    for start in range(0, len(mine), _COLUMNS):
        for column, row in zip(st.columns(_COLUMNS), mine[start : start + _COLUMNS], strict=False):
            with column, st.container(border=True):
                name = "" if row["part"] == WHOLE else f"{row['part']} "
                st.markdown(f"**{plain(name + named(row['factor']))}**")
                quote(row["text"])
                st.caption(
                    f"log p {number(row['log_prob_base'])} base, {number(row['log_prob_ft'])} finetuned; "
                    f"repeated {number(row['repetition'])}"
                )


def _words(result: Result) -> None:
    draw(result, measure_table(result), "amplification-measures")
    st.markdown(
        "**token_scores**: tokens by their part in the mean KL at the factor that is looked at.  \n"
        "**phrases**: of each factor's texts beside the base's, by log-odds."
    )
    table = one_of("Table", ["token_scores", "phrases"], "words_of")
    paged_table(result, table, f"amplification_{table}", picks=("factor",) if table == "phrases" else ())


def _every_text(result: Result) -> None:
    st.markdown("Every text; log-probabilities are means per token, in nats.")
    paged_table(result, "texts", "amplification_texts", picks=("part", "kind"), hidden=("setting",))
