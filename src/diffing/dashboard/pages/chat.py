"""Chat: one conversation with the base, the finetuned model, or both side by side."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import streamlit as st

from diffing.analysis.text_diff import diff_spans
from diffing.core.config import fingerprint
from diffing.core.errors import UserError
from diffing.core.specs import PairSpec
from diffing.dashboard.pages.picking import SIDES, loaded, pick_subject, state_of
from diffing.dashboard.pages.sampling import SamplingChoice, prompt_kind, sampling_controls, stop_button
from diffing.dashboard.site import Site
from diffing.dashboard.writing import Writing, prompt_of, write_together
from diffing.display.numbers import number
from diffing.ui.parts import one_of
from diffing.ui.text import paragraph, plain, quote, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffing.models.generation import GeneratedToken
    from diffing.models.pair import ModelPair

_MOST_CHARACTERS = 20_000


@dataclass
class Turn:
    """What the user said, what each side answered, and how often it was drawn anew."""

    user: str
    answers: dict[str, Writing] = field(default_factory=dict)
    draw: int = 0


@dataclass
class Conversation:
    """Turns with one pair; `pending` is the turn whose answers are asked for."""

    pair: str
    turns: list[Turn] = field(default_factory=list)
    pending: int | None = None


def page(site: Site) -> None:
    """Draw the page."""
    st.title("Chat with both models")
    entries = site.catalog.entries()
    spec = state_of(site, pick_subject(site, entries), entries)
    left, middle, right = st.columns([2, 2, 3], vertical_alignment="bottom")
    with left:
        asked = one_of("Ask", ["both", *SIDES], "ask")
    with middle:
        kind = prompt_kind()
    marks = right.toggle("Highlight where the answers differ", value=True, key="marks", bind="query-params")
    system = st.text_input("System prompt", key="system", bind="query-params", max_chars=2000) if kind == "chat" else ""
    choice = sampling_controls()
    sides = SIDES if asked == "both" else (asked,)
    talk = _conversation(spec)
    said = st.chat_input("Say something to the models", key="said", max_chars=_MOST_CHARACTERS)
    if said:
        talk.turns.append(Turn(said))
        talk.pending = len(talk.turns) - 1
    if not talk.turns:
        paragraph("Both models are told the same; each goes on from its own answers.", "d-muted")
    for i in range(len(talk.turns)):
        _user(talk, i)
        if i == talk.pending:
            talk.pending = None
            _answer(site, spec, talk, i, sides, kind, system or "", choice)
        else:
            _answers(talk, i, marks)
    if talk.turns:
        _below(spec, talk, kind, system or "", choice)


def _conversation(spec: PairSpec) -> Conversation:
    key = fingerprint(spec)
    talk = st.session_state.get("talk")
    if talk is None or talk.pair != key:
        talk = st.session_state["talk"] = Conversation(key)
    return talk


def _user(talk: Conversation, i: int) -> None:
    turn = talk.turns[i]
    with st.chat_message("user"):
        text, edit = st.columns([12, 1])
        with text:
            quote(turn.user)
        with edit.popover("", icon=":material/edit:", help="Edit this turn"):
            changed = st.text_area("What you said", turn.user, key=f"edit-{i}", max_chars=_MOST_CHARACTERS)
            if st.button("Ask again from here", key=f"again-{i}", disabled=not changed):
                talk.turns[i:] = [Turn(changed)]
                talk.pending = i
                st.rerun()


def _answers(talk: Conversation, i: int, marks: bool) -> None:
    turn = talk.turns[i]
    spans: dict[str, list[tuple[int, int]]] = {}
    if marks and len(turn.answers) == len(SIDES):
        found = diff_spans(*(turn.answers[side].text for side in SIDES))
        spans = {side: [(s.start, s.end) for s in some] for side, some in zip(SIDES, found, strict=True)}
    for column, side in zip(st.columns(max(1, len(turn.answers))), turn.answers, strict=False):
        answer = turn.answers[side]
        with column, st.chat_message(side, avatar=_AVATARS[side]):
            st.markdown(f"**{side}**")
            quote(answer.text, spans.get(side, ()))
            st.caption(_about(answer))
            with st.popover("Edit", icon=":material/edit:", key=f"pop-{i}-{side}"):
                changed = st.text_area("The answer", answer.text, key=f"edit-{i}-{side}", max_chars=_MOST_CHARACTERS)
                if st.button("Keep this answer", key=f"keep-{i}-{side}", help="Later turns are dropped."):
                    turn.answers[side] = Writing(changed or "", 0, 0.0, True)
                    del talk.turns[i + 1 :]
                    st.rerun()


_AVATARS = {"base": ":material/foundation:", "finetuned": ":material/model_training:"}


def _about(answer: Writing) -> str:
    if not answer.n_tokens:
        return "edited by hand" if answer.has_ended else "nothing yet"
    mean = answer.log_prob / answer.n_tokens
    end = "" if answer.has_ended else ", stopped"
    return f"{answer.n_tokens} tokens{end}, on average {number(mean)} nats each"


def _answer(
    site: Site, spec: PairSpec, talk: Conversation, i: int, sides: tuple[str, ...], kind: str, system: str,
    choice: SamplingChoice,
) -> None:  # fmt: skip
    """Let the sides write into the turn; what they wrote stays when the page is stopped."""
    turn = talk.turns[i]
    turn.answers = {side: Writing(is_answer=kind == "chat") for side in sides}
    try:
        pair = loaded(site, spec)
        streams = _streams(site, pair, talk, i, sides, kind, system, choice)
        places = {}
        for column, side in zip(st.columns(len(sides)), sides, strict=True):
            with column, st.chat_message(side, avatar=_AVATARS[side]):
                st.markdown(f"**{side}**")
                places[side] = st.empty()
        stop_button()
        write_together(streams, turn.answers, lambda side, writing: places[side].html(quoted(writing.text + " ▌")))
    except UserError as error:
        turn.answers = {side: answer for side, answer in turn.answers.items() if answer.n_tokens}
        st.error(plain(str(error)))
        return
    st.rerun()


def _streams(
    site: Site, pair: "ModelPair", talk: Conversation, i: int, sides: tuple[str, ...], kind: str, system: str,
    choice: SamplingChoice,
) -> "dict[str, Iterator[GeneratedToken]]":  # fmt: skip
    from diffing.models.generation import end_ids, generate

    sampling = choice.sampling(talk.turns[i].draw)
    streams = {}
    for side in sides:
        handle = pair.base if side == "base" else pair.finetuned
        prompt = prompt_of(pair, side, kind, _messages(talk, i, side, system))
        streams[side] = generate(handle, prompt, sampling, end_ids(handle, pair.rules), None, site.pairs.lock)
    return streams


def _messages(talk: Conversation, last: int, side: str, system: str) -> list[tuple[str, str]]:
    """What one side has heard and said so far: turns that it did not answer are none of its own."""
    found = [("system", system)] if system else []
    for i, turn in enumerate(talk.turns[: last + 1]):
        if i == last:
            found.append(("user", turn.user))
        elif side in turn.answers:
            found += [("user", turn.user), ("assistant", turn.answers[side].text)]
    return found


def _below(spec: PairSpec, talk: Conversation, kind: str, system: str, choice: SamplingChoice) -> None:
    with st.container(horizontal=True):
        if st.button("Regenerate", icon=":material/refresh:", key="regenerate", help="The next draw: another seed."):
            talk.turns[-1].draw += 1
            talk.pending = len(talk.turns) - 1
            st.rerun()
        if st.button("New conversation", icon=":material/delete:", key="forget"):
            st.session_state.pop("talk")
            st.rerun()
        st.download_button(
            "Export (JSON)", json.dumps(_export(spec, talk, kind, system, choice), ensure_ascii=False, indent=2),
            f"chat-{plain(spec.organism)}.json", "application/json", on_click="ignore", icon=":material/download:",
        )  # fmt: skip


def _export(spec: PairSpec, talk: Conversation, kind: str, system: str, choice: SamplingChoice) -> dict:
    return {
        "pair": spec.model_dump(mode="json"),
        "prompt": kind,
        "system": system or None,
        "sampling": choice.__dict__,
        "turns": [
            {
                "user": turn.user,
                "seed": choice.seed + turn.draw,
                "answers": {
                    side: {"text": a.text, "tokens": a.n_tokens, "log_prob": a.log_prob, "ended": a.has_ended}
                    for side, a in turn.answers.items()
                },
            }
            for turn in talk.turns
        ],
    }
