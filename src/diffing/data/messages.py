"""Chats as data: turns with a role, read from the two layouts in common use."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffing.core.errors import UserError

CHAT_ROLES = ("system", "user", "assistant", "tool")
_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


def parse_messages(value: Any, where: str) -> tuple[Message, ...]:
    """Turns from a list of {"role", "content"} or {"from", "value"}, or from such a list as JSON text.

    Args:
        value: What the source holds.
        where: Place of the value, for messages.

    Raises:
        UserError: It is no such list, a role is unknown, or a content is not text.
    """
    if isinstance(value, str):
        value = _from_json(value, where)
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where} holds {kind(value)}, not a chat; a chat is a list of {{role, content}}.")
    if not value:
        raise UserError(f"{where} is a chat without messages; remove it.")
    return tuple(_message(item, f"{where}, message {i + 1}") for i, item in enumerate(value))


def check_text(value: Any, where: str, remedy: str) -> str:
    """`value` if it is text that can be written as UTF-8; nothing (None) is the empty text.

    Raises:
        UserError: It is not.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where} holds {kind(value)}, not text; {remedy}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds half a surrogate pair at character {error.start}; mend or remove it.") from None
    return value


def kind(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    names = {str: "text", list: "a list", tuple: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), f"a value of type {type(value).__name__}")


def _from_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise UserError(f"{where} holds text, not a chat; a chat is a list of {{role, content}}.") from None


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise UserError(f"{where} is {kind(item)}; a message is an object with role and content.")
    names = ("role", "content") if "role" in item else ("from", "value")
    missing = [n for n in names if n not in item]
    if missing:
        found = ", ".join(map(str, item)) or "nothing"
        raise UserError(
            f"{where} has no {missing[0]!r} (it has {found}); a message is an object with role and content."
        )
    role, content = (item[n] for n in names)
    return Message(_role(role, where), _content(content, where))


def _role(role: Any, where: str) -> str:
    name = _ALIASES.get(role, role) if isinstance(role, str) else None
    if name not in CHAT_ROLES:
        raise UserError(f"{where} has the role {role!r}; the roles are {', '.join(CHAT_ROLES)}.")
    return name


def _content(content: Any, where: str) -> str:
    """Plain content, or the joined text of a list of {"type": "text", "text"} parts."""
    if isinstance(content, (list, tuple)):
        if not all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
            raise UserError(f"{where} has parts that are not text; only text can be compared.")
        content = "".join(p["text"] for p in content)
    return check_text(content, where, "give its content as text")
