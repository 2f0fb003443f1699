"""Try amplification: sliders scale what finetuning changed; what the model then writes stands beside the other two."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from diffing.analysis.text_diff import DiffSpan, diff_spans
from diffing.core.amplification import PRESETS, THIRDS, AmplificationRule, AmplificationSpec, parts, uniform
from diffing.core.config import fingerprint
from diffing.core.errors import UserError
from diffing.core.specs import PairSpec
from diffing.dashboard.pages.picking import SIDES, loaded, pick_subject, state_of
from diffing.dashboard.pages.sampling import SamplingChoice, prompt_kind, sampling_controls, stop_button
from diffing.dashboard.pages.texts import finished, places
from diffing.dashboard.site import Site
from diffing.dashboard.subjects import Subject, configured, options
from diffing.dashboard.writing import Writing, prompt_of, write_together
from diffing.ui.parts import one_of_many
from diffing.ui.text import plain, quoted

if TYPE_CHECKING:
    from diffing.models.amplifying import Amplifier
    from diffing.models.pair import ModelPair

_PROMPT = "Tell me about your day."
_SLIDERS = "sliders"
_AMPLIFIED = "amplified"
_KINDS = ("attention", "mlp")
_LARGEST = 4.0


def page(site: Site) -> None:
    """Draw the page."""
    st.title("Try amplification")
    entries = site.catalog.entries()
    subject = pick_subject(site, entries)
    spec = state_of(site, subject, entries)
    factors = _factors()
    kind = prompt_kind()
    prompt = st.text_area("Prompt", _PROMPT, key="prompt", bind="query-params", max_chars=4000, height=100)
    choice = sampling_controls(60)
    if st.button("Write", type="primary", icon=":material/equalizer:", key="amplify"):
        if not (prompt or "").strip():
            raise UserError("There is no prompt yet; write one.")
        _write(site, subject, spec, _Asked(factors, kind, prompt or "", choice))
        return
    shown = st.session_state.get("amplified")
    if shown and shown["pair"] == fingerprint(spec):
        _texts(shown)


@dataclass(frozen=True)
class _Factors:
    """A preset, or what the sliders say: the whole change's factor, and by part what that is multiplied by."""

    preset: str | None
    overall: float
    by_part: Mapping[str, float]


@dataclass(frozen=True)
class _Asked:
    factors: _Factors
    kind: str
    prompt: str
    choice: SamplingChoice


def _factors() -> _Factors:
    left, right = st.columns([1, 2], vertical_alignment="bottom")
    with left:
        chosen = one_of_many("Factors", [_SLIDERS, *PRESETS], "factors")
    if chosen != _SLIDERS:
        right.caption(plain("; ".join(_told(rule) for rule in PRESETS[chosen].rules)))
        return _Factors(chosen, 1.0, {})
    overall = right.slider(
        "Whole change", -_LARGEST, _LARGEST, 1.5, 0.05, key="overall", bind="query-params",
        help="What finetuning changed is multiplied by this: 0 is the base model, 1 the finetuned one, negative values "
        "reverse what was learned.",
    )  # fmt: skip
    by_part: dict[str, float] = {}
    with st.expander("Parts of the change", icon=":material/grid_on:"):
        st.caption("Each third of the depth, attention and MLP apart, is multiplied by this besides.")
        for third, column in zip(THIRDS, st.columns(len(THIRDS)), strict=True):
            for kind in _KINDS:
                name = f"{third} {kind}"
                by_part[name] = column.slider(
                    name, -_LARGEST, _LARGEST, 1.0, 0.05, key=name.replace(" ", "_"), bind="query-params"
                )
    return _Factors(None, float(overall), by_part)


def _told(rule: AmplificationRule) -> str:
    where = "" if rule.layers == "all" else f" in layers {rule.layers}"
    return f"{', '.join(rule.modules)}{where} ×{rule.factor:g}"


def _spec(factors: _Factors, amplifier: "Amplifier") -> AmplificationSpec:
    """Rules for what is asked; only for parts that finetuning changed."""
    if factors.preset is not None:
        return PRESETS[factors.preset]
    found = [uniform(factors.overall).rules[0]]
    for part in parts(amplifier.n_layers):
        share = factors.by_part.get(part.name, 1.0)
        rule = part.rule(factors.overall * share)
        if share != 1 and any(rule.matches(place, amplifier.n_layers) for place in amplifier.places):
            found.append(rule)
    return AmplificationSpec(rules=tuple(found))


def _write(site: Site, subject: Subject, spec: PairSpec, asked: _Asked) -> None:
    st.session_state.pop("amplified", None)
    pair = loaded(site, spec)
    from diffing.models.amplifying import Amplifier

    with site.pairs.lock:
        amplifier = Amplifier(pair)
    amplification = _spec(asked.factors, amplifier)
    names = [*SIDES, _AMPLIFIED]
    texts = {name: Writing(is_answer=asked.kind == "chat") for name in names}
    about = f"{'; '.join(_told(rule) for rule in amplification.rules)}; seed {asked.choice.seed}"
    st.caption(plain(about))
    growing = places(names)
    stop_button()
    st.session_state["amplified"] = {
        "pair": fingerprint(spec), "about": about, "texts": texts,
        "command": command(subject, spec, amplification),
    }  # fmt: skip

    def draw(name: str, writing: Writing) -> None:
        growing[name].html(quoted(writing.text + " ▌"))

    write_together({side: _stream(site, pair, side, asked) for side in SIDES}, texts, draw)
    # The factors are a state of the module that other windows share: it is theirs again once this text is written.
    with site.pairs.lock, amplifier.set(amplification, "this page"):
        try:
            write_together({_AMPLIFIED: _stream(site, pair, "finetuned", asked)}, texts, draw)
        except UserError as error:
            raise UserError(f"Amplified by {about}: {error} Smaller factors may help.") from None
    st.rerun()


def _stream(site: Site, pair: "ModelPair", side: str, asked: _Asked) -> Any:
    from diffing.models.generation import end_ids, generate

    handle = pair.base if side == "base" else pair.finetuned
    prompt = prompt_of(pair, side, asked.kind, [("user", asked.prompt)])
    return generate(handle, prompt, asked.choice.sampling(), end_ids(handle, pair.rules), None, site.pairs.lock)


def command(subject: Subject, pair: PairSpec, spec: AmplificationSpec) -> str | None:
    """A command line that gives a method the same pair; None where it takes more than a name and these factors."""
    if subject not in configured() or pair.amplification is not None:
        return None
    return " ".join(["python main.py diffing/method=kl", *options(subject), option(spec)])


def option(spec: AmplificationSpec) -> str:
    """The factors on the command line."""
    if spec.uniform is not None:
        return f"organism.amplification={spec.uniform:g}"
    if spec.name is not None:
        return f"organism.amplification={spec.name}"
    rules = ",".join(
        f"{{layers:{rule.layers},modules:[{','.join(rule.modules)}],factor:{rule.factor:g}}}" for rule in spec.rules
    )
    return f"'organism.amplification=[{rules}]'"


def _texts(shown: dict[str, Any]) -> None:
    """The three texts; what differs between finetuned and amplified stands out."""
    texts: dict[str, Writing] = shown["texts"]
    st.caption(plain(shown["about"]))
    spans = diff_spans(texts[SIDES[1]].text, texts[_AMPLIFIED].text)
    marks: dict[str, list[DiffSpan]] = dict(zip((SIDES[1], _AMPLIFIED), spans, strict=True))
    for column, (name, writing) in zip(st.columns(len(texts)), texts.items(), strict=True):
        finished(column, name, writing, marks.get(name, ()))
    if shown["command"] is not None:
        st.caption("The same pair for any method:")
        st.code(shown["command"], language=None, wrap_lines=True)
