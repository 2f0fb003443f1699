"""How a chat template lays out a sequence of roles: the text around the contents, and whose it is.

A template is rendered once per sequence of roles with markers in place of the contents; what stands
between the markers is the template's. Rendering the same roles cut short shows how a turn is closed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from diffing.core.errors import one_line
from diffing.core.templates import TemplateRules

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A template that prints today's date would give other tokens every day.
_FIXED_DATE = (
    '{%- macro strftime_now(format) -%}{{ format | replace("%Y", "2024") | replace("%m", "07") | replace("%d", "26")'
    ' | replace("%B", "July") | replace("%b", "Jul") | replace("%A", "Friday") | replace("%a", "Fri")'
    ' | replace("%H", "00") | replace("%M", "00") | replace("%S", "00") }}{%- endmacro %}\n'
)
_JOINT = "\n\n"


class TemplateRefusal(Exception):
    """A template cannot render some roles; the text says why."""


@dataclass(frozen=True)
class Layout:
    """The text that a template puts around the contents of a sequence of roles.

    Args:
        order: Messages in the order in which their contents appear.
        pieces: Template text before, between and after the contents; one more than there are messages.
        closings: For each place in `order`, the text that closes the turn there.
        opening: The text that opens a turn of the first role in mid-chat; None where it is not known.
        shared: The place of a system message that stands inside the turn of the message after it.
        folds_system: The template takes no system role: its text was put before the first user message.
    """

    order: tuple[int, ...]
    pieces: tuple[str, ...]
    closings: tuple[str, ...]
    opening: str | None
    shared: int | None
    folds_system: bool


class Renderer:
    """Renders messages through one template, and remembers the layout of each sequence of roles."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: str, rules: TemplateRules) -> None:
        self.tokenizer = tokenizer
        self._template = _FIXED_DATE + template if "strftime_now" in template else template
        self._options: dict[str, Any] = {"enable_thinking": False} if rules.has_thinking else {}
        self._layouts: dict[tuple[str, ...], Layout] = {}

    def text(
        self, roles: Sequence[str], contents: Sequence[str], folds_system: bool, generation_prompt: bool = False
    ) -> str:
        """The rendered chat; with `generation_prompt`, up to where the assistant's answer begins.

        Raises:
            TemplateRefusal: The template raises.
        """
        turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        n_system = _n_leading_system(roles)
        if folds_system and 0 < n_system < len(roles):
            joined = _JOINT.join(contents[: n_system + 1])
            turns = [{"role": roles[n_system], "content": joined}, *turns[n_system + 1 :]]
        try:
            rendered = self.tokenizer.apply_chat_template(
                turns,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self._options,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise TemplateRefusal(one_line(error, 160)) from error
        assert isinstance(rendered, str)
        return rendered

    def layout(self, roles: tuple[str, ...]) -> Layout:
        """How the template lays out `roles`.

        Raises:
            TemplateRefusal: It cannot render them, or leaves one out.
        """
        if roles not in self._layouts:
            self._layouts[roles] = self._find_layout(roles)
        return self._layouts[roles]

    def _find_layout(self, roles: tuple[str, ...]) -> Layout:
        try:
            return self._layout(roles, folds_system=False)
        except TemplateRefusal:
            n_system = _n_leading_system(roles)
            if not n_system or roles[n_system : n_system + 1] != ("user",):
                raise
            return self._layout(roles, folds_system=True)

    def _layout(self, roles: tuple[str, ...], folds_system: bool) -> Layout:
        order, pieces = self._pieces(roles, folds_system)
        # Some templates put the system message into the last user turn: the other turns then stand as without it.
        start = 0 if order[0] == 0 else 1
        cut_short = [self._try_pieces(roles[start : i + 1], folds_system) for i in order[:-1]]
        first = roles[order[0]]
        return Layout(
            order=order,
            pieces=pieces,
            closings=(*(p[-1] if p else pieces[-1] for p in cut_short), pieces[-1]),
            opening=self._opening(first) if first != "system" else None,
            shared=self._shared(roles, order, pieces[0], folds_system),
            folds_system=folds_system,
        )

    def _opening(self, role: str) -> str | None:
        other = "assistant" if role == "user" else "user"
        whole, cut = self._try_pieces((role, other, role), False), self._try_pieces((role, other), False)
        if not whole or not cut or not whole[2].startswith(cut[-1]):
            return None
        return whole[2].removeprefix(cut[-1])

    def _shared(self, roles: tuple[str, ...], order: tuple[int, ...], head: str, folds_system: bool) -> int | None:
        """Place of the system message when it was moved, or when the chat would open alike without it."""
        place = order.index(0)
        if roles[0] != "system" or place == len(order) - 1:
            return None
        without = self._try_pieces(roles[1:], folds_system)
        return place if place or (without and without[0] == head) else None

    def _try_pieces(self, roles: tuple[str, ...], folds_system: bool) -> tuple[str, ...] | None:
        try:
            return self._pieces(roles, folds_system)[1] if roles else None
        except TemplateRefusal:
            return None

    def _pieces(self, roles: tuple[str, ...], folds_system: bool) -> tuple[tuple[int, ...], tuple[str, ...]]:
        markers = [f"qzx{i}xzq" for i in range(len(roles))]
        text = self.text(roles, markers, folds_system)
        for i, marker in enumerate(markers):
            if text.count(marker) != 1:
                times = "leaves out" if marker not in text else "repeats"
                raise TemplateRefusal(f"it {times} message {i + 1}, of role {roles[i]}")
        order = sorted(range(len(roles)), key=lambda i: text.index(markers[i]))
        pieces = []
        for i in order:
            piece, _, text = text.partition(markers[i])
            pieces.append(piece)
        return tuple(order), (*pieces, text)


def _n_leading_system(roles: Sequence[str]) -> int:
    return next((i for i, r in enumerate(roles) if r != "system"), len(roles))
