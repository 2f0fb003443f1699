"""Prompts that say little: the package's own, or a user's file, and their tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from diffing.core.errors import UserError
from diffing.core.files import sha256
from diffing.core.templates import TemplateRules
from diffing.data.chats import chat_template
from diffing.data.embedded_sets import ASSETS
from diffing.data.local_files import local_rows
from diffing.data.messages import Message, check_text
from diffing.data.prompts import prompt_ids, raw_prompt_ids
from diffing.data.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED = "embedded"
Kind = Literal["raw", "chat"]


@dataclass(frozen=True)
class Prefill:
    """A prompt.

    Args:
        text: What is continued, or what the user says.
        kind: `raw` (continued as it stands) or `chat` (a user's message, put through the chat template).
        where: Its place, for messages.
    """

    text: str
    kind: Kind
    where: str


@dataclass(frozen=True)
class EncodedPrefill:
    """A prompt and its tokens."""

    prefill: Prefill
    ids: tuple[int, ...]


def read_prefills(source: str) -> list[Prefill]:
    """Prompts of the package (`embedded`) or of a file.

    Args:
        source: `embedded`, or a file: of text with one raw prompt a line, or of rows with `text` and, where they are
            not raw, `kind`.

    Raises:
        UserError: The file cannot be read, holds no prompt, or a row is no prompt.
    """
    path = prefill_file(source)
    found = [p for row in local_rows(path) for p in _prefills(row, path.suffix.lower() == ".txt")]
    if not found:
        raise UserError(f'{path} holds no prompts; give lines like {{"text": "The", "kind": "raw"}}.')
    return found


def prefill_file(source: str) -> Path:
    """Where the prompts are.

    Raises:
        UserError: There is no such file.
    """
    if source == EMBEDDED:
        return ASSETS / "prompts" / "prefills.jsonl"
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"There is no file of prompts {source!r}; name a jsonl or txt file, or say {EMBEDDED!r}.")
    return path


def prefill_digest(source: str) -> str:
    """Digest of the prompts' file."""
    return sha256(prefill_file(source))


def _prefills(row: Row, is_plain: bool) -> Iterator[Prefill]:
    if is_plain:
        for line in row.values["text"].split("\n"):
            yield Prefill(line, "raw", f"Prompt {line!r} ({row.where})")
        return
    if "text" not in row.values:
        raise UserError(f"{row.where} has no 'text' (it has {', '.join(row.values) or 'nothing'}); mend or remove it.")
    kind = row.values.get("kind", "raw")
    if kind not in get_args(Kind):
        raise UserError(f"{row.where} is of kind {kind!r}; the kinds are {' and '.join(get_args(Kind))}.")
    yield Prefill(check_text(row.values["text"], row.where, "give its text"), cast(Kind, kind), row.where)


def encode_prefills(
    prefills: list[Prefill], tokenizer: "PreTrainedTokenizerBase", rules: TemplateRules
) -> tuple[list[EncodedPrefill], list[str]]:
    """Tokens of the prompts that this tokenizer can take, and sentences on those that are left out.

    Chat prompts need a chat template; an empty raw prompt needs a token that begins a text.

    Raises:
        UserError: None is left, or the template refuses one.
    """
    has_template, has_bos = _has_template(tokenizer, rules), _has_beginning(tokenizer)
    found, n_chat, n_empty = [], 0, 0
    for prefill in prefills:
        if prefill.kind == "chat" and not has_template:
            n_chat += 1
        elif prefill.kind == "raw" and not prefill.text and not has_bos:
            n_empty += 1
        elif prefill.kind == "chat":
            ids = prompt_ids([Message("user", prefill.text)], tokenizer, rules)
            found.append(EncodedPrefill(prefill, tuple(ids)))
        else:
            found.append(EncodedPrefill(prefill, tuple(raw_prompt_ids(prefill.text, tokenizer))))
    notes = []
    if n_chat:
        notes.append(f"{n_chat} chat prompts are left out: the tokenizer has no chat template.")
    if n_empty:
        notes.append("The empty prompt is left out: the tokenizer has no token that begins a text.")
    if not found:
        raise UserError(f"No prompt is left. {' '.join(notes)} Give raw prompts with diffing.method.prompts=FILE.")
    return found, notes


def _has_template(tokenizer: "PreTrainedTokenizerBase", rules: TemplateRules) -> bool:
    try:
        chat_template(tokenizer, rules, "A prompt", "give raw prompts")
    except UserError:
        return False
    return True


def _has_beginning(tokenizer: "PreTrainedTokenizerBase") -> bool:
    try:
        raw_prompt_ids("", tokenizer)
    except UserError:
        return False
    return True
