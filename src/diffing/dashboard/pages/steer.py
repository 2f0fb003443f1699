"""Steer: add a direction to the residual stream and read what the models then write, beside what they write anyway."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from diffing.analysis.text_diff import diff_spans
from diffing.core.config import fingerprint
from diffing.core.errors import UserError
from diffing.core.specs import PairSpec
from diffing.dashboard.pages.directions import Direction, choose_direction
from diffing.dashboard.pages.picking import SIDES, loaded, pick_subject, state_of
from diffing.dashboard.pages.sampling import SamplingChoice, prompt_kind, sampling_controls, stop_button
from diffing.dashboard.pages.texts import finished, places
from diffing.dashboard.site import Site
from diffing.dashboard.writing import Writing, prompt_of, write_together
from diffing.ui.parts import one_of
from diffing.ui.text import plain, quoted

if TYPE_CHECKING:
    from torch import Tensor

    from diffing.models.pair import ModelPair

_PROMPT = "Tell me about your day."
_MEAN_NORM, _MAXIMUM = "mean norm", "own maximum"
_WHERE = {
    "all tokens": "all",
    "prompt": "prompt",
    "fading": "fading",
}


def page(site: Site) -> None:
    """Draw the page."""
    st.title("Steer both models")
    entries = site.catalog.entries()
    subject = pick_subject(site, entries)
    spec = state_of(site, subject, entries)
    direction = choose_direction(subject, entries)
    layer, strength, unit, where, fade = _how(direction)
    kind = prompt_kind()
    prompt = st.text_area("Prompt", _PROMPT, key="prompt", bind="query-params", max_chars=4000, height=100)
    choice = sampling_controls(60)
    if st.button("Steer", type="primary", icon=":material/explore:", key="steer", disabled=direction is None):
        assert direction is not None
        if not (prompt or "").strip():
            raise UserError("There is no prompt yet; write one.")
        asked = _Asked(direction, layer, strength, unit, where, fade, kind, prompt or "", choice)
        _steer(site, spec, asked)
        return
    shown = st.session_state.get("steered")
    if shown and shown["pair"] == fingerprint(spec):
        _texts(shown)


@dataclass(frozen=True)
class _Asked:
    direction: Direction
    layer: int
    strength: float
    unit: str
    where: str
    fade: int
    kind: str
    prompt: str
    choice: SamplingChoice


def _how(direction: Direction | None) -> tuple[int, float, str, str, int]:
    unit = _MEAN_NORM
    if direction is not None and direction.maximum:
        unit = one_of("Strength in units of", [_MEAN_NORM, _MAXIMUM], "unit")
    one, two, three, four = st.columns([1, 2, 2, 1], vertical_alignment="bottom")
    layer = one.number_input(
        "Layer", 0, None, direction.layer if direction else 0, key="steer_layer", bind="query-params"
    )
    strength = two.slider(
        "Strength", -4.0, 4.0, 0.5, 0.05, key="strength", bind="query-params",
        help="In units of the mean norm of the residual stream at that layer, measured in the base model, or of the "
        "largest length that was seen along the direction itself; negative values point the other way.",
    )  # fmt: skip
    with three:
        where = _WHERE[one_of("Applied to", list(_WHERE), "where")]
    fade = four.number_input(
        "Fades over", 1, 512, 32, key="fade", bind="query-params", disabled=where != "fading", help="Generated tokens."
    )
    return int(layer), float(strength), unit, where, int(fade)


def _steer(site: Site, spec: PairSpec, asked: _Asked) -> None:
    st.session_state.pop("steered", None)
    vector = asked.direction.read()
    pair = loaded(site, spec)
    from diffing.analysis.steering import steering_vector
    from diffing.models.generation import end_ids, generate
    from diffing.models.steering import Steering

    _check_width(pair, vector, asked.direction.label)
    if asked.unit == _MAXIMUM and asked.direction.maximum:
        norm = asked.direction.maximum
    else:
        norm = _mean_norm(site, pair, asked.layer)
    steering = Steering(asked.layer, steering_vector(vector, asked.strength, norm), asked.where, asked.fade)  # type: ignore[arg-type]
    about = (
        f"{asked.direction.label}; {asked.strength:g} × {asked.unit} {norm:.3g} at layer {asked.layer}, "
        f"{next(k for k, v in _WHERE.items() if v == asked.where)}; seed {asked.choice.seed}"
    )
    is_answer = asked.kind == "chat"
    texts = {f"{side}, {how}": Writing(is_answer=is_answer) for side in SIDES for how in ("unsteered", "steered")}
    st.caption(plain(about))
    names = list(texts)
    growing = places(names[:2]) | places(names[2:])
    stop_button()
    sampling = asked.choice.sampling()
    streams = {}
    for name in texts:
        side, _, how = name.partition(", ")
        handle = pair.base if side == "base" else pair.finetuned
        prompt = prompt_of(pair, side, asked.kind, [("user", asked.prompt)])
        added = steering if how == "steered" else None
        streams[name] = generate(handle, prompt, sampling, end_ids(handle, pair.rules), added, site.pairs.lock)
    st.session_state["steered"] = {"pair": fingerprint(spec), "about": about, "texts": texts}
    write_together(streams, texts, lambda name, writing: growing[name].html(quoted(writing.text + " ▌")))
    st.rerun()


def _check_width(pair: "ModelPair", vector: "Tensor", label: str) -> None:
    width = int(pair.base.module.get_input_embeddings().weight.shape[-1])  # type: ignore[union-attr, index]
    if vector.shape[-1] != width and vector.numel() != width:
        raise UserError(
            f"{label} has {vector.numel():,} numbers and the residual stream of {pair.spec.model.name} {width:,}; "
            "choose a vector of that width."
        )


def _mean_norm(site: Site, pair: "ModelPair", layer: int) -> float:
    known: dict[tuple[str, int], float] = _norms()
    key = (pair.fingerprint, layer)
    if key not in known:
        from diffing.analysis.steering import mean_activation_norm
        from diffing.core.specs import CorpusSpec, DatasetSpec
        from diffing.data.tokens import tokenize_corpus

        text = CorpusSpec(datasets=(DatasetSpec(name="pretraining", id="embedded:pretraining"),), max_tokens=1024)
        skip = site.settings.skip_first_tokens
        with st.spinner(f"Measuring the mean norm at layer {layer} …"), site.pairs.lock:
            corpus = tokenize_corpus(text, pair.tokenizer, pair.rules)
            known[key] = mean_activation_norm(pair.base, corpus, layer, skip, 1024)
    return known[key]


@st.cache_resource(show_spinner=False)
def _norms() -> dict[tuple[str, int], float]:
    return {}


def _texts(shown: dict[str, Any]) -> None:
    """The four texts; what steering changed stands out."""
    texts: dict[str, Writing] = shown["texts"]
    st.caption(plain(shown["about"]))
    names = list(texts)
    for plain_name, steered_name in (names[:2], names[2:]):
        spans = diff_spans(texts[plain_name].text, texts[steered_name].text)
        for column, name, marks in zip(st.columns(2), (plain_name, steered_name), spans, strict=True):
            finished(column, name, texts[name], marks)
