"""Try it: one text through both models; every token's values, and what each model expected next."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from diffing.core.blocks import HeatToken, Table
from diffing.core.config import fingerprint
from diffing.core.errors import UserError
from diffing.core.method import load_method
from diffing.core.probing import TokenValues
from diffing.core.result import Result
from diffing.core.specs import PairSpec
from diffing.dashboard.catalog import Entry
from diffing.dashboard.pages.picking import loaded, pick_subject, state_of
from diffing.dashboard.pages.sampling import SamplingChoice, sampling_controls
from diffing.dashboard.site import Site
from diffing.dashboard.subjects import Subject
from diffing.dashboard.writing import Writing, prompt_of, write_together
from diffing.display.numbers import number
from diffing.ui.figures import plotly
from diffing.ui.heatmap import choosable_heatmap
from diffing.ui.html_tables import table
from diffing.ui.kept import kept_choice
from diffing.ui.parts import one_of
from diffing.ui.text import paragraph, plain, quoted

if TYPE_CHECKING:
    from diffing.models.pair import ModelPair
    from diffing.pipeline.probing import ProbedText

Chat = list[dict[str, str]]
_MOST_CHARACTERS = 20_000
_IN_URL = 2_000
_NONE = "none"
_ROLES = ("system", "user", "assistant")
_EXAMPLE = "The capital of France is Paris. Ask me anything else you want to know."


def page(site: Site) -> None:
    """Draw the page."""
    st.title("Try a text on both models")
    entries = site.catalog.entries()
    subject = pick_subject(site, entries)
    spec = state_of(site, subject, entries)
    given = _input()
    left, right = st.columns([1, 2], vertical_alignment="bottom")
    with left:
        first = one_of("Generate first", ["no", "base", "finetuned"], "first")
    choice = sampling_controls() if first != "no" else None
    tried = _dictionary(entries, subject)
    if right.button("Analyse", type="primary", icon=":material/play_arrow:", key="analyse"):
        _analyse(site, spec, given, first, choice, tried)
    found = st.session_state.get("tried")
    if found is None:
        paragraph("Nothing is computed before you ask for it.", "d-muted")
    elif found["spec"] != fingerprint(spec):
        paragraph("The analysis that was shown is of another pair; analyse again.", "d-muted")
    else:
        _show(found["text"])


def _dictionary(entries: Sequence[Entry], subject: Subject) -> Result | None:
    """A control that chooses a dictionary of this pair to try on the text, where there is one."""
    mine = {
        e.id: e
        for e in entries
        if e.is_readable and Subject(e.model, e.organism, e.variant) == subject and _has_trial(e.method)
    }
    if not mine:
        return None
    chosen = kept_choice(
        st.container(), "Dictionary", [_NONE, *mine], "dictionary",
        format_func=lambda i: i if i == _NONE else f"{mine[i].method} · {i.rpartition('/')[2][:8]}",
    )  # fmt: skip
    return None if chosen == _NONE else Result(mine[chosen].folder)


def _has_trial(method: str) -> bool:
    try:
        return load_method(method).trial is not None
    except UserError:
        return False


def _input() -> str | Chat:
    if one_of("Input", ["text", "chat"], "input", is_labelled=False) == "text":
        return st.text_area(
            "Text", _EXAMPLE, key="text", bind="query-params", max_chars=_MOST_CHARACTERS, height=140
        ) or ""  # fmt: skip
    st.caption("A row for each turn; the last one may be an answer to look at.")
    rows = st.data_editor(
        _chat_from_url(), num_rows="dynamic", hide_index=True, key="chat_rows",
        column_config={
            "role": st.column_config.SelectboxColumn("role", options=list(_ROLES), required=True, width="small"),
            "content": st.column_config.TextColumn("content", width="large", max_chars=_MOST_CHARACTERS),
        },
    )  # fmt: skip
    chat = [{"role": str(r["role"]), "content": str(r["content"])} for r in rows if r.get("content")]
    text = json.dumps(chat, ensure_ascii=False)
    if len(text) <= _IN_URL and chat != _DEFAULT_CHAT:
        st.query_params["chat"] = text
    return chat


_DEFAULT_CHAT: Chat = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
]


def _chat_from_url() -> Chat:
    if "chat_start" not in st.session_state:
        st.session_state["chat_start"] = _parsed(st.query_params.get("chat")) or _DEFAULT_CHAT
    return st.session_state["chat_start"]


def _parsed(text: str | None) -> Chat | None:
    try:
        rows = json.loads(text or "")
        chat = [{"role": str(r["role"]), "content": str(r["content"])} for r in rows]
    except (ValueError, TypeError, KeyError):
        return None
    return chat if all(r["role"] in _ROLES for r in chat) else None


def _analyse(
    site: Site,
    spec: PairSpec,
    given: str | Chat,
    first: str,
    choice: SamplingChoice | None,
    tried: Result | None,
) -> None:
    st.session_state.pop("tried", None)
    if not given or (isinstance(given, str) and not given.strip()):
        raise UserError("There is no text yet; write some.")
    pair = loaded(site, spec)
    if choice is not None:
        given = _continued(site, pair, given, first, choice)
    from diffing.pipeline.probing import probe_text, probing_methods

    with st.spinner("Reading the text through both models …"), site.pairs.lock:
        found = probe_text(pair, given, probing_methods(), results=() if tried is None else (tried,))
    st.session_state["n_tried"] = st.session_state.get("n_tried", 0) + 1
    st.session_state["tried"] = {"spec": fingerprint(spec), "text": found}
    st.session_state.pop("at", None)


def _continued(site: Site, pair: "ModelPair", given: str | Chat, side: str, choice: SamplingChoice) -> str | Chat:
    """The text with what one of the models writes after it."""
    from diffing.models.generation import end_ids, generate

    is_chat = not isinstance(given, str)
    turns = [("user", given)] if isinstance(given, str) else [(r["role"], r["content"]) for r in given]
    if is_chat and turns[-1][0] == "assistant":
        turns = turns[:-1]
    if not turns:
        raise UserError("The chat has no turn to answer; write what the user says.")
    handle = pair.base if side == "base" else pair.finetuned
    prompt = prompt_of(pair, side, "chat" if is_chat else "plain text", turns)
    place = st.empty()
    writing = Writing(is_answer=is_chat)
    stream = generate(handle, prompt, choice.sampling(), end_ids(handle, pair.rules), None, site.pairs.lock)
    write_together({side: stream}, {side: writing}, lambda name, w: place.html(quoted(w.text)))
    if isinstance(given, str):
        return given + writing.text
    return [*({"role": role, "content": content} for role, content in turns), _turn(writing.text)]


def _turn(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _show(found: "ProbedText") -> None:
    for note in found.notes:
        st.caption(f":material/info: {plain(note)}")
    values = [v for several in found.values.values() for v in several]
    chosen = _metric(values)
    before = min(int(st.session_state.get("at", _peak(chosen))), len(found.tokens) - 1)
    unit = f"{chosen.name} {chosen.unit}".strip()
    key = f"tried_{st.session_state['n_tried']}"
    at = choosable_heatmap(_heat(found, chosen), _top(chosen), unit, key, before, chosen.is_signed)
    st.session_state["at"] = at
    st.subheader(f"At token {at}: {plain(repr(found.tokens[at]))}")
    left, right = st.columns(2)
    for column, side in ((left, "base"), (right, "finetuned")):
        with column:
            _predictions(found, side, at)
    _values_at(values, at)
    _profile(values, at)


def _metric(values: Sequence[TokenValues]) -> TokenValues:
    names = list(dict.fromkeys(v.name for v in values))
    name = one_of("Colour by", names, "by")
    layers = {v.layer: v for v in values if v.name == name}
    if None in layers:
        return layers[None]
    numbers = sorted(layer for layer in layers if layer is not None)
    middle = numbers[len(numbers) // 2]
    layer = st.select_slider("Layer", numbers, middle, key="layer", bind="query-params") if len(numbers) > 1 else middle
    return layers[layer]


def _top(values: TokenValues) -> float:
    """Upper end of the scale; the first token, often an attention sink, does not set it."""
    known = [abs(v) for v in (values.values_T[1:] or values.values_T) if v is not None]
    return max(known, default=0.0)


def _peak(values: TokenValues) -> int:
    known = [-1.0 if v is None else abs(v) for v in values.values_T]
    rest = known[1:] or known
    return rest.index(max(rest)) + (len(known) - len(rest))


def _heat(found: "ProbedText", chosen: TokenValues) -> list[HeatToken]:
    top = _top(chosen)
    base, finetuned = found.predictions.base, found.predictions.finetuned
    tokens = []
    for t, (text, value) in enumerate(zip(found.tokens, chosen.values_T, strict=True)):
        lines = [
            f"{text!r} (id {found.token_ids[t]})", found.roles[t] + (", template" if found.is_template[t] else ""),
            f"{chosen.name} {number(value)} {chosen.unit}".strip(),
            f"base predicts {found.strings[int(base.ids_TK[t, 0])]!r}",
            f"finetuned predicts {found.strings[int(finetuned.ids_TK[t, 0])]!r}",
        ]  # fmt: skip
        shown = None if value is None else max(-top, min(value, top))
        tokens.append(HeatToken(text, shown, tuple(lines)))
    return tokens


def _predictions(found: "ProbedText", side: str, at: int) -> None:
    mine = found.predictions.base if side == "base" else found.predictions.finetuned
    other = "finetuned" if side == "base" else "base"
    rows = tuple(
        (found.strings[int(i)], float(p), float(q))
        for i, p, q in zip(mine.ids_TK[at], mine.probabilities_TK[at], mine.other_probabilities_TK[at], strict=True)
    )
    probability, rank = mine.next_probability_T[at], mine.next_rank_T[at]
    follows = "" if probability is None else (
        f"{found.tokens[at + 1]!r} follows: probability {number(probability)}, rank {number(rank)}."
    )  # fmt: skip
    st.markdown(f"**The {side} model expects next**")
    table(Table(("token", "probability", f"in the {other}"), rows, follows, ("token",)))


def _values_at(values: Sequence[TokenValues], at: int) -> None:
    rows = tuple((v.name, v.values_T[at], v.unit) for v in values if v.layer is None)
    if rows:
        table(Table(("quantity", "value", "unit"), rows, "Of the prediction made at this token."))


def _profile(values: Sequence[TokenValues], at: int) -> None:
    """The chosen token's values over the layers, one line for each quantity without a unit."""
    names = dict.fromkeys(v.name for v in values if v.layer is not None)
    if not names:
        return
    name = "relative difference" if "relative difference" in names else next(iter(names))
    mine = sorted((v.layer, v.values_T[at]) for v in values if v.name == name and v.layer is not None)
    trace: dict[str, Any] = {
        "type": "scatter", "mode": "lines+markers", "x": [layer for layer, _ in mine], "y": [v for _, v in mine],
        "line": {"color": "#0072B2"},
    }  # fmt: skip
    layout = {"xaxis": {"title": "layer"}, "yaxis": {"title": name, "rangemode": "tozero"}, "height": 280}
    plotly({"data": [trace], "layout": layout}, "profile", f"Line of the {name} at the chosen token over the layers.")
