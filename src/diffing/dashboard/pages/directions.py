"""The direction that models are steered along: from a result of the pair, or uploaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from diffing.core.errors import UserError
from diffing.core.method import load_method
from diffing.core.probing import NamedVector
from diffing.core.result import Result
from diffing.dashboard.catalog import Entry
from diffing.dashboard.subjects import Subject
from diffing.dashboard.uploads import MOST_BYTES, uploaded_vectors
from diffing.display.numbers import number
from diffing.ui.kept import kept_choice
from diffing.ui.parts import one_of
from diffing.ui.text import code, paragraph, plain

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Direction:
    """Where a direction comes from; it is read when it is used.

    Args:
        label: What it is, for people.
        layer: Where it was measured; 0 where that is not known.
        result: The result that holds it, and
        tensor: its name there.
        given: The direction itself, where it was uploaded.
        maximum: The largest length along it that was seen, where that is known.
    """

    label: str
    layer: int
    result: Result | None = None
    tensor: str = ""
    given: "Tensor | None" = None
    maximum: float | None = None

    def read(self) -> "Tensor":
        """The vector itself, shape (D,)."""
        if self.result is not None:
            return self.result.tensor(self.tensor)
        assert self.given is not None
        return self.given


def choose_direction(subject: Subject, entries: Sequence[Entry]) -> Direction | None:
    """Controls that choose a direction; None while there is none."""
    source = one_of("Direction", ["from a result", "upload"], "source")
    return _from_result(subject, entries) if source == "from a result" else _uploaded()


def _from_result(subject: Subject, entries: Sequence[Entry]) -> Direction | None:
    offering = {e.id: e for e in entries if _is_of(e, subject) and _offers(e.method)}
    if not offering:
        st.info(
            "No result of this pair offers directions yet. Run "
            f"{code('python main.py diffing/method=normdiff ' + f'organism={subject.organism} model={subject.model}')} "
            "for mean activation differences, or upload a vector."
        )
        return None
    left, right = st.columns([1, 2])
    run = kept_choice(
        left, "Result", list(offering), "of",
        format_func=lambda i: f"{offering[i].method} · {i.rpartition('/')[2][:8]} · {offering[i].n_tokens:,} tokens",
    )  # fmt: skip
    result = Result(offering[run].folder)
    vectors = {v.tensor: v for v in _vectors(result)}
    if not vectors:
        st.info("This result holds no directions in the residual stream; choose another, or upload a vector.")
        return None
    chosen = vectors[
        kept_choice(
            right, "Vector", list(vectors), "vector", default=_likely(list(vectors.values())).tensor,
            format_func=lambda t: vectors[t].label, then=lambda t: _add_at(vectors[t].layer),
        )
    ]  # fmt: skip
    st.caption(plain(f"Norm {number(chosen.norm)}; {chosen.note}" if chosen.note else f"Norm {number(chosen.norm)}"))
    return Direction(chosen.label, chosen.layer, result, chosen.tensor, maximum=chosen.maximum)


def _add_at(layer: int) -> None:
    """Another vector is added where it was measured, until another layer is chosen."""
    st.session_state["steer_layer"] = layer


def _is_of(entry: Entry, subject: Subject) -> bool:
    return (
        entry.is_readable
        and entry.null_pair == "none"
        and Subject(entry.model, entry.organism, entry.variant) == subject
    )


def _offers(method: str) -> bool:
    try:
        return load_method(method).vectors is not None
    except UserError:
        return False


def _vectors(result: Result) -> tuple[NamedVector, ...]:
    method = load_method(result.method)
    return method.vectors(result) if method.vectors is not None else ()


def _likely(vectors: Sequence[NamedVector]) -> NamedVector:
    """What to begin with: at the middle one of the layers, the difference on the text the organism was trained on."""
    layers = sorted({v.layer for v in vectors})
    middle = [v for v in vectors if v.layer == layers[len(layers) // 2]]
    return next((v for v in middle if " training," in v.label), middle[0])


def _uploaded() -> Direction | None:
    file = st.file_uploader(
        f"A vector as safetensors, at most {MOST_BYTES // 2**20} MiB", type=["safetensors"], key="file"
    )
    if file is None:
        paragraph(
            "One tensor of shape (D,), D the width of the residual stream; other tensors are left aside.", "d-muted"
        )
        return None
    vectors = uploaded_vectors(file.name, file.getvalue())
    name = st.selectbox("Tensor", list(vectors), key="tensor")
    return Direction(f"{file.name}: {name}", 0, None, name, vectors[name])
